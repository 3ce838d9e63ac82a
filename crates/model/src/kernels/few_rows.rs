//! `g·Wᵀ` of a few rows with AVX-512: a product that waits for memory, so that turning weights over within the registers costs nothing.
//!
//! A register holds 16 numbers of a row of the result. Plain cells are turned over by [`super::turned`], some kinds of blocks by
//! [`super::quantised::few`] while they are unpacked.

use std::ops::Range;

use super::aligned::Aligned;
use super::backward::LEAD;
use super::dispatch::Isa;
use super::matmul::Job;
use super::panels::{CELL, PANEL, Packed, Panels};
use super::quantised::few;
use super::tile::{Ahead, Tile};
use super::transpose::transpose;
use super::turned;

/// Rows whose sums leave enough registers.
pub const MOST_ROWS: usize = 8;

/// Up to this many rows, plain cells are copied line by line before they are turned over: it reads them across the lines, and so few
/// rows leave memory no time to come.
const COPIED: usize = 2;

/// Whether a product of `rows` rows is one of these.
pub fn applies(found: Isa, rows: usize) -> bool {
    found == Isa::Avx512 && rows <= MOST_ROWS
}

/// Buffers that one thread keeps between panels.
#[derive(Default)]
pub struct Scratch {
    /// Rows by columns, for one panel.
    rows: Aligned<f32>,
    /// Sums that wait: a row of [`PANEL`] for each row of each strip.
    sums: Aligned<f32>,
}

/// Memory is read in long runs, because the cells of neighbouring strips lie side by side.
///
/// # Safety
/// The sizes of `job` are those of `b` and of what it points to; this [`applies`]; nobody else writes the columns of `strips`.
pub unsafe fn product(job: &Job<'_>, strips: Range<usize>, b: &Packed, scratch: &mut Scratch) {
    let Job { found, a, m, inner, .. } = *job;
    let by_columns = scratch.rows.grow(PANEL * m);
    let sums = &mut scratch.sums.grow(strips.len() * m * PANEL).as_chunks_mut::<PANEL>().0[..strips.len() * m];
    let mut cells = Cells { unpacked: [0.0; CELL], over: [0.0; CELL] };
    for p in 0..inner.div_ceil(PANEL) {
        let stretch = p * PANEL..((p + 1) * PANEL).min(inner);
        transpose(found, &a[stretch.start..], inner, m, stretch.len(), by_columns, m);
        let g = &by_columns[..stretch.len() * m];
        for (strip, sums) in strips.clone().zip(sums.chunks_exact_mut(m)) {
            let next = strip + LEAD;
            let ahead = if next < strips.end { b.place(p, next) } else { b.place(p + 1, next - strips.len()) };
            match b.panels() {
                Panels::Quantised(weight) if few::applies(weight.form()) => {
                    // SAFETY: an `Isa` of this kind is only made after the CPU reported the features.
                    unsafe { few::backward(weight.form(), weight.record_of(p, strip), g, ahead, sums, p == 0) };
                }
                // SAFETY: as above.
                _ => unsafe { cells.add(job, b, (p, strip), g, ahead, sums) },
            }
        }
    }
    for (strip, sums) in strips.zip(sums.chunks_exact_mut(m)) {
        if let Panels::Quantised(weight) = b.panels() {
            few::in_order(weight.form(), sums);
        }
        // SAFETY: the caller's.
        unsafe { job.target(0, strip).store(sums) };
    }
}

/// Where cells lie that cannot be used as they are.
struct Cells {
    unpacked: [f32; CELL],
    over: [f32; CELL],
}

impl Cells {
    /// The chains of a cell's sums go on.
    ///
    /// # Safety
    /// The CPU has AVX-512F.
    unsafe fn add(
        &mut self,
        job: &Job<'_>,
        b: &Packed,
        (p, strip): (usize, usize),
        g: &[f32],
        ahead: Ahead,
        sums: &mut [[f32; PANEL]],
    ) {
        let (rows, fresh) = (sums.len(), p == 0);
        let mut cell = b.whole_cell(job.found, p, strip, &mut self.unpacked);
        if g.len() == PANEL * rows {
            if rows <= COPIED && matches!(b.panels(), Panels::F32(_)) {
                self.over = *cell;
                cell = &self.over;
            }
            // SAFETY: the caller's.
            unsafe { turned::add(g, cell, ahead, sums, fresh) };
            return;
        }
        // The last panel ends inside.
        transpose(job.found, cell, PANEL, PANEL, PANEL, &mut self.over, PANEL);
        let tile = Tile { rows, k: g.len() / rows, a: g.as_ptr(), b: self.over.as_ptr(), ahead };
        // SAFETY: `g` has `k` columns of `rows`, no more than the cell.
        unsafe { tile.add(job.found, sums.as_mut_ptr(), fresh) };
    }
}
