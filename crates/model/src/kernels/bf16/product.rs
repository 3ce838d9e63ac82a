//! Rows times panels, and rows times turned cells.

use std::ops::Range;

use super::super::aligned::Aligned;
use super::super::matmul::{Direction, Job};
use super::super::panels::PANEL;
use super::super::tile::{Ahead, MOST_ROWS};
use super::left::Left;
use super::tile::Tile;
use super::turn::{CELL, HALF, turn};
use super::weight::Pairs;

/// Cells of a stretch: so many of one strip are multiplied in one go where many rows pass by. They fit the nearest cache.
const STRETCH: usize = 8;
/// Strips that many rows pass by together, so that the rows come from a far cache that much less often.
const STRIPS: usize = 4;
/// Strips whose cells are fetched ahead of use where few rows pass by.
const LEAD: usize = 2;

/// # Safety
/// The sizes of `job` are those of `b` in `direction` and of what it points to.
pub unsafe fn product(job: &Job<'_>, b: &Pairs, direction: Direction) {
    let left = Left::new(job);
    let product = Product { job, left: &left, b, panels: job.inner.div_ceil(PANEL), pairs: job.inner.div_ceil(2) };
    job.share(|strips, scratch: &mut Scratch| {
        // SAFETY: the caller's sizes; other strips are other columns of the result.
        unsafe {
            match direction {
                _ if job.m > MOST_ROWS => product.of_many(direction, strips, scratch),
                Direction::Forward => product.forward_of_few(strips, scratch),
                Direction::Backward => product.backward_of_few(strips, scratch),
            }
        }
    });
}

/// Buffers that one thread keeps between strips.
#[derive(Default)]
struct Scratch {
    /// Sums that wait, a row of [`PANEL`] each.
    sums: Aligned<f32>,
    /// Cells that were turned over.
    turned: Aligned<u32>,
}

struct Product<'a> {
    job: &'a Job<'a>,
    left: &'a Left,
    b: &'a Pairs,
    /// Cells that a strip's sums go over.
    panels: usize,
    /// Pairs of inner indices.
    pairs: usize,
}

impl Product<'_> {
    /// The chains of a block's sums go on with the pairs of `stretch`, whose words are `b`; `ahead` is fetched meanwhile.
    fn add(&self, rows: &Range<usize>, stretch: &Range<usize>, b: &[u32], ahead: Ahead, sums: &mut [[f32; PANEL]]) {
        let tile = Tile { rows: rows.len(), a: self.left.words(rows, stretch), b, ahead };
        tile.add(self.job.found, self.b.by_instruction(), sums, stretch.start == 0);
    }

    /// The pairs of some cells.
    fn pairs_of(&self, cells: &Range<usize>) -> Range<usize> {
        cells.start * HALF..(cells.end * HALF).min(self.pairs)
    }

    /// # Safety
    /// As [`product`]; nobody else writes the columns of `strips`.
    unsafe fn of_many(&self, direction: Direction, strips: Range<usize>, scratch: &mut Scratch) {
        let Job { found, m, .. } = *self.job;
        let all = scratch.sums.grow(STRIPS * m * PANEL).as_chunks_mut().0;
        let turned = scratch.turned.grow(STRIPS * STRETCH * CELL).as_chunks_mut::<CELL>().0;
        for first in strips.clone().step_by(STRIPS) {
            let together = first..(first + STRIPS).min(strips.end);
            for cells in (0..self.panels).step_by(STRETCH).map(|cell| cell..(cell + STRETCH).min(self.panels)) {
                if direction == Direction::Backward {
                    for (strip, turned) in together.clone().zip(turned.chunks_exact_mut(STRETCH)) {
                        for (p, to) in cells.clone().zip(turned) {
                            turn(found, self.b.cell(p, strip), to);
                        }
                    }
                }
                let stretch = self.pairs_of(&cells);
                let words = |strip: usize| match direction {
                    Direction::Forward => &self.b.panel(strip)[stretch.start * PANEL..stretch.end * PANEL],
                    Direction::Backward => &turned[(strip - first) * STRETCH..].as_flattened()[..stretch.len() * PANEL],
                };
                for block in 0..self.left.blocks.count {
                    let rows = self.left.blocks.range(block);
                    for (strip, sums) in together.clone().zip(all.chunks_exact_mut(m)) {
                        let (b, sums) = (words(strip), &mut sums[rows.clone()]);
                        if block > 0 {
                            self.add(&rows, &stretch, b, Ahead::nothing(b.as_ptr()), sums);
                            continue;
                        }
                        // Cell by cell, as what comes next lies apart.
                        for (p, b) in cells.clone().zip(b.chunks(CELL)) {
                            let ahead = self.next(direction, p, strip, together.len());
                            self.add(&rows, &self.pairs_of(&(p..p + 1)), b, ahead, sums);
                        }
                    }
                }
            }
            for (strip, sums) in together.zip(all.chunks_exact_mut(m)) {
                // SAFETY: the caller's.
                unsafe { self.job.target(0, strip).store(sums) };
            }
        }
    }

    /// The cell that is used a stretch after cell `p` of a strip, one of `together`.
    fn next(&self, direction: Direction, p: usize, strip: usize, together: usize) -> Ahead {
        let next = p + STRETCH;
        let (p, strip) = if next < self.panels { (next, strip) } else { (p % STRETCH, strip + together) };
        match direction {
            Direction::Forward => self.b.place(strip, p),
            Direction::Backward => self.b.place(p, strip),
        }
    }

    /// # Safety
    /// As [`Product::of_many`], for a single block of rows.
    unsafe fn forward_of_few(&self, strips: Range<usize>, scratch: &mut Scratch) {
        let m = self.job.m;
        let sums = &mut scratch.sums.grow(m * PANEL).as_chunks_mut().0[..m];
        for strip in strips {
            let panel = self.b.panel(strip);
            self.add(&(0..m), &(0..self.pairs), panel, Ahead::of(panel.as_ptr()), sums);
            // SAFETY: the caller's.
            unsafe { self.job.target(0, strip).store(sums) };
        }
    }

    /// Memory is read in long runs, because the cells of neighbouring strips lie side by side.
    ///
    /// # Safety
    /// As [`Product::of_many`], for a single block of rows.
    unsafe fn backward_of_few(&self, strips: Range<usize>, scratch: &mut Scratch) {
        let Job { found, m, .. } = *self.job;
        let sums = &mut scratch.sums.grow(strips.len() * m * PANEL).as_chunks_mut().0[..strips.len() * m];
        let mut turned = [0; CELL];
        for p in 0..self.panels {
            let stretch = self.pairs_of(&(p..p + 1));
            for (strip, sums) in strips.clone().zip(sums.chunks_exact_mut(m)) {
                let next = strip + LEAD;
                let ahead =
                    if next < strips.end { self.b.place(p, next) } else { self.b.place(p + 1, next - strips.len()) };
                turn(found, self.b.cell(p, strip), &mut turned);
                self.add(&(0..m), &stretch, &turned[..stretch.len() * PANEL], ahead, sums);
            }
        }
        for (strip, sums) in strips.zip(sums.chunks_exact_mut(m)) {
            // SAFETY: the caller's.
            unsafe { self.job.target(0, strip).store(sums) };
        }
    }
}
