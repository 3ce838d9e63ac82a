//! `x·W`: rows times panels, which are read where they lie, strictly forwards; quantised ones are unpacked on the way.

use std::ops::Range;

use super::aligned::Aligned;
#[cfg(target_arch = "x86_64")]
use super::few_rows;
use super::matmul::Job;
use super::panels::{CELL, PANEL, Packed, Panels};
#[cfg(target_arch = "x86_64")]
use super::quantised::{Quantised, few};
use super::rows::Rows;
use super::tile::Element;

/// Up to this many rows each cell is unpacked and used at once, while the sums wait in a cache.
const FEW_ROWS: usize = 64;

/// # Safety
/// The sizes of `job` are those of `b` and of what it points to.
pub unsafe fn product(job: &Job<'_>, b: &Packed) {
    let rows = Rows::new(job);
    job.share(|strips, scratch: &mut Scratch| {
        // SAFETY: the caller's sizes; other strips are other columns of the result.
        unsafe {
            match b.panels() {
                Panels::F32(panels) => in_place(&rows, strips, panels.as_slice(), scratch),
                Panels::Bf16(panels) => in_place(&rows, strips, panels.as_slice(), scratch),
                Panels::F16(panels) => in_place(&rows, strips, panels.as_slice(), scratch),
                #[cfg(target_arch = "x86_64")]
                Panels::Quantised(weight) if few_rows::applies(job.found, job.m) && few::applies(weight.form()) => {
                    in_registers(&rows, strips, weight);
                }
                Panels::Quantised(_) if job.m <= FEW_ROWS => cell_by_cell(&rows, strips, b, scratch),
                Panels::Quantised(_) => panel_by_panel(&rows, strips, b, scratch),
            }
        }
    });
}

/// Buffers that one thread keeps between panels.
#[derive(Default)]
struct Scratch {
    /// Of panels that end inside.
    edge: Vec<f32>,
    /// A panel that was unpacked.
    panel: Aligned<f32>,
    /// Sums that wait, a row of [`PANEL`] each.
    sums: Aligned<f32>,
}

/// # Safety
/// As [`product`]; nobody else writes the columns of `strips`.
unsafe fn in_place<E: Element>(rows: &Rows<'_>, strips: Range<usize>, panels: &[E], scratch: &mut Scratch) {
    let inner = rows.job.inner;
    for group in rows.blocks.groups(inner) {
        for strip in strips.clone() {
            let panel = &panels[strip * inner * PANEL..][..inner * PANEL];
            // SAFETY: the panel is whole; the rest is the caller's.
            unsafe { rows.times(&group, panel.as_ptr(), strip, &mut scratch.edge) };
        }
    }
}

/// # Safety
/// As [`in_place`], for what [`few_rows::applies`] and [`few::applies`].
#[cfg(target_arch = "x86_64")]
unsafe fn in_registers(rows: &Rows<'_>, strips: Range<usize>, weight: &Quantised) {
    let Job { m, inner, .. } = *rows.job;
    let a = rows.columns(&(0..m), &(0..inner));
    let mut sums = [[0.0; PANEL]; few_rows::MOST_ROWS];
    for strip in strips {
        let sums = &mut sums[..m];
        // SAFETY: an `Isa` of this kind is only made after the CPU reported the features; the rest is the caller's.
        unsafe {
            few::forward(weight.form(), weight.panel(strip), a, sums);
            rows.job.target(0, strip).store(sums);
        }
    }
}

/// # Safety
/// As [`in_place`].
unsafe fn cell_by_cell(rows: &Rows<'_>, strips: Range<usize>, b: &Packed, scratch: &mut Scratch) {
    let Job { found, m, inner, .. } = *rows.job;
    let sums = &mut scratch.sums.grow(m * PANEL).as_chunks_mut::<PANEL>().0[..m];
    let mut unpacked = [0.0; CELL];
    for strip in strips {
        for from in (0..inner).step_by(PANEL) {
            let stretch = from..(from + PANEL).min(inner);
            let cell = b.cell(found, strip, from / PANEL, &mut unpacked).as_ptr();
            let ahead = b.place(strip, from / PANEL + 2);
            // SAFETY: the cell has a row for each of the stretch.
            unsafe { rows.add(stretch, cell, ahead, sums) };
        }
        // SAFETY: the caller's.
        unsafe { rows.job.target(0, strip).store(sums) };
    }
}

/// # Safety
/// As [`in_place`].
unsafe fn panel_by_panel(rows: &Rows<'_>, strips: Range<usize>, b: &Packed, scratch: &mut Scratch) {
    let Job { found, inner, .. } = *rows.job;
    let panel = scratch.panel.grow(inner.div_ceil(PANEL) * CELL);
    for strip in strips {
        for (part, to) in panel.as_chunks_mut::<CELL>().0.iter_mut().enumerate() {
            b.cell(found, strip, part, to);
        }
        for group in rows.blocks.groups(inner) {
            // SAFETY: the panel is whole; the rest is the caller's.
            unsafe { rows.times(&group, panel.as_ptr(), strip, &mut scratch.edge) };
        }
    }
}
