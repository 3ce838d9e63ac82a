//! Causal multi-head attention over sequences laid one after another, forward and backward, with as many heads of keys
//! and values as of queries or fewer (grouped-query attention: Ainslie et al., 2023).
//!
//! Shapes: `q, out: [rows, heads·head_size]`, `k, v: [rows, kv_heads·head_size]`, head `h` in columns `h·head_size..`.
//! A sequence's rows are a [`Span`]; nothing is padded, so nothing needs a mask. Each (sequence, head) pair is one task
//! and is computed whole by one thread; backward, where the gradients of a group's queries meet in one key head, the
//! task is the group. Products run over blocks of queries and the keys that those may see: [`super::causal`].
//!
//! Backward recomputes the probabilities instead of storing them (Dao et al., FlashAttention, 2022).

use rayon::prelude::*;

use super::causal::{BEYOND, Causal, softmax, softmax_backward};
use super::dispatch::Isa;
use super::lanes::LANES;
use super::panels::{PANEL, pack_panel};
use super::serial::Strided;

/// Queries of one block.
const QUERIES: usize = 84;

/// One sequence: rows `keys_from .. keys_from+length` of `k` and `v`, and as many last positions as it has queries:
/// rows `queries_from .. queries_from+queries` of `q` and `out`. `queries == length`, except in the last block,
/// where only the read positions matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row of keys and values.
    pub keys_from: usize,
    /// Rows of keys and values.
    pub length: usize,
    /// First row of queries.
    pub queries_from: usize,
    /// Rows of queries: all of them, or the last alone.
    pub queries: usize,
}

/// How the columns are divided and how scores are scaled.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_size: usize,
    /// Factor on the scores.
    pub scale: f32,
}

impl Heads {
    /// Columns of queries.
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Columns of keys and of values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_size
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// `out = softmax(q·kᵀ·scale, causal)·v` per sequence and head.
pub fn forward(found: Isa, q: &[f32], k: &[f32], v: &[f32], spans: &[Span], heads: Heads, out: &mut [f32]) {
    let out = Columns::new(out, heads.width(), heads.head_size);
    tasks(spans, heads.heads).into_par_iter().for_each_init(Scratch::default, |scratch, (span, head)| {
        let part = HeadView { span, head, heads };
        if span.length == 1 {
            // Softmax over one key is 1: the result is the value itself.
            let row = part.kv_rows(v, span.keys_from, 1).data;
            // SAFETY: this task alone writes this sequence's rows of this head.
            let target = unsafe { out.row(span.queries_from, head) };
            target.copy_from_slice(&row[..heads.head_size]);
            return;
        }
        scratch.pack_keys(&part, k, v);
        let mut from = 0;
        while from < span.queries {
            let count = QUERIES.min(span.queries - from);
            scratch.probabilities(found, &part, q, from, count);
            let Scratch { scores, values, block, product, .. } = scratch;
            product.resize(count * heads.head_size, 0.0);
            part.causal(from, count).weigh(found, scores, values, product, block);
            for (i, row) in product.chunks_exact(heads.head_size).enumerate() {
                // SAFETY: as above.
                unsafe { out.row(span.queries_from + from + i, head) }.copy_from_slice(row);
            }
            from += count;
        }
    });
}

/// Gradients of `q`, `k` and `v` given the gradient of `out`; all three results are overwritten.
///
/// With `P` the probabilities: `dv = Pᵀ·g`, `dS = P ⊙ (g·vᵀ − rowsum(g ⊙ out))`, `dq = dS·k·scale`, `dk = dSᵀ·q·scale`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    found: Isa,
    grad_out: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    spans: &[Span],
    heads: Heads,
    grad_q: &mut [f32],
    grad_k: &mut [f32],
    grad_v: &mut [f32],
) {
    let size = heads.head_size;
    let grad_q = Columns::new(grad_q, heads.width(), size);
    let (grad_k, grad_v) = (Columns::new(grad_k, heads.kv_width(), size), Columns::new(grad_v, heads.kv_width(), size));
    tasks(spans, heads.kv_heads).into_par_iter().for_each_init(Scratch::default, |scratch, (span, kv_head)| {
        let first = HeadView { span, head: kv_head * heads.group(), heads };
        let length = span.length;
        if length == 1 {
            // SAFETY: this task alone writes this sequence's rows of these heads, here and below.
            let (grad_k, grad_v) =
                unsafe { (grad_k.row(span.keys_from, kv_head), grad_v.row(span.keys_from, kv_head)) };
            grad_k.fill(0.0);
            for (i, part) in first.group().enumerate() {
                let row = part.rows(grad_out, span.queries_from, 1).data;
                // SAFETY: as above.
                unsafe { grad_q.row(span.queries_from, part.head) }.fill(0.0);
                add_or_copy(i == 0, grad_v, row);
            }
            return;
        }
        scratch.pack_keys(&first, k, v);
        scratch.pack_for_backward(&first, k, v);
        scratch.grad_keys.clear();
        scratch.grad_keys.resize(length * size, 0.0);
        scratch.grad_values.clear();
        scratch.grad_values.resize(length * size, 0.0);
        let blocks = first.group().flat_map(|part| (0..span.queries).step_by(QUERIES).map(move |from| (part, from)));
        for (part, from) in blocks {
            let count = QUERIES.min(span.queries - from);
            scratch.probabilities(found, &part, q, from, count);
            let causal = part.causal(from, count);
            let query_rows = part.rows(q, span.queries_from + from, count);
            let grad_rows = part.rows(grad_out, span.queries_from + from, count);
            let Scratch {
                scores,
                grad_scores,
                values_transposed,
                keys,
                block,
                product,
                queries_panel,
                grad_panel,
                grad_keys,
                grad_values,
                ..
            } = scratch;
            pack_rows(query_rows, count, size, queries_panel);
            pack_rows(grad_rows, count, size, grad_panel);

            // dv += Pᵀ·g
            causal.spread(found, scores, grad_panel, grad_values, block);
            // dS from dP = g·vᵀ
            grad_scores.resize(count * causal.stride, 0.0);
            causal.compare(found, grad_rows, values_transposed, grad_scores, block);
            softmax_backward(found, scores, grad_scores, causal, heads.scale);
            // dq = dS·k
            product.resize(count * size, 0.0);
            causal.weigh(found, grad_scores, keys, product, block);
            for (i, row) in product.chunks_exact(size).enumerate() {
                // SAFETY: as above.
                unsafe { grad_q.row(span.queries_from + from + i, part.head) }.copy_from_slice(row);
            }
            // dk += dSᵀ·q
            causal.spread(found, grad_scores, queries_panel, grad_keys, block);
        }
        for i in 0..length {
            // SAFETY: as above.
            unsafe {
                grad_k.row(span.keys_from + i, kv_head).copy_from_slice(&scratch.grad_keys[i * size..][..size]);
                grad_v.row(span.keys_from + i, kv_head).copy_from_slice(&scratch.grad_values[i * size..][..size]);
            }
        }
    });
}

