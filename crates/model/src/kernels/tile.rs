//! One block of a few packed rows times one panel, with AVX-512 or in portable code: the inner loop of all products there;
//! [`super::avx2`] is its counterpart.
//!
//! A tile keeps its sums in registers over the whole of `k`; there is no blocking of `k`. Each output element is therefore
//! `fma(a[k−1], b[k−1], … fma(a[0], b[0], 0))`, whatever the tile, the thread count or the instruction set.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::dispatch::Isa;
use super::panels::PANEL;

/// Rows of the largest tile.
pub const MOST_ROWS: usize = 14;

/// A number as a panel holds it. Every one becomes an `f32` exactly.
pub trait Element: Copy + Send + Sync {
    /// The same number as an `f32`.
    fn widen(self) -> f32;

    /// 16 numbers, widened.
    ///
    /// # Safety
    /// `from` holds 16 numbers, and the CPU has AVX-512F.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_16(from: *const Self) -> __m512;

    /// 8 numbers, widened.
    ///
    /// # Safety
    /// `from` holds 8 numbers, and the CPU has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_8(from: *const Self) -> __m256;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load_16(from: *const Self) -> __m512 {
        // SAFETY: the caller's, here and below.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load_8(from: *const Self) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from) }
    }
}

/// The upper half of an `f32`.
impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load_16(from: *const Self) -> __m512 {
        // SAFETY: as above.
        let bits = unsafe { _mm256_loadu_si256(from.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load_8(from: *const Self) -> __m256 {
        // SAFETY: as above.
        let bits = unsafe { _mm_loadu_si128(from.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32_const()
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load_16(from: *const Self) -> __m512 {
        // SAFETY: as above.
        let bits = unsafe { _mm256_loadu_si256(from.cast()) };
        _mm512_cvtph_ps(bits)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load_8(from: *const Self) -> __m256 {
        // SAFETY: as above.
        let bits = unsafe { _mm_loadu_si128(from.cast()) };
        _mm256_cvtph_ps(bits)
    }
}

/// One block of rows times one panel, or a stretch of its rows.
pub struct Tile<E> {
    /// Rows, at most [`MOST_ROWS`].
    pub rows: usize,
    /// Inner size.
    pub k: usize,
    /// Stored by column.
    pub a: *const f32,
    /// The panel.
    pub b: *const E,
    /// What will be needed next.
    pub ahead: Ahead,
}

/// Rows of a panel fetched ahead of use; hides the latency of memory when the weights do not fit a cache.
const AHEAD: usize = 24;

/// Memory that a product fetches into the cache while it computes, evenly over its inner index: a burst of fetches would
/// hold up the product's own loads.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// Where it begins; it need not be anybody's memory.
    from: *const u8,
    /// Bytes per inner index, at most two cache lines.
    step: usize,
}

impl Ahead {
    /// Of a product that reads its panel where it lies in memory: a little further down the panel.
    pub fn of<E>(panel: *const E) -> Self {
        Self::at(panel.wrapping_add(AHEAD * PANEL))
    }

    /// Rows of a panel.
    pub fn at<E>(rows: *const E) -> Self {
        Self { from: rows.cast(), step: PANEL * size_of::<E>() }
    }

    /// `bytes` of memory over [`PANEL`] inner indices.
    pub fn spread<E>(from: *const E, bytes: usize) -> Self {
        Self { from: from.cast(), step: bytes.div_ceil(PANEL) }
    }

    /// Nothing: `cached` lies in the cache already.
    pub fn nothing<E>(cached: *const E) -> Self {
        Self { from: cached.cast(), step: 0 }
    }

    /// Fetches half the memory of the next inner index.
    #[inline(always)]
    pub fn fetch_line(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as below.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.from.cast());
        }
        self.from = self.from.wrapping_add(self.step / 2);
    }

    /// Fetches the memory of the next inner index.
    #[inline(always)]
    pub fn fetch(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: fetching is harmless anywhere; SSE is part of the architecture.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(self.from.cast());
            _mm_prefetch::<_MM_HINT_T0>(self.from.wrapping_add(64).cast());
        }
        self.from = self.from.wrapping_add(self.step);
    }
}

/// Where the sums of some rows and one panel go.
#[derive(Clone, Copy)]
pub struct Target {
    /// First number of the first row.
    pub c: *mut f32,
    /// Numbers from one row to the next.
    pub ldc: usize,
    /// Columns of the panel that are there; [`PANEL`] but for the last one.
    pub width: usize,
    /// One value per column, added first.
    pub bias: Option<*const f32>,
    /// Add to what `c` holds instead of replacing it.
    pub accumulate: bool,
}

impl Target {
    /// The target from `row` and `column` on; its width no longer counts.
    pub fn from(self, row: usize, column: usize) -> Self {
        let bias = self.bias.map(|bias| bias.wrapping_add(column));
        Self { c: self.c.wrapping_add(row * self.ldc + column), bias, ..self }
    }

    /// Stores rows of sums.
    ///
    /// # Safety
    /// `bias` holds `width`, and `c` is valid for as many rows of `width` floats as `sums` has; what they hold is read only
    /// to accumulate.
    #[inline(always)]
    pub unsafe fn store(&self, sums: &mut [[f32; PANEL]]) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            unsafe {
                if let Some(bias) = self.bias {
                    let bias = std::slice::from_raw_parts(bias, self.width);
                    for (s, b) in sum.iter_mut().zip(bias) {
                        *s += b;
                    }
                }
                if self.width == PANEL && !self.accumulate {
                    // A whole panel's row moves in registers; a slice copy of unknown length would be a call.
                    self.c.add(i * self.ldc).cast::<[f32; PANEL]>().write_unaligned(*sum);
                    continue;
                }
                let out = self.c.add(i * self.ldc);
                if !self.accumulate {
                    std::ptr::copy_nonoverlapping(sum.as_ptr(), out, self.width);
                    continue;
                }
                for (o, s) in std::slice::from_raw_parts_mut(out, self.width).iter_mut().zip(sum.iter()) {
                    *o += s;
                }
            }
        }
    }
}

