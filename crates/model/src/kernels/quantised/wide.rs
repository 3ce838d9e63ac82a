//! [`super::unpack`] of the two kinds that are made while loading, in AVX-512's instructions: the compiler's vectors of the
//! plain loops are several times slower there.

use std::arch::x86_64::*;

use super::super::panels::{CELL, PANEL};
use super::layout::Form;

/// Columns of a register.
const WIDTH: usize = 16;

/// Writes a record of `Q8_0` or `Q4_0`; false for the other kinds, which are left to the plain loops.
///
/// # Safety
/// The CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
pub unsafe fn unpack(form: Form, record: &[u32], to: &mut [f32; CELL]) -> bool {
    assert_eq!(record.len(), form.words(), "not a record of {form:?}");
    let planes = record[form.head()..].as_ptr();
    for half in 0..2 {
        // SAFETY: the record is whole: 32 halves of scales, then 32 words for each plane; `to` has a row of 32 for each input.
        unsafe {
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(record.as_ptr().add(half * WIDTH / 2).cast()));
            let words = |w: usize| _mm512_loadu_si512(planes.add(w * PANEL + half * WIDTH).cast());
            let to = to.as_mut_ptr().add(half * WIDTH);
            match form {
                Form::Q8_0 => {
                    for w in 0..8 {
                        let (x, to) = (words(w), to.add(4 * w * PANEL));
                        store(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(x)), scale, to);
                        store(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(x)), scale, to.add(PANEL));
                        store(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(x)), scale, to.add(2 * PANEL));
                        store(_mm512_srai_epi32::<24>(x), scale, to.add(3 * PANEL));
                    }
                }
                Form::Q4_0 => {
                    for w in 0..4 {
                        let (x, to) = (words(w), to.add(8 * w * PANEL));
                        store(nibble(x), scale, to);
                        store(nibble(_mm512_srli_epi32::<4>(x)), scale, to.add(PANEL));
                        store(nibble(_mm512_srli_epi32::<8>(x)), scale, to.add(2 * PANEL));
                        store(nibble(_mm512_srli_epi32::<12>(x)), scale, to.add(3 * PANEL));
                        store(nibble(_mm512_srli_epi32::<16>(x)), scale, to.add(4 * PANEL));
                        store(nibble(_mm512_srli_epi32::<20>(x)), scale, to.add(5 * PANEL));
                        store(nibble(_mm512_srli_epi32::<24>(x)), scale, to.add(6 * PANEL));
                        store(nibble(_mm512_srli_epi32::<28>(x)), scale, to.add(7 * PANEL));
                    }
                }
                _ => return false,
            }
        }
    }
    true
}

/// The lowest four bits, less 8.
#[target_feature(enable = "avx512f")]
#[inline]
fn nibble(x: __m512i) -> __m512i {
    _mm512_sub_epi32(_mm512_and_si512(x, _mm512_set1_epi32(15)), _mm512_set1_epi32(8))
}

/// # Safety
/// `to` has room for a register.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store(x: __m512i, scale: __m512, to: *mut f32) {
    // SAFETY: the caller's.
    unsafe { _mm512_storeu_ps(to, _mm512_mul_ps(_mm512_cvtepi32_ps(x), scale)) };
}
