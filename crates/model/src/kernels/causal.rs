//! One block of queries of one head and the keys that they see: its products and its softmax, forward and backward.
//!
//! The products leave out what nobody sees, a few rows at a time. What they leave out is zero: with it a finite result would be
//! the same, but for the sign of a zero.

use super::dispatch::{Isa, multiversion};
use super::panels::PANEL;
use super::serial::{Strided, matmul_serial};
use super::{lanes, math};

/// Rows that [`Causal::weigh`] and [`Causal::spread`] multiply together: two tiles' with AVX2, most of one's with
/// AVX-512.
const TOGETHER: usize = 12;

/// Numbers past what a query sees that are read, as zeros.
pub const BEYOND: usize = TOGETHER;

/// What the queries of one block see: query `i` the keys `0..first_seen+i`.
#[derive(Debug, Clone, Copy)]
pub struct Causal {
    /// Rows of queries.
    pub queries: usize,
    /// Keys that the first of them sees.
    pub first_seen: usize,
    /// Keys of the sequence.
    pub keys: usize,
    /// Numbers from one row of scores to the next: at least [`BEYOND`] more than `keys`.
    pub stride: usize,
    /// Of a head.
    pub size: usize,
}

impl Causal {
    /// Keys that query `i` sees.
    fn seen(&self, i: usize) -> usize {
        self.first_seen + i
    }

    /// The first query that sees key `j`.
    fn first_query(&self, j: usize) -> usize {
        (j + 1).saturating_sub(self.first_seen)
    }

    /// `scores [queries, stride] = x [queries, size] · y`, where `y [size, keys]` is in panels. Written is what somebody sees.
    pub fn compare(&self, found: Isa, x: Strided<'_>, y: &[f32], scores: &mut [f32], scratch: &mut Vec<f32>) {
        let all = self.seen(self.queries - 1);
        // Keys that all queries see go together; of the rest each panel has its first query.
        let together = self.first_seen / PANEL * PANEL;
        let mut from = 0;
        while from < all {
            let to = if from < together { together } else { (from + PANEL).min(all) };
            let row = self.first_query(from);
            let part = Strided { data: &x.data[row * x.row_stride..], ..x };
            let (panels, out) = (&y[from * self.size..], &mut scores[row * self.stride + from..]);
            let (rows, size) = (self.queries - row, self.size);
            matmul_serial(found, part, rows, size, panels, size, 0, to - from, false, out, self.stride, scratch);
            from = to;
        }
    }

    /// `out [queries, size] = weights [queries, stride] · y`, where `y [keys, size]` is in panels.
    pub fn weigh(&self, found: Isa, weights: &[f32], y: &[f32], out: &mut [f32], scratch: &mut Vec<f32>) {
        let size = self.size;
        for from in (0..self.queries).step_by(TOGETHER) {
            let rows = TOGETHER.min(self.queries - from);
            let left = Strided { data: &weights[from * self.stride..], row_stride: self.stride, column_stride: 1 };
            let (seen, out) = (self.seen(from + rows - 1), &mut out[from * size..]);
            matmul_serial(found, left, rows, seen, y, self.keys, 0, size, false, out, size, scratch);
        }
    }

    /// `out [keys, size] += weightsᵀ · x`, where `x [queries, size]` is in panels.
    pub fn spread(&self, found: Isa, weights: &[f32], x: &[f32], out: &mut [f32], scratch: &mut Vec<f32>) {
        let size = self.size;
        let all = self.seen(self.queries - 1);
        let mut from = 0;
        while from < all {
            let to = if from < self.first_seen { self.first_seen } else { (from + TOGETHER).min(all) };
            let query = self.first_query(from);
            let data = &weights[query * self.stride + from..];
            let left = Strided { data, row_stride: 1, column_stride: self.stride };
            let (count, out) = (self.queries - query, &mut out[from * size..]);
            matmul_serial(found, left, to - from, count, x, self.queries, query, size, true, out, size, scratch);
            from = to;
        }
    }
}

multiversion! {
    /// Each row of scores becomes one of probabilities, zero past what its query sees, as far as [`Causal::weigh`] and
    /// [`Causal::spread`] read.
    pub fn softmax(scores: &mut [f32], causal: Causal, scale: f32) => softmax_body
}

#[inline(always)]
fn softmax_body(scores: &mut [f32], causal: Causal, scale: f32) {
    for (i, row) in scores.chunks_exact_mut(causal.stride).take(causal.queries).enumerate() {
        let (visible, rest) = row.split_at_mut(causal.seen(i));
        // The largest product with `scale`, which is positive, is the product of the largest.
        let largest = lanes::max(visible) * scale;
        let inverse = 1.0 / lanes::map_sum(visible, |s| math::exp_of_negative(s * scale - largest));
        for s in visible.iter_mut() {
            *s *= inverse;
        }
        rest[..BEYOND].fill(0.0);
    }
}

multiversion! {
    /// The gradient of the scores from that of the probabilities, zero where these are.
    pub fn softmax_backward(probabilities: &[f32], grad: &mut [f32], causal: Causal, scale: f32) => softmax_backward_body
}

#[inline(always)]
fn softmax_backward_body(probabilities: &[f32], grad: &mut [f32], causal: Causal, scale: f32) {
    let stride = causal.stride;
    let rows = probabilities.chunks_exact(stride).zip(grad.chunks_exact_mut(stride)).take(causal.queries);
    for (i, (p, g)) in rows.enumerate() {
        let (visible, rest) = g.split_at_mut(causal.seen(i));
        let p = &p[..visible.len()];
        let along = lanes::dot(p, visible);
        for (g, p) in visible.iter_mut().zip(p) {
            *g = p * (*g - along) * scale;
        }
        rest[..BEYOND].fill(0.0);
    }
}
