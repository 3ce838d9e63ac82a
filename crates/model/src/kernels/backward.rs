//! `g·Wᵀ`, with the panels of the forward pass.
//!
//! What the forward pass reads as rows are columns here: a cell of 32×32 numbers is turned over into a small buffer
//! ([`super::transpose`]), or within the registers ([`super::turned`]), and then multiplied as in the forward pass. The order of the sums
//! is the same as with a second, transposed copy of the weight.

use std::ops::Range;

use super::aligned::Aligned;
use super::matmul::Job;
use super::panels::{PANEL, Packed};
use super::rows::Rows;
use super::transpose::{CELL, transpose};
#[cfg(target_arch = "x86_64")]
use super::{dispatch::Isa, turned};

/// Up to this many rows each cell is turned over and used at once, while the sums wait in a cache.
const FEW_ROWS: usize = 64;
/// Bytes of sums that wait.
const SUMS: usize = 64 << 10;
/// Strips whose cells are fetched ahead of use.
const LEAD: usize = 2;
/// Bytes of cells that lie turned over while many rows pass by.
const TURNED: usize = 1 << 20;

/// # Safety
/// The sizes of `job` are those of `b` and of what it points to.
pub unsafe fn product(job: &Job<'_>, b: &Packed) {
    let rows = Rows::new(job);
    job.share(|strips, scratch| {
        // SAFETY: the caller's sizes; other strips are other columns of the result.
        unsafe {
            if job.m <= FEW_ROWS {
                cell_by_cell(&rows, strips, b, scratch);
            } else {
                strip_by_strip(&rows, strips, b, scratch);
            }
        }
    });
}

/// Buffers that one thread keeps between strips.
#[derive(Default)]
struct Scratch {
    /// Cells that were turned over.
    turned: Aligned<f32>,
    /// Sums that wait: a row of [`PANEL`] for each row of each strip.
    sums: Aligned<f32>,
    /// Of strips that end inside a panel.
    edge: Vec<f32>,
}

/// Few rows: a product waits for memory, which is read in long runs because the cells of neighbouring strips lie side by side.
///
/// # Safety
/// As [`product`]; nobody else writes the columns of `strips`.
unsafe fn cell_by_cell(rows: &Rows<'_>, strips: Range<usize>, b: &Packed, scratch: &mut Scratch) {
    let Job { m, inner, .. } = *rows.job;
    let together = (SUMS / (m * PANEL * size_of::<f32>())).clamp(1, strips.len());
    let sums = scratch.sums.grow(together * m * PANEL).as_chunks_mut::<PANEL>().0;
    let (mut unpacked, mut turned) = ([0.0; CELL], [0.0; CELL]);
    for first in strips.clone().step_by(together) {
        let strips = first..(first + together).min(strips.end);
        for p in 0..inner.div_ceil(PANEL) {
            let stretch = p * PANEL..((p + 1) * PANEL).min(inner);
            for (strip, sums) in strips.clone().zip(sums.chunks_exact_mut(m)) {
                let next = strip + LEAD;
                let ahead = if next < strips.end { b.place(p, next) } else { b.place(p + 1, next - strips.len()) };
                let cell = b.cell(rows.job.found, p, strip, &mut unpacked);
                #[cfg(target_arch = "x86_64")]
                if rows.job.found == Isa::Avx512
                    && m <= turned::MOST_ROWS
                    && stretch.len() == PANEL
                    && let Ok(cell) = cell.try_into()
                {
                    let a = rows.columns(&(0..m), &stretch);
                    // SAFETY: an `Isa` of this kind is only made after the CPU reported the feature.
                    unsafe { turned::add(m, a, cell, ahead, sums, p == 0) };
                    continue;
                }
                transpose(rows.job.found, cell, &mut turned);
                // SAFETY: a cell has as many rows as a stretch at most.
                unsafe { rows.add(stretch.clone(), turned.as_ptr(), ahead, sums) };
            }
        }
        for (strip, sums) in strips.zip(sums.chunks_exact_mut(m)) {
            // SAFETY: the caller's.
            unsafe { rows.job.target(0, strip).store(sums) };
        }
    }
}

/// Many rows: some strips are turned over, and all rows pass by them.
///
/// # Safety
/// As [`cell_by_cell`].
unsafe fn strip_by_strip(rows: &Rows<'_>, strips: Range<usize>, b: &Packed, scratch: &mut Scratch) {
    let Job { found, inner, .. } = *rows.job;
    let size = inner.div_ceil(PANEL) * CELL;
    let together = (TURNED / (size * size_of::<f32>())).clamp(1, strips.len());
    let mut unpacked = [0.0; CELL];
    let Scratch { turned, edge, .. } = scratch;
    let turned = turned.grow(together * size);
    for first in strips.clone().step_by(together) {
        let strips = first..(first + together).min(strips.end);
        for (strip, panel) in strips.clone().zip(turned.chunks_exact_mut(size)) {
            for (p, cell) in panel.as_chunks_mut().0.iter_mut().enumerate() {
                transpose(found, b.cell(found, p, strip, &mut unpacked), cell);
            }
        }
        for group in rows.blocks.groups(inner) {
            for (strip, panel) in strips.clone().zip(turned.chunks_exact(size)) {
                // SAFETY: the panel is whole; the rest is the caller's.
                unsafe { rows.times(&group, panel.as_ptr(), strip, edge) };
            }
        }
    }
}