/// Values for each query head, `[rows, heads·head_size]`: what attention returns where every sequence has one position.
pub fn repeat_kv(v: &[f32], heads: Heads, out: &mut [f32]) {
    for (out, value) in out.chunks_exact_mut(heads.group() * heads.head_size).zip(v.chunks_exact(heads.head_size)) {
        for head in out.chunks_exact_mut(heads.head_size) {
            head.copy_from_slice(value);
        }
    }
}

/// The gradient of [`repeat_kv`]: the sum over each group of heads, in order.
pub fn repeat_kv_backward(grad: &[f32], heads: Heads, out: &mut [f32]) {
    for (out, grad) in out.chunks_exact_mut(heads.head_size).zip(grad.chunks_exact(heads.group() * heads.head_size)) {
        for (i, head) in grad.chunks_exact(heads.head_size).enumerate() {
            add_or_copy(i == 0, out, head);
        }
    }
}

/// `to ← from` for the first of several, then `to += from`.
fn add_or_copy(first: bool, to: &mut [f32], from: &[f32]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = if first { *f } else { *t + f };
    }
}

fn tasks(spans: &[Span], heads: usize) -> Vec<(Span, usize)> {
    let mut list = Vec::with_capacity(spans.len() * heads);
    for span in spans {
        for head in 0..heads {
            list.push((*span, head));
        }
    }
    list
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct HeadView {
    span: Span,
    head: usize,
    heads: Heads,
}

impl HeadView {
    /// This head and those after it that share its keys.
    fn group(self) -> impl Iterator<Item = HeadView> {
        (self.head..self.head + self.heads.group()).map(move |head| HeadView { head, ..self })
    }

    /// Rows `from..from+count` of queries or results, this head's columns.
    fn rows<'a>(&self, x: &'a [f32], from: usize, count: usize) -> Strided<'a> {
        columns(x, from, count, self.heads.width(), self.head, self.heads.head_size)
    }

    /// Rows `from..from+count` of keys or values, the columns of this head's keys.
    fn kv_rows<'a>(&self, x: &'a [f32], from: usize, count: usize) -> Strided<'a> {
        columns(x, from, count, self.heads.kv_width(), self.head / self.heads.group(), self.heads.head_size)
    }

    /// Numbers from one row of scores to the next. A cache line more than the keys: rows a power of two apart would fall on
    /// the same lines of the cache when they are read by columns, and zeros are written a little past what is seen.
    fn score_stride(&self) -> usize {
        self.span.length.next_multiple_of(LANES) + BEYOND.next_multiple_of(LANES)
    }

    /// What the queries `from..from+count` see.
    fn causal(&self, from: usize, count: usize) -> Causal {
        let first_seen = self.span.length - self.span.queries + from + 1;
        let (stride, keys) = (self.score_stride(), self.span.length);
        Causal { queries: count, first_seen, keys, stride, size: self.heads.head_size }
    }
}

