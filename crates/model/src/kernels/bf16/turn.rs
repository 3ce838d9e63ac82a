//! A cell of a weight turned over: from pairs of the weight's rows to pairs of its columns, for `g·Wᵀ`.
//!
//! Numbers only move, so every instruction set gives the same bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::super::dispatch::Isa;
use super::super::panels::PANEL;

/// Pairs of a cell, along either side.
pub const HALF: usize = PANEL / 2;
/// Words of a cell.
pub const CELL: usize = HALF * PANEL;

/// `from` has a row of [`PANEL`] words for each pair of the weight's rows, [`HALF`] or fewer; `to` gets one for each pair of its
/// columns. Rows that are not there become zero.
pub fn turn(found: Isa, from: &[u32], to: &mut [u32; CELL]) {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512, Ok(from)) = (found, <&[u32; CELL]>::try_from(from)) {
        // SAFETY: an `Isa` of this kind is only made after the CPU reported the features.
        unsafe { whole(from, to) };
        return;
    }
    let _ = found;
    to.fill(0);
    for (i, row) in from.chunks_exact(PANEL).enumerate() {
        for (j, two) in row.as_chunks::<2>().0.iter().enumerate() {
            to[j * PANEL + 2 * i] = two[0] & 0xffff | two[1] << 16;
            to[j * PANEL + 2 * i + 1] = two[0] >> 16 | two[1] & 0xffff_0000;
        }
    }
}

/// Squares of two pairs of rows and two pairs of columns are 64 bits: each is turned over in itself, then they change places, in
/// squares of eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn whole(from: &[u32; CELL], to: &mut [u32; CELL]) {
    let inside = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut x = [_mm512_setzero_si512(); 8];
        for (i, x) in x.iter_mut().enumerate() {
            // SAFETY: 16 words of one of 16 rows of 32.
            let words = unsafe { _mm512_loadu_si512(from.as_ptr().add((8 * row + i) * PANEL + HALF * column).cast()) };
            *x = _mm512_shuffle_epi8(words, inside);
        }
        eight_by_eight(&mut x);
        for (j, x) in x.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().add((8 * column + j) * PANEL + HALF * row).cast(), x) };
        }
    }
}

/// The transpose of 8×8 numbers of 64 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn eight_by_eight(x: &mut [__m512i; 8]) {
    let mut twos = *x;
    for i in 0..4 {
        twos[2 * i] = _mm512_unpacklo_epi64(x[2 * i], x[2 * i + 1]);
        twos[2 * i + 1] = _mm512_unpackhi_epi64(x[2 * i], x[2 * i + 1]);
    }
    // Column `2·quarter + odd` of rows 0..4 and 4..8: quarters 0 and 2, or 1 and 3.
    let mut fours = twos;
    for half in 0..2 {
        for odd in 0..2 {
            let (upper, lower) = (twos[4 * half + odd], twos[4 * half + 2 + odd]);
            fours[4 * half + 2 * odd] = _mm512_shuffle_i64x2::<0b10_00_10_00>(upper, lower);
            fours[4 * half + 2 * odd + 1] = _mm512_shuffle_i64x2::<0b11_01_11_01>(upper, lower);
        }
    }
    for odd in 0..2 {
        for later in 0..2 {
            let (upper, lower) = (fours[2 * odd + later], fours[4 + 2 * odd + later]);
            // Quarters `later` and `later + 2` of both halves.
            x[2 * later + odd] = _mm512_shuffle_i64x2::<0b10_00_10_00>(upper, lower);
            x[4 + 2 * later + odd] = _mm512_shuffle_i64x2::<0b11_01_11_01>(upper, lower);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::dispatch::available;
    use super::*;

    #[test]
    fn pairs_of_rows_become_pairs_of_columns() {
        let number = |i: usize, j: usize| (i * PANEL + j + 1) as u32;
        for found in available() {
            for rows in [HALF, 11, 1] {
                let word = |at: usize| {
                    let (i, j) = (at / PANEL, at % PANEL);
                    number(2 * i, j) | number(2 * i + 1, j) << 16
                };
                let from: Vec<u32> = (0..rows * PANEL).map(word).collect();
                let mut to = [7; CELL];
                turn(found, &from, &mut to);
                for (at, got) in to.iter().enumerate() {
                    let (j, i) = (at / PANEL, at % PANEL);
                    let want = if i < 2 * rows { number(i, 2 * j) | number(i, 2 * j + 1) << 16 } else { 0 };
                    assert_eq!(*got, want, "{found:?}, {rows} rows, row {i}, columns from {}", 2 * j);
                }
            }
        }
    }
}
