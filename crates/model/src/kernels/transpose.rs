//! Turns a few rows over, so that they lie by columns.
//!
//! Numbers only move, so every instruction set gives the same bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::dispatch::Isa;

/// Side of the squares that are turned over within registers.
const SIDE: usize = 8;

/// Fewer rows are moved number by number.
#[cfg(target_arch = "x86_64")]
const FEWEST_ROWS: usize = 3;

/// `to [columns, to_stride] = fromᵀ` of `from [rows, columns]`, whose rows begin `from_stride` apart. Numbers of a row of `to`
/// past `rows` become zero.
pub fn transpose(
    found: Isa,
    from: &[f32],
    from_stride: usize,
    rows: usize,
    columns: usize,
    to: &mut [f32],
    to_stride: usize,
) {
    assert!(rows > 0 && rows <= to_stride && columns <= from_stride, "[{rows}, {columns}] does not fit");
    assert!(from.len() >= (rows - 1) * from_stride + columns, "too few numbers for [{rows}, {columns}]");
    let to = &mut to[..columns * to_stride];
    #[cfg(target_arch = "x86_64")]
    if found != Isa::Portable && rows >= FEWEST_ROWS && columns.is_multiple_of(SIDE) && to_stride.is_multiple_of(SIDE) {
        // SAFETY: an `Isa` of these kinds is only made after the CPU reported the feature; the sizes were checked.
        unsafe { in_squares(from.as_ptr(), from_stride, rows, columns, to.as_mut_ptr(), to_stride) };
        return;
    }
    let _ = found;
    for (j, to) in to.chunks_exact_mut(to_stride).enumerate() {
        let (taken, rest) = to.split_at_mut(rows);
        for (i, to) in taken.iter_mut().enumerate() {
            *to = from[i * from_stride + j];
        }
        rest.fill(0.0);
    }
}

/// # Safety
/// As [`transpose`]'s assertions; `columns` and `to_stride` are multiples of [`SIDE`], and the CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn in_squares(
    from: *const f32,
    from_stride: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    to_stride: usize,
) {
    for row in (0..to_stride).step_by(SIDE) {
        let count = rows.saturating_sub(row).min(SIDE);
        for column in (0..columns).step_by(SIDE) {
            // SAFETY: the square lies within `to`, and its first `count` rows within `from`.
            unsafe {
                let mut x = [_mm256_setzero_ps(); SIDE];
                if count == SIDE {
                    for (i, x) in x.iter_mut().enumerate() {
                        *x = _mm256_loadu_ps(from.add((row + i) * from_stride + column));
                    }
                } else {
                    for (i, x) in x.iter_mut().enumerate().take(count) {
                        *x = _mm256_loadu_ps(from.add((row + i) * from_stride + column));
                    }
                }
                square(&mut x);
                for (j, x) in x.iter().enumerate() {
                    _mm256_storeu_ps(to.add((column + j) * to_stride + row), *x);
                }
            }
        }
    }
}

/// A square of 8×8: pairs of rows, pairs of pairs, then halves of registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn square(x: &mut [__m256; SIDE]) {
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
    fn rows_become_columns_and_the_rest_zero() {
        for found in available() {
            for (rows, columns, from_stride, to_stride) in
                [(1, 32, 40, 8), (3, 8, 8, 8), (8, 32, 33, 8), (9, 32, 32, 16), (13, 31, 31, 16), (24, 16, 50, 24)]
            {
                let from: Vec<f32> = (0..rows * from_stride).map(|i| i as f32 + 1.0).collect();
                let mut to = vec![f32::NAN; columns * to_stride];
                transpose(found, &from, from_stride, rows, columns, &mut to, to_stride);
                for (at, got) in to.iter().enumerate() {
                    let (j, i) = (at / to_stride, at % to_stride);
                    let want = if i < rows { from[i * from_stride + j] } else { 0.0 };
                    assert_eq!(*got, want, "{found:?} [{rows}, {columns}] at ({j}, {i})");
                }
            }
        }
    }
}