impl<E: Element> Tile<E> {
    /// The product of a whole panel, stored to `to`.
    ///
    /// # Safety
    /// `a` holds `k·rows`, `b` holds `k·PANEL` numbers, and `to` reaches over `rows` rows. The CPU supports `found`, which
    /// is not AVX2.
    pub unsafe fn run(&self, found: Isa, to: Target) {
        // Not cleared: the product writes the rows it is asked for, and clearing 14 would cost as much as a short product.
        let mut buffer = std::mem::MaybeUninit::<[[f32; PANEL]; MOST_ROWS]>::uninit();
        let sums = buffer.as_mut_ptr().cast::<[f32; PANEL]>();
        // SAFETY: the caller's.
        unsafe {
            self.add(found, sums, true);
            to.store(std::slice::from_raw_parts_mut(sums, self.rows));
        }
    }

    /// The chains of `rows` sums go on with this stretch of the panel; `fresh` ones begin at zero.
    ///
    /// # Safety
    /// As [`Tile::run`]; `sums` is valid for `rows` rows, and is read only if it is not `fresh`.
    pub unsafe fn add(&self, found: Isa, sums: *mut [f32; PANEL], fresh: bool) {
        // SAFETY: the caller's.
        unsafe {
            match found {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::product_avx512(self, sums, fresh),
                _ => self.add_portable(sums, fresh),
            }
        }
    }

    /// # Safety
    /// As [`Tile::add`].
    unsafe fn add_portable(&self, sums: *mut [f32; PANEL], fresh: bool) {
        let Self { rows, k, .. } = *self;
        // SAFETY: the caller's sizes; sums are cleared before they are read.
        let (a, b, sums) = unsafe {
            if fresh {
                std::ptr::write_bytes(sums, 0, rows);
            }
            let (a, b) = (std::slice::from_raw_parts(self.a, rows * k), std::slice::from_raw_parts(self.b, k * PANEL));
            (a, b, std::slice::from_raw_parts_mut(sums, rows))
        };
        for (column, row) in a.chunks_exact(rows).zip(b.chunks_exact(PANEL)) {
            for (sum, value) in sums.iter_mut().zip(column) {
                for (s, r) in sum.iter_mut().zip(row) {
                    *s = value.mul_add(r.widen(), *s);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Element, PANEL, Tile};

    /// Calls `$tile::<rows>` for a run-time number of rows.
    macro_rules! by_rows {
        ($rows:expr, $tile:ident, $args:tt, [$($n:literal)*]) => {
            match $rows {
                $($n => $tile::<E, $n> $args,)*
                other => unreachable!("tile of {other} rows"),
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn product_avx512<E: Element>(tile: &Tile<E>, sums: *mut [f32; PANEL], fresh: bool) {
        // SAFETY: the caller's sizes.
        unsafe { by_rows!(tile.rows, tile_avx512, (tile, sums, fresh), [1 2 3 4 5 6 7 8 9 10 11 12 13 14]) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile_avx512<E: Element, const R: usize>(tile: &Tile<E>, sums: *mut [f32; PANEL], fresh: bool) {
        let (mut a, mut b, mut ahead) = (tile.a, tile.b, tile.ahead);
        // SAFETY: the loop reads `k·R` numbers of `a` and `k·PANEL` of `b`.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); 2]; R];
            if !fresh {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let sum = sums.add(i).cast::<f32>();
                    *acc = [_mm512_loadu_ps(sum), _mm512_loadu_ps(sum.add(16))];
                }
            }
            for _ in 0..tile.k {
                let b0 = E::load_16(b);
                let b1 = E::load_16(b.wrapping_add(16));
                ahead.fetch();
                for (i, acc) in acc.iter_mut().enumerate() {
                    // By intrinsics, as the development profile would check each access.
                    let value = _mm512_broadcastss_ps(_mm_load_ss(a.wrapping_add(i)));
                    acc[0] = _mm512_fmadd_ps(value, b0, acc[0]);
                    acc[1] = _mm512_fmadd_ps(value, b1, acc[1]);
                }
                a = a.wrapping_add(R);
                b = b.wrapping_add(PANEL);
            }
            for (i, acc) in acc.iter().enumerate() {
                let sum = sums.add(i).cast::<f32>();
                _mm512_storeu_ps(sum, acc[0]);
                _mm512_storeu_ps(sum.add(16), acc[1]);
            }
        }
    }
}
