//! Scores of every token: hidden states times the token table. Called by the decoder when it is asked for logits.

use rayon::prelude::*;

use super::dispatch::{isa, multiversion};
use super::lanes;

/// Tokens handled by one task.
const TASK: usize = 1 << 10;

/// `hidden [n, d] · tableᵀ`, `[n, vocabulary]`; `table` is `[vocabulary, d]`.
pub fn scores(hidden: &[f32], table: &[f32], d: usize) -> Vec<f32> {
    let vocabulary = table.len() / d;
    let mut out = vec![0.0f32; hidden.len() / d * vocabulary];
    let found = isa();
    for (hidden, out) in hidden.chunks_exact(d).zip(out.chunks_exact_mut(vocabulary)) {
        let tasks = out.par_chunks_mut(TASK).zip(table.par_chunks(TASK * d));
        tasks.for_each(|(out, table)| dots(found, hidden, table, out));
    }
    out
}

multiversion! {
    fn dots(hidden: &[f32], table: &[f32], out: &mut [f32]) => dots_body
}

#[inline(always)]
fn dots_body(hidden: &[f32], table: &[f32], out: &mut [f32]) {
    for (out, row) in out.iter_mut().zip(table.chunks_exact(hidden.len())) {
        *out = lanes::dot(hidden, row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_score_is_a_dot_product() {
        let d = 19;
        let table: Vec<f32> = (0..2500 * d).map(|i| (i % 83) as f32 * 0.1 - 4.0).collect();
        let hidden: Vec<f32> = (0..2 * d).map(|i| (i % 7) as f32 - 3.0).collect();
        let got = scores(&hidden, &table, d);
        for n in [0, 1] {
            for token in [0, 1023, 1024, 2499] {
                let want: f64 = (0..d).map(|i| f64::from(hidden[n * d + i]) * f64::from(table[token * d + i])).sum();
                assert!((f64::from(got[n * 2500 + token]) - want).abs() < 1e-4, "{n} {token}");
            }
        }
    }
}
