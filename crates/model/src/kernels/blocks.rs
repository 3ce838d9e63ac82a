//! The left-hand side of a product: its rows cut into blocks that fit the registers, and copied for AVX-512 and portable
//! code so that a block lies by columns.

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::dispatch::Isa;
use super::tile::MOST_ROWS;

/// Rows cut into blocks of nearly equal size that fit the registers.
pub struct Blocks {
    rows: usize,
    /// How many.
    pub count: usize,
}

impl Blocks {
    /// `rows` in as few blocks as `found` allows.
    pub fn new(found: Isa, rows: usize) -> Self {
        let most = match found {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => MOST_ROWS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::MOST_ROWS,
            Isa::Portable => 4,
        };
        Self::of(rows, most)
    }

    /// `rows` in as few blocks of at most `most` as there can be.
    pub fn of(rows: usize, most: usize) -> Self {
        Self { rows, count: rows.div_ceil(most) }
    }

    /// Runs of blocks whose packed rows stay in a core's cache while all panels pass by. Where `k` is so large that a
    /// panel alone fills the cache, the rows pass by instead.
    pub fn groups(&self, k: usize) -> Vec<Range<usize>> {
        const CACHE: usize = 512 << 10;
        let row_bytes = k * size_of::<f32>();
        if row_bytes * super::panels::PANEL > CACHE / 2 || self.count == 0 {
            return std::iter::once(0..self.count).collect();
        }
        let block_rows = self.rows.div_ceil(self.count);
        let per_group = (CACHE / (row_bytes * block_rows).max(1)).max(1);
        (0..self.count).step_by(per_group).map(|first| first..(first + per_group).min(self.count)).collect()
    }

    /// Rows of a block.
    pub fn range(&self, block: usize) -> Range<usize> {
        self.rows * block / self.count..self.rows * (block + 1) / self.count
    }
}

/// Whether `found`'s products read the left-hand side where it lies.
pub fn reads_rows_in_place(found: Isa) -> bool {
    match found {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => true,
        _ => false,
    }
}

/// All blocks of `a [m, k]`, one after another, each stored by column.
pub fn pack(a: &[f32], k: usize, blocks: &Blocks, parallel: bool) -> Vec<f32> {
    let mut packed = vec![0.0f32; a.len()];
    let mut rest = packed.as_mut_slice();
    let mut parts = Vec::with_capacity(blocks.count);
    for block in 0..blocks.count {
        let rows = blocks.range(block);
        let (part, tail) = rest.split_at_mut(rows.len() * k);
        parts.push((rows, part));
        rest = tail;
    }
    let fill = |(rows, part): (Range<usize>, &mut [f32])| {
        pack_block(&a[rows.start * k..], rows.len(), k, k, 1, part);
    };
    if parallel {
        parts.into_par_iter().for_each(fill);
    } else {
        parts.into_iter().for_each(fill);
    }
    packed
}

/// Copies `rows` rows of `a` into `out [k, rows]`.
pub fn pack_block(a: &[f32], rows: usize, k: usize, row_stride: usize, column_stride: usize, out: &mut [f32]) {
    if column_stride != 1 {
        for (j, column) in out.chunks_exact_mut(rows).enumerate().take(k) {
            for (i, value) in column.iter_mut().enumerate() {
                *value = a[i * row_stride + j * column_stride];
            }
        }
        return;
    }
    // A few columns at a time: reads stay within a cache line of each row, writes are contiguous.
    const COLUMNS: usize = 16;
    for (chunk, columns) in out[..rows * k].chunks_mut(rows * COLUMNS).enumerate() {
        let first = chunk * COLUMNS;
        let count = columns.len() / rows;
        for i in 0..rows {
            let row = &a[i * row_stride + first..][..count];
            for (j, value) in row.iter().enumerate() {
                columns[j * rows + i] = *value;
            }
        }
    }
}
