//! A frozen weight as pairs of bfloat16 numbers, packed once for both passes.

use rayon::prelude::*;

use super::super::aligned::Aligned;
use super::super::matmul::{Direction, Factor, Job};
use super::super::panels::{PANEL, pack_panel};
use super::super::tile::Ahead;
use super::{dot, product};

/// A right-hand side `[k, n]` in panels of [`PANEL`] columns. A panel holds a row of `PANEL` words for each pair of rows of the
/// weight: the forward pass reads them where they lie. Columns past `n` are zero, and so is a row that completes a pair.
#[derive(Debug)]
pub struct Pairs {
    k: usize,
    n: usize,
    panels: Aligned<u32>,
    /// Multiplied by the processor's instruction.
    instruction: bool,
}

impl Pairs {
    /// Packs `b [k, n]`, element `(i, j)` at `i·row_stride + j·column_stride`, rounded as [`dot::rounded`] does.
    pub fn new(b: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize) -> Self {
        let size = k.div_ceil(2) * PANEL;
        let mut panels = Aligned::zeroed(n.div_ceil(PANEL) * size);
        panels.as_mut_slice().par_chunks_mut(size.max(1)).enumerate().for_each_init(
            || vec![0.0f32; k.next_multiple_of(2) * PANEL],
            |wide, (p, panel)| {
                pack_panel(b, k, n, row_stride, column_stride, p, &mut wide[..k * PANEL]);
                for (words, rows) in panel.chunks_exact_mut(PANEL).zip(wide.chunks_exact(2 * PANEL)) {
                    let (first, second) = rows.split_at(PANEL);
                    for (j, word) in words.iter_mut().enumerate() {
                        *word = dot::pair(first[j], second[j]);
                    }
                }
            },
        );
        Self { k, n, panels, instruction: dot::has_instruction() }
    }

    /// The same weight, multiplied in plain code.
    #[cfg(test)]
    pub fn in_plain_code(self) -> Self {
        Self { instruction: false, ..self }
    }

    /// Whether the instruction multiplies it.
    pub fn by_instruction(&self) -> bool {
        self.instruction
    }

    /// Rows of words of a panel.
    pub fn rows(&self) -> usize {
        self.k.div_ceil(2)
    }

    /// Panel `p`.
    pub fn panel(&self, p: usize) -> &[u32] {
        &self.panels.as_slice()[p * self.rows() * PANEL..][..self.rows() * PANEL]
    }

    /// The words of up to [`PANEL`] rows of the weight, from `PANEL·strip` on, in panel `p`.
    pub fn cell(&self, p: usize, strip: usize) -> &[u32] {
        let end = ((strip + 1) * PANEL / 2).min(self.rows());
        &self.panel(p)[strip * PANEL / 2 * PANEL..end * PANEL]
    }

    /// The memory of [`Pairs::cell`], to fetch it ahead of use; any place will do.
    pub fn place(&self, p: usize, strip: usize) -> Ahead {
        let first = (p * self.rows() + strip * PANEL / 2) * PANEL;
        Ahead::at(self.panels.as_slice().as_ptr().wrapping_add(first))
    }
}

impl Factor for Pairs {
    fn sizes(&self, direction: Direction) -> (usize, usize) {
        match direction {
            Direction::Forward => (self.k, self.n),
            Direction::Backward => (self.n, self.k),
        }
    }

    unsafe fn multiply(&self, job: &Job<'_>, direction: Direction) {
        // SAFETY: the caller's.
        unsafe { product::product(job, self, direction) }
    }
}
