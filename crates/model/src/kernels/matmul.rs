//! Products with a frozen weight that is packed once: `x·W` of the forward pass and `g·Wᵀ` of the backward pass.
//!
//! Both read the same numbers: those of [`super::panels`] in [`super::forward`] and [`super::backward`], where an element of the
//! result is one chain of fused multiply-adds in ascending order of the inner index, from zero on; or pairs of bfloat16, whose
//! chains [`super::bf16`] defines. A bias and what the result is added to come after the sum.

use std::ops::Range;

use rayon::prelude::*;

use super::dispatch::{Isa, isa};
use super::panels::PANEL;
use super::tile::Target;

/// Products below this many multiply-adds are done by one thread.
const PARALLEL_FROM: usize = 1 << 18;

/// Which way a weight `W [k, n]` is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `x·W`
    Forward,
    /// `g·Wᵀ`
    Backward,
}

/// A frozen weight `W [k, n]`, packed once.
pub trait Factor: Sync {
    /// Numbers that a product in `direction` sums over, and numbers of a row of its result.
    fn sizes(&self, direction: Direction) -> (usize, usize);

    /// The product of `job`'s rows.
    ///
    /// # Safety
    /// The sizes of `job` are those in `direction` and of what it points to.
    unsafe fn multiply(&self, job: &Job<'_>, direction: Direction);
}

/// What is added to the product before it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One value per column.
    pub bias: Option<&'a [f32]>,
    /// Add to what `c` holds instead of replacing it.
    pub accumulate: bool,
}

/// `c = a · b (+ bias) (+ c)` with `m` rows, dense and row-major, on all threads of the pool; `b` may be turned over.
pub fn matmul(a: &[f32], m: usize, b: &impl Factor, direction: Direction, epilogue: Epilogue<'_>, c: &mut [f32]) {
    matmul_with(isa(), a, m, b, direction, epilogue, c);
}

/// `a · b (+ bias)` with `m` rows. The result's memory is not cleared first, which one thread would have to do.
pub fn matmul_new(a: &[f32], m: usize, b: &impl Factor, direction: Direction, bias: Option<&[f32]>) -> Vec<f32> {
    let (_, outer) = b.sizes(direction);
    let mut c = Vec::with_capacity(m * outer);
    let epilogue = Epilogue { bias, accumulate: false };
    // SAFETY: the capacity is as large as the result, every element of which the product writes and none of which it
    // reads.
    unsafe {
        product(isa(), a, m, b, direction, epilogue, Shared(c.as_mut_ptr()));
        c.set_len(m * outer);
    }
    c
}

/// [`matmul`] with a chosen instruction set.
pub fn matmul_with(
    found: Isa,
    a: &[f32],
    m: usize,
    b: &impl Factor,
    direction: Direction,
    epilogue: Epilogue<'_>,
    c: &mut [f32],
) {
    let (_, outer) = b.sizes(direction);
    assert_eq!(c.len(), m * outer, "result is not [{m}, {outer}]");
    // SAFETY: `c` is as large as the result.
    unsafe { product(found, a, m, b, direction, epilogue, Shared(c.as_mut_ptr())) };
}

/// # Safety
/// `c` is valid for as many floats as the result has, and nobody else uses them. They are read only to accumulate.
unsafe fn product(
    found: Isa,
    a: &[f32],
    m: usize,
    b: &impl Factor,
    direction: Direction,
    epilogue: Epilogue<'_>,
    c: Shared,
) {
    let (inner, outer) = b.sizes(direction);
    assert_eq!(a.len(), m * inner, "left-hand side is not [{m}, {inner}]");
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), outer, "bias is not [{outer}]");
    }
    if m == 0 || outer == 0 {
        return;
    }
    let threads = if m * outer * inner >= PARALLEL_FROM { rayon::current_num_threads() } else { 1 };
    let job = Job { found, a, m, inner, outer, epilogue, c, threads };
    // SAFETY: the sizes were checked.
    unsafe { b.multiply(&job, direction) }
}

/// A product: its left-hand side, and where the result goes.
pub struct Job<'a> {
    /// Instruction set.
    pub found: Isa,
    /// `[m, inner]`
    pub a: &'a [f32],
    /// Rows.
    pub m: usize,
    /// Numbers that are summed over.
    pub inner: usize,
    /// Numbers of a row of the result.
    pub outer: usize,
    /// What is added.
    pub epilogue: Epilogue<'a>,
    /// `[m, outer]`
    c: Shared,
    /// How many share the work.
    pub threads: usize,
}

impl Job<'_> {
    /// Calls `work` for each thread's strips: runs of [`PANEL`] columns of the result.
    pub fn share<S: Default>(&self, work: impl Fn(Range<usize>, &mut S) + Sync) {
        let count = self.outer.div_ceil(PANEL);
        if self.threads == 1 {
            work(0..count, &mut S::default());
            return;
        }
        // One contiguous run of strips per thread, so that each thread streams through memory.
        let tasks = self.threads.min(count);
        (0..tasks).into_par_iter().for_each_init(S::default, |scratch, t| {
            work(count * t / tasks..count * (t + 1) / tasks, scratch);
        });
    }

    /// Where strip `strip` of the rows from `row` on goes.
    pub fn target(&self, row: usize, strip: usize) -> Target {
        let first = strip * PANEL;
        Target {
            c: self.c.0.wrapping_add(row * self.outer + first),
            ldc: self.outer,
            width: PANEL.min(self.outer - first),
            bias: self.epilogue.bias.map(|bias| bias[first..].as_ptr()),
            accumulate: self.epilogue.accumulate,
        }
    }
}

/// A pointer that the tasks of one product share; each writes its own columns.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: tasks write disjoint columns, and the product waits for all of them.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

#[cfg(test)]
#[path = "matmul_oracle.rs"]
mod oracle;
