//! The left-hand side of a product, ready to be multiplied with panels one after another.
//!
//! With AVX2 [`super::avx2`] multiplies rows with a panel; otherwise the rows are copied into blocks of a few, stored by
//! column ([`super::blocks`]), and [`super::tile`] multiplies one block with one panel.
//!
//! The scheme follows BLIS (Van Zee and van de Geijn, 2015).

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::blocks::{Blocks, pack, reads_rows_in_place};
#[cfg(target_arch = "x86_64")]
use super::dispatch::Isa;
use super::matmul::Job;
use super::panels::PANEL;
use super::tile::{Ahead, Element, Tile};

/// More rows than these are copied by all threads.
const COPIED_ALONE: usize = 64;

/// The rows of a product.
pub struct Rows<'a> {
    /// The product.
    pub job: &'a Job<'a>,
    /// Its rows, cut.
    pub blocks: Blocks,
    /// The blocks by columns, where the instruction set wants them so.
    packed_a: Vec<f32>,
}

impl<'a> Rows<'a> {
    /// Those of `job`.
    pub fn new(job: &'a Job<'a>) -> Self {
        let blocks = Blocks::new(job.found, job.m);
        let parallel = job.threads > 1 && job.m > COPIED_ALONE;
        let in_place = reads_rows_in_place(job.found);
        let packed_a = if in_place { Vec::new() } else { pack(job.a, job.inner, &blocks, parallel) };
        Self { job, blocks, packed_a }
    }

    /// A group of blocks times a whole panel, stored; `edge` is for panels that end inside.
    ///
    /// # Safety
    /// `panel` holds `inner·PANEL` numbers; nobody else writes its columns of the result.
    pub unsafe fn times<E: Element>(&self, group: &Range<usize>, panel: *const E, strip: usize, edge: &mut Vec<f32>) {
        let Job { found, a, inner: k, .. } = *self.job;
        #[cfg(target_arch = "x86_64")]
        if found == Isa::Avx2 {
            let rows = self.blocks.range(group.start).start..self.blocks.range(group.end - 1).end;
            let left = avx2::Left { data: a[rows.start * k..].as_ptr(), row: k, column: 1 };
            // SAFETY: `a` holds as many rows; the rest is the caller's.
            unsafe { avx2::product(rows.len(), k, left, panel, self.job.target(rows.start, strip), edge) };
            return;
        }
        let _ = (a, edge);
        for block in group.clone() {
            let rows = self.blocks.range(block);
            let a = self.packed_a[rows.start * k..rows.end * k].as_ptr();
            let tile = Tile { rows: rows.len(), k, a, b: panel, ahead: Ahead::of(panel) };
            // SAFETY: `a` holds the block; the rest is the caller's.
            unsafe { tile.run(found, self.job.target(rows.start, strip)) };
        }
    }

    /// The chains of all rows' sums go on with the inner indices `stretch`; `ahead` is fetched meanwhile.
    ///
    /// # Safety
    /// `panel` holds a row of [`PANEL`] numbers for each of `stretch`.
    pub unsafe fn add(&self, stretch: Range<usize>, panel: *const f32, ahead: Ahead, sums: &mut [[f32; PANEL]]) {
        let Job { found, a, m, inner, .. } = *self.job;
        let (k, fresh) = (stretch.len(), stretch.start == 0);
        #[cfg(target_arch = "x86_64")]
        if found == Isa::Avx2 {
            let left = avx2::Left { data: a[stretch.start..].as_ptr(), row: inner, column: 1 };
            // SAFETY: there are sums of all rows; the rest is the caller's.
            unsafe { avx2::add(m, k, left, panel, ahead, sums[..m].as_mut_ptr(), fresh) };
            return;
        }
        let _ = (a, m);
        for block in 0..self.blocks.count {
            let rows = self.blocks.range(block);
            let a = self.columns(&rows, &stretch).as_ptr();
            let sums = sums[rows.clone()].as_mut_ptr();
            let ahead = if block == 0 { ahead } else { Ahead::nothing(panel) };
            // SAFETY: the caller's.
            unsafe { Tile { rows: rows.len(), k, a, b: panel, ahead }.add(found, sums, fresh) };
        }
    }

    /// A block's numbers of the inner indices `stretch`, by columns. Not with AVX2.
    pub fn columns(&self, rows: &Range<usize>, stretch: &Range<usize>) -> &[f32] {
        &self.packed_a[rows.start * self.job.inner + stretch.start * rows.len()..][..stretch.len() * rows.len()]
    }
}
