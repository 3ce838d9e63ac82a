//! `g·Wᵀ`, with the panels of the forward pass.
//!
//! What the forward pass reads as rows are columns here. So the rows of `g` lie across the lanes, and each number of the weight is
//! multiplied with all of them ([`super::row_lanes`]): memory is read in the order of the forward pass, and the order of the sums
//! is the same as with a second, transposed copy of the weight. A few rows would leave lanes empty; with AVX-512 they are multiplied
//! as [`super::few_rows`] does.

use std::ops::Range;

use super::aligned::Aligned;
#[cfg(target_arch = "x86_64")]
use super::few_rows;
use super::matmul::Job;
use super::panels::{CELL, PANEL, Packed};
use super::row_lanes::{MOST_LANES, add, lanes};
use super::tile::Ahead;
use super::transpose::transpose;

/// Most rows that pass by a cell while it lies in the nearest cache.
const ROWS: usize = 4 * MOST_LANES;
/// Bytes of sums that wait: less than the second cache of a core.
const SUMS: usize = 384 << 10;
/// Strips whose cells are fetched ahead of use.
pub const LEAD: usize = 2;

/// # Safety
/// The sizes of `job` are those of `b` and of what it points to.
pub unsafe fn product(job: &Job<'_>, b: &Packed) {
    #[cfg(target_arch = "x86_64")]
    if few_rows::applies(job.found, job.m) {
        job.share(|strips, scratch| {
            // SAFETY: the caller's sizes; other strips are other columns of the result.
            unsafe { few_rows::product(job, strips, b, scratch) };
        });
        return;
    }
    job.share(|strips, scratch| {
        for first in (0..job.m).step_by(ROWS) {
            // SAFETY: as above.
            unsafe { some_rows(job, first..(first + ROWS).min(job.m), strips.clone(), b, scratch) };
        }
    });
}

/// Buffers that one thread keeps between rows.
#[derive(Default)]
struct Scratch {
    /// Rows by columns, for one panel.
    rows: Aligned<f32>,
    /// Sums that wait: for each row of the strips' cells one of each row, by blocks of rows.
    sums: Aligned<f32>,
    /// Sums of a block of rows by rows.
    out: Aligned<f32>,
}

/// Memory is read in long runs, because the cells of neighbouring strips lie side by side.
///
/// # Safety
/// As [`product`]; nobody else writes the columns of `strips`.
unsafe fn some_rows(job: &Job<'_>, rows: Range<usize>, strips: Range<usize>, b: &Packed, scratch: &mut Scratch) {
    let Job { found, a, inner, .. } = *job;
    let blocks = || rows.clone().step_by(MOST_LANES).map(|first| first..(first + MOST_LANES).min(rows.end));
    let size = PANEL * blocks().map(|block| lanes(block.len())).sum::<usize>();
    let together = (SUMS / (size * size_of::<f32>())).clamp(1, strips.len().max(1));
    let turned = scratch.rows.grow(size);
    let out = scratch.out.grow(size.min(PANEL * MOST_LANES));
    let sums = scratch.sums.grow(together * size);
    let mut unpacked = [0.0; CELL];
    for first in strips.clone().step_by(together) {
        let strips = first..(first + together).min(strips.end);
        for p in 0..inner.div_ceil(PANEL) {
            let stretch = p * PANEL..((p + 1) * PANEL).min(inner);
            let mut rest = &mut *turned;
            for block in blocks() {
                let part;
                (part, rest) = rest.split_at_mut(PANEL * lanes(block.len()));
                let from = &a[block.start * inner + stretch.start..];
                transpose(found, from, inner, block.len(), stretch.len(), part, lanes(block.len()));
            }
            for (strip, sums) in strips.clone().zip(sums.chunks_exact_mut(size)) {
                let next = strip + LEAD;
                let place = if next < strips.end { b.place(p, next) } else { b.place(p + 1, next - strips.len()) };
                let cell = b.whole_cell(found, p, strip, &mut unpacked);
                let (mut ahead, mut at) = (place, 0);
                for block in blocks() {
                    let lanes = lanes(block.len());
                    let g = &turned[at..][..stretch.len() * lanes];
                    add(found, lanes, g, cell, ahead, &mut sums[at..][..PANEL * lanes], p == 0);
                    at += PANEL * lanes;
                    ahead = Ahead::nothing(cell);
                }
            }
        }
        for (strip, sums) in strips.zip(sums.chunks_exact(size)) {
            let mut at = 0;
            for block in blocks() {
                let lanes = lanes(block.len());
                transpose(found, &sums[at..], lanes, PANEL, lanes, out, PANEL);
                // SAFETY: the caller's.
                unsafe { job.target(block.start, strip).store(&mut out.as_chunks_mut().0[..block.len()]) };
                at += PANEL * lanes;
            }
        }
    }
}
