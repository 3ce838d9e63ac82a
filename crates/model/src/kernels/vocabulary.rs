//! Scores of every token: hidden states times the token table.

use rayon::prelude::*;

use super::dispatch::{isa, multiversion};
use super::lanes;

/// Tokens handled by one task.
const TASK: usize = 1 << 8;

/// `hidden [n, d] · tableᵀ`, `[n, rows]`; `row` copies one row of the table, `[d]`.
pub fn scores(hidden: &[f32], rows: usize, d: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = vec![0.0f32; hidden.len() / d * rows];
    let found = isa();
    for (hidden, out) in hidden.chunks_exact(d).zip(out.chunks_exact_mut(rows.max(1))) {
        out.par_chunks_mut(TASK).enumerate().for_each_init(
            || vec![0.0f32; TASK * d],
            |table, (task, out)| {
                let table = &mut table[..out.len() * d];
                for (i, part) in table.chunks_exact_mut(d).enumerate() {
                    row(task * TASK + i, part);
                }
                dots(found, hidden, table, out);
            },
        );
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
        let (d, rows) = (19, 2500);
        let table: Vec<f32> = (0..rows * d).map(|i| (i % 83) as f32 * 0.1 - 4.0).collect();
        let hidden: Vec<f32> = (0..2 * d).map(|i| (i % 7) as f32 - 3.0).collect();
        let got = scores(&hidden, rows, d, |row, out| out.copy_from_slice(&table[row * d..(row + 1) * d]));
        for n in [0, 1] {
            for token in [0, 255, 256, 2499] {
                let want: f64 = (0..d).map(|i| f64::from(hidden[n * d + i]) * f64::from(table[token * d + i])).sum();
                assert!((f64::from(got[n * rows + token]) - want).abs() < 1e-4, "{n} {token}");
            }
        }
    }
}
