//! Turns a cell of a weight, 32 rows of a panel, over: its columns become rows.
//!
//! Numbers only move, so every instruction set gives the same bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::dispatch::Isa;
use super::panels::PANEL;

/// Numbers of a cell.
pub const CELL: usize = PANEL * PANEL;

/// Row `j` of `to` becomes column `j` of `from`, which holds up to [`PANEL`] rows; what lies past these is zero.
pub fn transpose(found: Isa, from: &[f32], to: &mut [f32; CELL]) {
    match found {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this kind is only made after the CPU reported the feature; both are whole cells.
        Isa::Avx512 if from.len() == CELL => unsafe { transpose_avx512(from.as_ptr(), to.as_mut_ptr()) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 if from.len() == CELL => unsafe { transpose_avx2(from.as_ptr(), to.as_mut_ptr()) },
        _ => {
            for (j, to) in to.chunks_exact_mut(PANEL).enumerate() {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = from.get(i * PANEL + j).copied().unwrap_or(0.0);
                }
            }
        }
    }
}

/// Four squares of 16×16, each within 16 registers.
///
/// # Safety
/// Both hold [`CELL`] numbers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(from: *const f32, to: *mut f32) {
    const SIDE: usize = 16;
    for (row, column) in [(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)] {
        // SAFETY: the caller's sizes.
        unsafe {
            let mut x = [_mm512_setzero_ps(); SIDE];
            for (i, x) in x.iter_mut().enumerate() {
                *x = _mm512_loadu_ps(from.add((row + i) * PANEL + column));
            }
            square_16(&mut x);
            for (j, x) in x.iter().enumerate() {
                _mm512_storeu_ps(to.add((column + j) * PANEL + row), *x);
            }
        }
    }
}

/// A square of 16×16: pairs of rows, pairs of pairs, then quarters of registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn square_16(x: &mut [__m512; 16]) {
    let mut pairs = *x;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    let mut fours = pairs;
    for group in 0..4 {
        for half in 0..2 {
            let (upper, lower) = (pairs[4 * group + half], pairs[4 * group + 2 + half]);
            let (upper, lower) = (_mm512_castps_pd(upper), _mm512_castps_pd(lower));
            fours[4 * group + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
            fours[4 * group + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
        }
    }
    // Quarter `q` of `fours[4·group + c]` is now column `4·q + c` of the group's four rows.
    for c in 0..4 {
        let even_upper = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
        let odd_upper = _mm512_shuffle_f32x4::<0xdd>(fours[c], fours[4 + c]);
        let even_lower = _mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
        let odd_lower = _mm512_shuffle_f32x4::<0xdd>(fours[8 + c], fours[12 + c]);
        x[c] = _mm512_shuffle_f32x4::<0x88>(even_upper, even_lower);
        x[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_upper, odd_lower);
        x[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even_upper, even_lower);
        x[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd_upper, odd_lower);
    }
}

/// Sixteen squares of 8×8, each within 8 registers.
///
/// # Safety
/// Both hold [`CELL`] numbers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_avx2(from: *const f32, to: *mut f32) {
    const SIDE: usize = 8;
    for square in 0..16 {
        let (row, column) = (square % 4 * SIDE, square / 4 * SIDE);
        // SAFETY: the caller's sizes.
        unsafe {
            let mut x = [_mm256_setzero_ps(); SIDE];
            for (i, x) in x.iter_mut().enumerate() {
                *x = _mm256_loadu_ps(from.add((row + i) * PANEL + column));
            }
            square_8(&mut x);
            for (j, x) in x.iter().enumerate() {
                _mm256_storeu_ps(to.add((column + j) * PANEL + row), *x);
            }
        }
    }
}

/// A square of 8×8: pairs of rows, pairs of pairs, then halves of registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn square_8(x: &mut [__m256; 8]) {
    let mut pairs = *x;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    let mut fours = pairs;
    for group in 0..2 {
        for half in 0..2 {
            let (upper, lower) = (pairs[4 * group + half], pairs[4 * group + 2 + half]);
            let (upper, lower) = (_mm256_castps_pd(upper), _mm256_castps_pd(lower));
            fours[4 * group + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(upper, lower));
            fours[4 * group + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(upper, lower));
        }
    }
    for c in 0..4 {
        x[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
        x[4 + c] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dispatch::available;

    #[test]
    fn columns_become_rows() {
        let from: [f32; CELL] = std::array::from_fn(|i| i as f32 + 1.0);
        for found in available() {
            for rows in [PANEL, 7, 1] {
                let mut got = [f32::NAN; CELL];
                transpose(found, &from[..rows * PANEL], &mut got);
                for (i, value) in got.iter().enumerate() {
                    let want = if i % PANEL < rows { from[i % PANEL * PANEL + i / PANEL] } else { 0.0 };
                    assert_eq!(*value, want, "{found:?}, {rows} rows, {i}");
                }
            }
        }
    }
}
