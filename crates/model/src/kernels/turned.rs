//! A few rows times the transpose of a cell, turned over within the registers: with AVX-512, for products that wait for memory.
//!
//! Each step takes four columns of 32 rows, 128 bits of each row, and turns four registers of them over at once. That mixes
//! with the multiplications of the step before; a buffer between them would not.

use std::arch::x86_64::*;

use super::panels::PANEL;
use super::tile::Ahead;
use super::transpose::CELL;

/// Rows whose sums leave enough registers.
pub const MOST_ROWS: usize = 8;

/// The chains of `rows` sums go on: `sums[r][i] += Σⱼ a[j][r]·cell[i][j]`, `j` ascending. `fresh` sums begin at zero. `a` holds
/// the rows by columns; `ahead` is fetched meanwhile.
///
/// # Safety
/// The CPU has AVX-512F.
pub unsafe fn add(rows: usize, a: &[f32], cell: &[f32; CELL], ahead: Ahead, sums: &mut [[f32; PANEL]], fresh: bool) {
    assert!(a.len() == rows * PANEL && sums.len() == rows, "{rows} rows do not fit");
    let (a, sums) = (a.as_ptr(), sums.as_mut_ptr());
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: the sizes were checked; the feature is the caller's.
                $($n => unsafe { add_rows::<$n>(a, cell.as_ptr(), ahead, sums, fresh) },)*
                other => unreachable!("{other} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8);
}

/// # Safety
/// `a` holds `PANEL·R` numbers, `cell` [`CELL`], `sums` `R` rows; the CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn add_rows<const R: usize>(
    a: *const f32,
    cell: *const f32,
    mut ahead: Ahead,
    sums: *mut [f32; PANEL],
    fresh: bool,
) {
    // SAFETY: the caller's sizes.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        if !fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                let sum = sums.add(r).cast::<f32>();
                *acc = [_mm512_loadu_ps(sum), _mm512_loadu_ps(sum.add(16))];
            }
        }
        for first in (0..PANEL).step_by(4) {
            let upper = four_columns(cell.add(first));
            let lower = four_columns(cell.add(16 * PANEL + first));
            for (j, (upper, lower)) in upper.into_iter().zip(lower).enumerate() {
                ahead.fetch();
                for (r, acc) in acc.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add((first + j) * R + r));
                    acc[0] = _mm512_fmadd_ps(value, upper, acc[0]);
                    acc[1] = _mm512_fmadd_ps(value, lower, acc[1]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let sum = sums.add(r).cast::<f32>();
            _mm512_storeu_ps(sum, acc[0]);
            _mm512_storeu_ps(sum.add(16), acc[1]);
        }
    }
}

/// Four columns of 16 rows.
///
/// # Safety
/// `cell` holds 16 rows of [`PANEL`] numbers, from the first of the columns on; the CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn four_columns(cell: *const f32) -> [__m512; 4] {
    // Register `q` holds rows `q`, `4 + q`, `8 + q` and `12 + q`, so that a transpose within its quarters leaves rows in order.
    let mut x = [_mm512_setzero_ps(); 4];
    for (q, x) in x.iter_mut().enumerate() {
        // SAFETY: the caller's rows.
        unsafe {
            let quarter = |l: usize| _mm_loadu_ps(cell.add((4 * l + q) * PANEL));
            *x = _mm512_castps128_ps512(quarter(0));
            *x = _mm512_insertf32x4::<1>(*x, quarter(1));
            *x = _mm512_insertf32x4::<2>(*x, quarter(2));
            *x = _mm512_insertf32x4::<3>(*x, quarter(3));
        }
    }
    let pairs = [
        _mm512_unpacklo_ps(x[0], x[1]),
        _mm512_unpackhi_ps(x[0], x[1]),
        _mm512_unpacklo_ps(x[2], x[3]),
        _mm512_unpackhi_ps(x[2], x[3]),
    ]
    .map(|pair| _mm512_castps_pd(pair));
    [
        _mm512_unpacklo_pd(pairs[0], pairs[2]),
        _mm512_unpackhi_pd(pairs[0], pairs[2]),
        _mm512_unpacklo_pd(pairs[1], pairs[3]),
        _mm512_unpackhi_pd(pairs[1], pairs[3]),
    ]
    .map(|column| _mm512_castpd_ps(column))
}
