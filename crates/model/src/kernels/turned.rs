//! A few rows times the transpose of a cell, turned over within the registers: with AVX-512, for products that wait for memory.
//!
//! Each step takes four columns of 32 rows, 128 bits of each row, and turns four registers of them over at once. That mixes
//! with the multiplications of the step before; a buffer between them would not.
//!
//! Pointers move by `wrapping_add`, and numbers come by intrinsics: the development profile would check each access.

use std::arch::x86_64::*;

use super::panels::{CELL, PANEL};
use super::tile::Ahead;

/// The chains of the rows' sums go on: `sums[r][i] += Σⱼ g[j][r]·cell[i][j]`, `j` ascending over all of a cell's columns. `fresh`
/// sums begin at zero; `ahead` is fetched meanwhile.
///
/// # Safety
/// The CPU has AVX-512F.
pub unsafe fn add(g: &[f32], cell: &[f32; CELL], ahead: Ahead, sums: &mut [[f32; PANEL]], fresh: bool) {
    let rows = sums.len();
    assert!(g.len() == rows * PANEL, "{rows} rows do not fit");
    let (g, sums) = (g.as_ptr(), sums.as_mut_ptr());
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: the sizes were checked; the feature is the caller's.
                $($n => unsafe { add_rows::<$n>(g, cell.as_ptr(), ahead, sums, fresh) },)*
                other => unreachable!("{other} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8);
}

/// # Safety
/// `g` holds `PANEL·R` numbers, `cell` [`CELL`], `sums` `R` rows; the CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn add_rows<const R: usize>(
    g: *const f32,
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
        let (mut g, mut cell) = (g, cell);
        for _ in 0..PANEL / 4 {
            let upper = four_columns(cell);
            let lower = four_columns(cell.wrapping_add(16 * PANEL));
            for j in 0..4 {
                ahead.fetch();
                for (r, acc) in acc.iter_mut().enumerate() {
                    let value = _mm512_broadcastss_ps(_mm_load_ss(g.wrapping_add(j * R + r)));
                    acc[0] = _mm512_fmadd_ps(value, upper[j], acc[0]);
                    acc[1] = _mm512_fmadd_ps(value, lower[j], acc[1]);
                }
            }
            g = g.wrapping_add(4 * R);
            cell = cell.wrapping_add(4);
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
    // SAFETY: the caller's rows.
    let x = unsafe { [every_fourth(cell, 0), every_fourth(cell, 1), every_fourth(cell, 2), every_fourth(cell, 3)] };
    // A transpose within the quarters leaves rows in order.
    let even = _mm512_castps_pd(_mm512_unpacklo_ps(x[0], x[1]));
    let odd = _mm512_castps_pd(_mm512_unpackhi_ps(x[0], x[1]));
    let even_below = _mm512_castps_pd(_mm512_unpacklo_ps(x[2], x[3]));
    let odd_below = _mm512_castps_pd(_mm512_unpackhi_ps(x[2], x[3]));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(even, even_below)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(even, even_below)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(odd, odd_below)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(odd, odd_below)),
    ]
}

/// Four numbers each of the rows `q`, `4 + q`, `8 + q` and `12 + q`.
///
/// # Safety
/// As [`four_columns`]; `q` is at most 3.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn every_fourth(cell: *const f32, q: usize) -> __m512 {
    let row = cell.wrapping_add(q * PANEL);
    // SAFETY: the caller's rows.
    unsafe {
        let x = _mm512_castps128_ps512(_mm_loadu_ps(row));
        let x = _mm512_insertf32x4::<1>(x, _mm_loadu_ps(row.wrapping_add(4 * PANEL)));
        let x = _mm512_insertf32x4::<2>(x, _mm_loadu_ps(row.wrapping_add(8 * PANEL)));
        _mm512_insertf32x4::<3>(x, _mm_loadu_ps(row.wrapping_add(12 * PANEL)))
    }
}
