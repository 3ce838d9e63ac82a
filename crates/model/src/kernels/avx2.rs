//! Many rows times one panel with AVX2: the inner loop of all products on CPUs without AVX-512.
//!
//! Sixteen registers hold the sums of six rows and half a panel, with what is multiplied; half the width leaves room for
//! twice the rows, so that each number of the panel is fetched half as often. Measured on a Zen 3 core: 95 % of what its
//! registers alone can do, so there is no loop over parts of the inner index.
//!
//! The left-hand side is read where it lies: broadcasting six numbers from six rows costs no more than from a packed
//! column.

use std::arch::x86_64::*;

use super::panels::PANEL;
use super::tile::{Ahead, Element, Target};

/// Rows of the largest tile.
pub const MOST_ROWS: usize = 6;
/// Columns of a tile of many rows: half a panel, in two registers.
const HALF: usize = PANEL / 2;

/// Where the left-hand side's numbers lie: `a[i, j]` is `data[i·row + j·column]`.
#[derive(Clone, Copy)]
pub struct Left {
    /// The first number.
    pub data: *const f32,
    /// Distance of two rows.
    pub row: usize,
    /// Distance of two columns.
    pub column: usize,
}

/// `to = a [rows, k] · b [k, PANEL]`; `sums` is a buffer to keep between calls.
///
/// # Safety
/// `a` covers `rows` rows of `k` numbers, `b` holds `k·PANEL`, `to` reaches over `rows` rows, and the CPU has AVX2, FMA
/// and F16C.
pub unsafe fn product<E: Element>(rows: usize, k: usize, a: Left, b: *const E, to: Target, sums: &mut Vec<f32>) {
    let whole = to.width == PANEL;
    let direct = if whole {
        to
    } else {
        sums.resize(rows * PANEL, 0.0);
        Target { c: sums.as_mut_ptr(), ldc: PANEL, width: PANEL, bias: None, accumulate: false }
    };
    // SAFETY: the caller's sizes, or `rows` rows of `sums`.
    unsafe { in_blocks(rows, k, a, b, Ahead::of(b), direct, true) };
    if !whole {
        // SAFETY: the caller's target.
        unsafe { to.store(sums.as_chunks_mut().0) };
    }
}

/// The chains of `rows` sums go on with `k` rows of a panel; `fresh` ones begin at zero. `ahead` is fetched meanwhile.
///
/// # Safety
/// As [`product`]; `sums` is valid for `rows` rows, and is read only if it is not `fresh`.
pub unsafe fn add(rows: usize, k: usize, a: Left, b: *const f32, ahead: Ahead, sums: *mut [f32; PANEL], fresh: bool) {
    let to = Target { c: sums.cast(), ldc: PANEL, width: PANEL, bias: None, accumulate: false };
    // SAFETY: the caller's sizes.
    unsafe { in_blocks(rows, k, a, b, ahead, to, fresh) };
}

/// # Safety
/// As [`product`], with a target of whole width; without `fresh` its numbers are read, and the sums go on from them.
unsafe fn in_blocks<E: Element>(rows: usize, k: usize, a: Left, b: *const E, ahead: Ahead, to: Target, fresh: bool) {
    let blocks = rows.div_ceil(MOST_ROWS);
    for block in 0..blocks {
        let (first, end) = (rows * block / blocks, rows * (block + 1) / blocks);
        let a = Left { data: a.data.wrapping_add(first * a.row), ..a };
        // Later blocks find the panel in the cache.
        let ahead = if block == 0 { ahead } else { Ahead::nothing(b) };
        let tile = |column: usize| Tile { k, a, b: b.wrapping_add(column), ahead, to: to.from(first, column), fresh };
        // SAFETY: the caller's sizes.
        unsafe {
            match end - first {
                1 => tile(0).run::<1, 4>(),
                2 => tile(0).run::<2, 4>(),
                3 => tile(0).run::<3, 4>(),
                4 => for_each_half(|column| tile(column).run::<4, 2>()),
                5 => for_each_half(|column| tile(column).run::<5, 2>()),
                6 => for_each_half(|column| tile(column).run::<6, 2>()),
                other => unreachable!("tile of {other} rows"),
            };
        }
    }
}

#[inline(always)]
fn for_each_half(mut tile: impl FnMut(usize)) {
    tile(0);
    tile(HALF);
}

/// A block of rows times a panel or half of one.
struct Tile<E> {
    k: usize,
    a: Left,
    b: *const E,
    ahead: Ahead,
    to: Target,
    /// Sums begin at zero, not at what the target holds.
    fresh: bool,
}

impl<E: Element> Tile<E> {
    /// `R` rows, `V` registers of eight columns.
    ///
    /// # Safety
    /// As [`product`], for these rows and columns.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<const R: usize, const V: usize>(&self) {
        // SAFETY: the loop reads `k` columns of `R` rows of `a` and `V·8` columns of `k` rows of the panel; prefetching past the
        // end is harmless.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); V]; R];
            if !self.fresh {
                for (i, sum) in sums.iter_mut().enumerate() {
                    for (j, sum) in sum.iter_mut().enumerate() {
                        *sum = _mm256_loadu_ps(self.to.c.add(i * self.to.ldc + 8 * j));
                    }
                }
            }
            let (mut a, mut b, mut ahead) = (self.a.data, self.b, self.ahead);
            for _ in 0..self.k {
                let mut columns = [_mm256_setzero_ps(); V];
                for (j, column) in columns.iter_mut().enumerate() {
                    *column = E::load_8(b.add(8 * j));
                }
                ahead.fetch();
                for (i, sum) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.wrapping_add(i * self.a.row));
                    for (sum, column) in sum.iter_mut().zip(columns) {
                        *sum = _mm256_fmadd_ps(value, column, *sum);
                    }
                }
                a = a.wrapping_add(self.a.column);
                b = b.wrapping_add(PANEL);
            }
            let to = self.to;
            for (i, sum) in sums.into_iter().enumerate() {
                for (j, mut sum) in sum.into_iter().enumerate() {
                    if let Some(bias) = to.bias {
                        sum = _mm256_add_ps(sum, _mm256_loadu_ps(bias.add(8 * j)));
                    }
                    let c = to.c.add(i * to.ldc + 8 * j);
                    if to.accumulate {
                        sum = _mm256_add_ps(_mm256_loadu_ps(c), sum);
                    }
                    _mm256_storeu_ps(c, sum);
                }
            }
        }
    }
}
