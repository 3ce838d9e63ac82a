//! Attention against the same sums written out in `f64`, over sequences that end inside and beyond a block of queries.

use super::*;
use crate::kernels::dispatch::{available, isa};

fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Results of forward and backward: `out`, `grad_q`, `grad_k`, `grad_v`.
type Results = [Vec<f32>; 4];

struct Case {
    spans: Vec<Span>,
    heads: Heads,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    grad: Vec<f32>,
}

impl Case {
    /// Sequences of (keys, queries).
    fn new(sequences: &[(usize, usize)], heads: Heads) -> Self {
        let (mut spans, mut keys, mut queries) = (Vec::new(), 0, 0);
        for (length, asked) in sequences {
            spans.push(Span { keys_from: keys, length: *length, queries_from: queries, queries: *asked });
            keys += length;
            queries += asked;
        }
        let (q, grad) = (values(queries * heads.width(), 1), values(queries * heads.width(), 2));
        let (k, v) = (values(keys * heads.kv_width(), 3), values(keys * heads.kv_width(), 4));
        Self { spans, heads, q, k, v, grad }
    }

    fn by_the_kernels(&self, found: Isa) -> Results {
        let nan = |x: &[f32]| vec![f32::NAN; x.len()];
        let (mut out, mut grad_q, mut grad_k, mut grad_v) = (nan(&self.q), nan(&self.q), nan(&self.k), nan(&self.v));
        let Case { spans, heads, q, k, v, grad } = self;
        forward(found, q, k, v, spans, *heads, &mut out);
        backward(found, grad, q, k, v, spans, *heads, &mut grad_q, &mut grad_k, &mut grad_v);
        [out, grad_q, grad_k, grad_v]
    }

    fn written_out(&self) -> Results {
        let Heads { heads, head_size: size, scale, .. } = self.heads;
        let (width, kv_width) = (self.heads.width(), self.heads.kv_width());
        let zeros = |x: &[f32]| vec![0.0f64; x.len()];
        let (mut out, mut grad_q, mut grad_k, mut grad_v) =
            (zeros(&self.q), zeros(&self.q), zeros(&self.k), zeros(&self.v));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        for span in &self.spans {
            for (i, head) in (0..span.queries).flat_map(|i| (0..heads).map(move |head| (i, head))) {
                let query = (span.queries_from + i) * width + head * size;
                let key = |j: usize| (span.keys_from + j) * kv_width + head / self.heads.group() * size;
                let seen = span.length - span.queries + i + 1;
                let q = &self.q[query..query + size];
                let grad = &self.grad[query..query + size];
                let scores: Vec<f64> =
                    (0..seen).map(|j| dot(q, &self.k[key(j)..][..size]) * f64::from(scale)).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp() / total).collect();
                let grad_p: Vec<f64> = (0..seen).map(|j| dot(grad, &self.v[key(j)..][..size])).collect();
                let along: f64 = p.iter().zip(&grad_p).map(|(p, g)| p * g).sum();
                for j in 0..seen {
                    let grad_score = p[j] * (grad_p[j] - along) * f64::from(scale);
                    for c in 0..size {
                        out[query + c] += p[j] * f64::from(self.v[key(j) + c]);
                        grad_q[query + c] += grad_score * f64::from(self.k[key(j) + c]);
                        grad_k[key(j) + c] += grad_score * f64::from(q[c]);
                        grad_v[key(j) + c] += p[j] * f64::from(grad[c]);
                    }
                }
            }
        }
        [out, grad_q, grad_k, grad_v].map(|x| x.into_iter().map(|v| v as f32).collect())
    }
}

#[test]
fn every_length_and_every_share_of_queries() {
    let sequences = [
        vec![(1, 1), (2, 2), (3, 1), (13, 13)],
        vec![(31, 31), (32, 32), (33, 33), (40, 7)],
        vec![(84, 84), (85, 85), (96, 96), (97, 1)],
        vec![(200, 200), (200, 1), (170, 90)],
    ];
    for (heads, kv_heads, head_size) in [(2, 2, 32), (4, 2, 20), (3, 1, 64)] {
        let heads = Heads { heads, kv_heads, head_size, scale: 0.6 };
        for sequences in &sequences {
            let case = Case::new(sequences, heads);
            let names = ["out", "grad_q", "grad_k", "grad_v"];
            let results = case.by_the_kernels(isa());
            for found in available() {
                assert!(
                    case.by_the_kernels(found) == results,
                    "{found:?} gives other bits for {sequences:?}, {heads:?}"
                );
            }
            for ((got, want), name) in results.iter().zip(&case.written_out()).zip(names) {
                for (i, (got, want)) in got.iter().zip(want).enumerate() {
                    assert!((got - want).abs() < 2e-5, "{name}[{i}] of {sequences:?}, {heads:?}: {got} and {want}");
                }
            }
        }
    }
}

/// A sequence's bits do not depend on its neighbours, nor its last query's on whether the others are asked.
#[test]
fn a_sequence_alone_has_the_same_bits() {
    let heads = Heads { heads: 2, kv_heads: 1, head_size: 24, scale: 0.3 };
    let both = Case::new(&[(130, 130), (61, 61)], heads);
    let [out, ..] = both.by_the_kernels(isa());
    let mut alone = Case::new(&[(130, 1)], heads);
    alone.q = both.q[129 * heads.width()..130 * heads.width()].to_vec();
    alone.k.copy_from_slice(&both.k[..130 * heads.kv_width()]);
    alone.v.copy_from_slice(&both.v[..130 * heads.kv_width()]);
    let [last, ..] = alone.by_the_kernels(isa());
    assert_eq!(last, out[129 * heads.width()..130 * heads.width()]);
}
