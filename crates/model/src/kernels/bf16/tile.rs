//! A block of a few rows times a run of words of a panel: the inner loop.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::super::dispatch::{Isa, multiversion};
use super::super::panels::PANEL;
use super::super::tile::Ahead;
use super::dot;

/// A block times `b`.
pub struct Tile<'a> {
    /// Rows of the block, at most [`super::super::tile::MOST_ROWS`].
    pub rows: usize,
    /// `[pairs, rows]`
    pub a: &'a [u32],
    /// `[pairs, PANEL]`
    pub b: &'a [u32],
    /// Fetched meanwhile.
    pub ahead: Ahead,
}

impl Tile<'_> {
    /// The chains of the block's sums go on; `fresh` ones begin at zero. `instruction` only where the processor has it.
    pub fn add(&self, found: Isa, instruction: bool, sums: &mut [[f32; PANEL]], fresh: bool) {
        let Self { rows, a, b, .. } = *self;
        assert!(sums.len() == rows && a.len() * PANEL == b.len() * rows, "{rows} rows do not fit");
        #[cfg(target_arch = "x86_64")]
        if instruction {
            // SAFETY: the caller's feature; the sizes were checked.
            unsafe { x86::add(self, sums.as_mut_ptr(), fresh) };
            return;
        }
        let _ = instruction;
        if fresh {
            sums.fill([0.0; PANEL]);
        }
        plain(found, rows, a, b, sums);
    }
}

multiversion! {
    fn plain(rows: usize, a: &[u32], b: &[u32], sums: &mut [[f32; PANEL]]) => plain_body
}

/// First in the hope that no sum comes near the smallest numbers, as hardly any does.
#[inline(always)]
fn plain_body(rows: usize, a: &[u32], b: &[u32], sums: &mut [[f32; PANEL]]) {
    let (b, _) = b.as_chunks::<PANEL>();
    for (i, sums) in sums.iter_mut().enumerate() {
        let factors = || a[i..].iter().step_by(rows).zip(b);
        let (mut quick, mut least) = (*sums, [u32::MAX; PANEL]);
        for (a, b) in factors() {
            for j in 0..PANEL {
                let (sum, suspicion) = dot::quick_steps(*a, b[j], quick[j]);
                quick[j] = sum;
                least[j] = least[j].min(suspicion);
            }
        }
        if least.iter().all(|least| *least >= dot::SUSPICIOUS) {
            *sums = quick;
            continue;
        }
        for (a, b) in factors() {
            for j in 0..PANEL {
                sums[j] = dot::steps(*a, b[j], sums[j]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;

    /// # Safety
    /// The sizes of `tile` fit, `sums` is valid for its rows, and the CPU has AVX512-BF16.
    pub unsafe fn add(tile: &Tile<'_>, sums: *mut [f32; PANEL], fresh: bool) {
        macro_rules! by_rows {
            ($($n:literal)*) => {
                match tile.rows {
                    // SAFETY: the caller's.
                    $($n => unsafe { add_rows::<$n>(tile, sums, fresh) },)*
                    other => unreachable!("tile of {other} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    /// # Safety
    /// As [`add`], with `R` rows.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add_rows<const R: usize>(tile: &Tile<'_>, sums: *mut [f32; PANEL], fresh: bool) {
        let (mut a, mut b, mut ahead) = (tile.a.as_ptr(), tile.b.as_ptr(), tile.ahead);
        let pairs = tile.b.len() / PANEL;
        // By intrinsics and `wrapping_add`, as the development profile would check each access.
        // SAFETY: the loop reads `pairs·R` words of `a` and `pairs·PANEL` of `b`.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); 2]; R];
            if !fresh {
                for (i, acc) in acc.iter_mut().enumerate() {
                    let sum = sums.wrapping_add(i).cast::<f32>();
                    *acc = [_mm512_loadu_ps(sum), _mm512_loadu_ps(sum.wrapping_add(16))];
                }
            }
            for _ in 0..pairs {
                let b0 = pairs_of(_mm512_loadu_si512(b.cast()));
                let b1 = pairs_of(_mm512_loadu_si512(b.wrapping_add(16).cast()));
                ahead.fetch();
                for (i, acc) in acc.iter_mut().enumerate() {
                    let word = _mm_castps_si128(_mm_load_ss(a.wrapping_add(i).cast()));
                    let word = pairs_of(_mm512_broadcastd_epi32(word));
                    acc[0] = _mm512_dpbf16_ps(acc[0], word, b0);
                    acc[1] = _mm512_dpbf16_ps(acc[1], word, b1);
                }
                a = a.wrapping_add(R);
                b = b.wrapping_add(PANEL);
            }
            for (i, acc) in acc.iter().enumerate() {
                let sum = sums.wrapping_add(i).cast::<f32>();
                _mm512_storeu_ps(sum, acc[0]);
                _mm512_storeu_ps(sum.wrapping_add(16), acc[1]);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    fn pairs_of(words: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits of anything.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
    }
}