fn columns(x: &[f32], from: usize, count: usize, width: usize, head: usize, size: usize) -> Strided<'_> {
    let start = from * width + head * size;
    let end = start + (count - 1) * width + size;
    Strided { data: &x[start..end], row_stride: width, column_stride: 1 }
}

/// Buffers that one thread keeps between heads.
#[derive(Default)]
struct Scratch {
    /// `kᵀ` in panels of keys: `[head_size, keys]`.
    keys_transposed: Vec<f32>,
    /// `v` in panels of columns: `[keys, head_size]`.
    values: Vec<f32>,
    /// `k` in panels of columns: `[keys, head_size]`.
    keys: Vec<f32>,
    /// `vᵀ` in panels of keys: `[head_size, keys]`.
    values_transposed: Vec<f32>,
    /// Scores, then probabilities, of a block of queries: `[queries, score_stride]`.
    scores: Vec<f32>,
    grad_scores: Vec<f32>,
    queries_panel: Vec<f32>,
    grad_panel: Vec<f32>,
    grad_keys: Vec<f32>,
    grad_values: Vec<f32>,
    product: Vec<f32>,
    block: Vec<f32>,
}

impl Scratch {
    fn pack_keys(&mut self, part: &HeadView, k: &[f32], v: &[f32]) {
        let (length, size) = (part.span.length, part.heads.head_size);
        pack_columns(part.kv_rows(k, part.span.keys_from, length), length, size, &mut self.keys_transposed);
        pack_rows(part.kv_rows(v, part.span.keys_from, length), length, size, &mut self.values);
    }

    fn pack_for_backward(&mut self, part: &HeadView, k: &[f32], v: &[f32]) {
        let (length, size) = (part.span.length, part.heads.head_size);
        pack_rows(part.kv_rows(k, part.span.keys_from, length), length, size, &mut self.keys);
        pack_columns(part.kv_rows(v, part.span.keys_from, length), length, size, &mut self.values_transposed);
    }

    /// Fills `scores [count, score_stride]` with the probabilities of queries `from..from+count`.
    fn probabilities(&mut self, found: Isa, part: &HeadView, q: &[f32], from: usize, count: usize) {
        let causal = part.causal(from, count);
        self.scores.resize(count * causal.stride, 0.0);
        let queries = part.rows(q, part.span.queries_from + from, count);
        causal.compare(found, queries, &self.keys_transposed, &mut self.scores, &mut self.block);
        softmax(found, &mut self.scores, causal, part.heads.scale);
    }
}

/// Packs `x [rows, size]` as a right-hand side with `rows` as the inner index.
fn pack_rows(x: Strided<'_>, rows: usize, size: usize, out: &mut Vec<f32>) {
    out.resize(size.div_ceil(PANEL) * rows * PANEL, 0.0);
    for (p, panel) in out.chunks_exact_mut(rows * PANEL).enumerate() {
        pack_panel(x.data, rows, size, x.row_stride, 1, p, panel);
    }
}

/// Packs `xᵀ` of `x [rows, size]`, with `size` as the inner index and `rows` as columns.
fn pack_columns(x: Strided<'_>, rows: usize, size: usize, out: &mut Vec<f32>) {
    out.resize(rows.div_ceil(PANEL) * size * PANEL, 0.0);
    for (p, panel) in out.chunks_exact_mut(size * PANEL).enumerate() {
        pack_panel(x.data, size, rows, 1, x.row_stride, p, panel);
    }
}

/// A `[rows, width]` result that tasks write head by head.
#[derive(Clone, Copy)]
struct Columns {
    data: *mut f32,
    rows: usize,
    width: usize,
    head_size: usize,
}
// SAFETY: tasks write disjoint (row, head) cells, and the caller waits for all of them.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    fn new(data: &mut [f32], width: usize, head_size: usize) -> Self {
        Self { data: data.as_mut_ptr(), rows: data.len() / width.max(1), width, head_size }
    }

    /// # Safety
    /// No other live reference to the same row and head.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, row: usize, head: usize) -> &mut [f32] {
        assert!(
            row < self.rows && (head + 1) * self.head_size <= self.width,
            "row {row} of {}, head {head}",
            self.rows
        );
        let start = row * self.width + head * self.head_size;
        // SAFETY: inside the buffer, as asserted; not aliased, by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), self.head_size) }
    }
}

#[cfg(test)]
#[path = "attention_oracle.rs"]
mod oracle;
