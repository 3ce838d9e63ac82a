//! A few rows times records of `Q8_0` or `Q4_0`, which are unpacked within the registers: with AVX-512, for products that wait for
//! memory.
//!
//! Forward, a register holds 16 columns, as a record has them. Backward, it holds 16 inputs of one column: the words of four
//! planes are turned over first. Scale times number is exact in `f32` for both kinds, so the products and their order are
//! those of unpacked weights.

use std::arch::x86_64::*;

use super::super::panels::PANEL;
use super::super::tile::Ahead;
use super::layout::Form;

/// Columns, or inputs, of a register.
const WIDTH: usize = 16;
/// Words of a record's scales.
const HEAD: usize = PANEL / 2;
/// Bytes fetched ahead of use.
const AHEAD: usize = 3 << 10;

/// Whether blocks are of these kinds.
pub fn applies(form: Form) -> bool {
    matches!(form, Form::Q8_0 | Form::Q4_0)
}

/// Calls `$function::<eight bits?, rows>`.
macro_rules! by_form_and_rows {
    ($form:expr, $rows:expr, $function:ident $args:tt, [$($n:literal)*]) => {
        match ($form, $rows) {
            $((Form::Q8_0, $n) => $function::<true, $n> $args,)*
            $((Form::Q4_0, $n) => $function::<false, $n> $args,)*
            (form, rows) => unreachable!("{rows} rows of {form:?}"),
        }
    };
}

/// `sums = a · panel` for a panel's `records`; `a` holds the rows by columns, at most 8. For what [`applies`].
///
/// # Safety
/// The CPU has AVX-512F and BW.
pub unsafe fn forward(form: Form, records: &[u32], a: &[f32], sums: &mut [[f32; PANEL]]) {
    let (rows, count) = (sums.len(), records.len() / form.words());
    assert!(records.len() == count * form.words() && a.len() == count * PANEL * rows, "{rows} rows do not fit");
    let (records, a, sums) = (records.as_ptr(), a.as_ptr(), sums.as_mut_ptr());
    // SAFETY: the sizes were checked; the features are the caller's.
    unsafe { by_form_and_rows!(form, rows, forward_rows(records, count, a, sums), [1 2 3 4 5 6 7 8]) }
}

/// The chains of a record's sums go on: `sums[r][i] += Σⱼ g[j][r]·w[i][j]`, `j` ascending over the rows of `g [·, rows]`;
/// `fresh` sums begin at zero. They lie as [`in_order`] expects them. `ahead` is fetched meanwhile. For what [`applies`].
///
/// # Safety
/// The CPU has AVX-512F and BW.
pub unsafe fn backward(form: Form, record: &[u32], g: &[f32], ahead: Ahead, sums: &mut [[f32; PANEL]], fresh: bool) {
    let rows = sums.len();
    let columns = g.len() / rows;
    assert!(record.len() == form.words() && columns <= PANEL, "{columns} columns do not fit");
    let (record, g, sums) = (record.as_ptr(), g.as_ptr(), sums.as_mut_ptr());
    // SAFETY: as above.
    unsafe {
        by_form_and_rows!(form, rows, backward_rows(record, columns, g, ahead, sums, fresh), [1 2 3 4 5 6 7 8]);
    }
}

/// Puts the sums of [`backward`] into the order of inputs.
pub fn in_order(form: Form, sums: &mut [[f32; PANEL]]) {
    if form != Form::Q4_0 {
        return;
    }
    for sums in sums {
        let mixed = *sums;
        for (input, sum) in sums.iter_mut().enumerate() {
            // Lane `l` of a half has word `l mod 4`, and of that nibble `l / 4`, in the second half four further on.
            let (word, nibble) = (input / 8, input % 8);
            *sum = mixed[nibble / 4 * WIDTH + nibble % 4 * 4 + word];
        }
    }
}

/// # Safety
/// `count` records, `a` with `R` numbers for each of their inputs, `R` rows of sums; the CPU has AVX-512F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn forward_rows<const EIGHT: bool, const R: usize>(
    records: *const u32,
    count: usize,
    a: *const f32,
    sums: *mut [f32; PANEL],
) {
    let planes = if EIGHT { 8 } else { 4 };
    let (mut record, mut a) = (records, a);
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    for _ in 0..count {
        // SAFETY: the record is whole: 32 halves of scales, then 32 words for each plane; fetching is harmless anywhere.
        unsafe {
            fetch(record);
            // Bytes are taken 2²⁴ times.
            let unit = _mm512_set1_ps(if EIGHT { 1.0 / (1 << 24) as f32 } else { 1.0 });
            let scale = [_mm512_mul_ps(scales(record), unit), _mm512_mul_ps(scales(record.add(WIDTH / 2)), unit)];
            record = record.add(HEAD);
            for _ in 0..planes {
                fetch(record);
                fetch(record.wrapping_add(WIDTH));
                let x = [load(record), load(record.wrapping_add(WIDTH))];
                macro_rules! inputs {
                    ($($part:literal)*) => {
                        $(input::<EIGHT, R, $part>(x, scale, a.wrapping_add($part * R), &mut acc);)*
                    };
                }
                if EIGHT {
                    inputs!(0 1 2 3);
                    a = a.wrapping_add(4 * R);
                } else {
                    inputs!(0 1 2 3 4 5 6 7);
                    a = a.wrapping_add(8 * R);
                }
                record = record.wrapping_add(PANEL);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        // SAFETY: there are `R` rows of sums.
        unsafe {
            let sum = sums.add(r).cast::<f32>();
            _mm512_storeu_ps(sum, acc[0]);
            _mm512_storeu_ps(sum.add(WIDTH), acc[1]);
        }
    }
}

/// One input of all columns.
///
/// # Safety
/// `a` holds `R` numbers; the CPU has AVX-512F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn input<const EIGHT: bool, const R: usize, const PART: usize>(
    x: [__m512i; 2],
    scale: [__m512; 2],
    a: *const f32,
    acc: &mut [[__m512; 2]; R],
) {
    let weight = |half: usize| {
        let number = if EIGHT {
            upper_byte::<PART>(x[half])
        } else {
            nibble(x[half], _mm512_set1_epi32(4 * PART as i32), less_8())
        };
        _mm512_mul_ps(number, scale[half])
    };
    let weights = [weight(0), weight(1)];
    for (r, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's.
        let value = unsafe { spread(a.wrapping_add(r)) };
        acc[0] = _mm512_fmadd_ps(value, weights[0], acc[0]);
        acc[1] = _mm512_fmadd_ps(value, weights[1], acc[1]);
    }
}

/// # Safety
/// A whole record, `g` with `R` numbers for each of `columns`, at most 32; `R` rows of sums; the CPU has AVX-512F and
/// BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn backward_rows<const EIGHT: bool, const R: usize>(
    record: *const u32,
    columns: usize,
    g: *const f32,
    mut ahead: Ahead,
    sums: *mut [f32; PANEL],
    fresh: bool,
) {
    let quarters = if EIGHT { 2 } else { 1 };
    let mut turned = Lines([0; 8 * PANEL]);
    let mut scale = [0.0f32; PANEL];
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: the record is whole; the buffers hold two or four runs of four registers, and 32 scales.
    unsafe {
        for half in 0..2 {
            _mm512_storeu_ps(scale.as_mut_ptr().add(half * WIDTH), scales(record.add(half * WIDTH / 2)));
            for quarter in 0..quarters {
                let planes = record.add(HEAD + quarter * 4 * PANEL + half * WIDTH);
                let x =
                    [load(planes), load(planes.add(PANEL)), load(planes.add(2 * PANEL)), load(planes.add(3 * PANEL))];
                let to = turned.0.as_mut_ptr().add((half * quarters + quarter) * 4 * WIDTH);
                for (k, x) in squares_of_words(x).into_iter().enumerate() {
                    _mm512_store_si512(to.add(k * WIDTH).cast(), x);
                }
            }
        }
        if !fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                let sum = sums.add(r).cast::<f32>();
                *acc = [_mm512_loadu_ps(sum), _mm512_loadu_ps(sum.add(WIDTH))];
            }
        }
        let first = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(16));
        let table = less_8();
        for j in 0..columns {
            ahead.fetch();
            // Column `16·half + 4·l + k` is quarter `l` of register `k`.
            let (half, l, k) = (j / WIDTH, j % WIDTH / 4, j % 4);
            let words = turned.0.as_ptr().wrapping_add(half * quarters * 4 * WIDTH + k * WIDTH + l * 4);
            let scale = spread(scale.as_ptr().wrapping_add(j));
            let weights = if EIGHT {
                let number = |quarter: usize| {
                    let bytes = _mm_load_si128(words.wrapping_add(quarter * 4 * WIDTH).cast());
                    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale)
                };
                [number(0), number(1)]
            } else {
                let x = _mm512_broadcast_i32x4(_mm_load_si128(words.cast()));
                let table = _mm512_mul_ps(table, scale);
                [nibble(x, first, table), nibble(x, second, table)]
            };
            let g = g.wrapping_add(j * R);
            for (r, acc) in acc.iter_mut().enumerate() {
                let value = spread(g.wrapping_add(r));
                acc[0] = _mm512_fmadd_ps(value, weights[0], acc[0]);
                acc[1] = _mm512_fmadd_ps(value, weights[1], acc[1]);
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let sum = sums.add(r).cast::<f32>();
            _mm512_storeu_ps(sum, acc[0]);
            _mm512_storeu_ps(sum.add(WIDTH), acc[1]);
        }
    }
}

/// Words from the beginning of a cache line on.
#[repr(align(64))]
struct Lines([u32; 8 * PANEL]);

/// # Safety
/// `words` holds 16.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load(words: *const u32) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_loadu_si512(words.cast()) }
}

/// 16 scales.
///
/// # Safety
/// `words` holds 8.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn scales(words: *const u32) -> __m512 {
    // SAFETY: the caller's.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(words.cast()) })
}

/// A number in all lanes; by an intrinsic, as the development profile would check each access.
///
/// # Safety
/// `number` is one.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn spread(number: *const f32) -> __m512 {
    // SAFETY: the caller's.
    _mm512_broadcastss_ps(unsafe { _mm_load_ss(number) })
}

#[inline(always)]
fn fetch(record: *const u32) {
    // SAFETY: fetching is harmless anywhere; SSE is part of the architecture.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(record.cast::<i8>().wrapping_add(AHEAD)) };
}

/// The signed byte `PART` of each word, times 2²⁴: shifted to the top in one instruction.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn upper_byte<const PART: usize>(x: __m512i) -> __m512 {
    const NONE: i32 = 0x80;
    // Of each word's bytes the last comes from byte `PART`; the others are zero.
    let last = |byte: i32| {
        let zeros = NONE | NONE << 8 | NONE << 16;
        let word = |first: i32| zeros | (first + byte) << 24;
        _mm512_broadcast_i32x4(_mm_setr_epi32(word(0), word(4), word(8), word(12)))
    };
    let top = match PART {
        0 => _mm512_slli_epi32::<24>(x),
        1 => _mm512_shuffle_epi8(x, last(1)),
        2 => _mm512_shuffle_epi8(x, last(2)),
        _ => _mm512_and_si512(x, _mm512_set1_epi32(0xff << 24)),
    };
    _mm512_cvtepi32_ps(top)
}

/// What `table` has for four bits of each word, from bit `shift` on.
#[target_feature(enable = "avx512f")]
#[inline]
fn nibble(x: __m512i, shift: __m512i, table: __m512) -> __m512 {
    // Only the lowest four bits of an index count.
    _mm512_permutexvar_ps(_mm512_srlv_epi32(x, shift), table)
}

/// The numbers of four bits, less 8.
#[target_feature(enable = "avx512f")]
#[inline]
fn less_8() -> __m512 {
    _mm512_setr_ps(-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
}

/// Quarter `l` of register `k` becomes word `4·l + k` of each register.
#[target_feature(enable = "avx512f")]
#[inline]
fn squares_of_words(x: [__m512i; 4]) -> [__m512i; 4] {
    let upper = [_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1])];
    let lower = [_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3])];
    [
        _mm512_unpacklo_epi64(upper[0], lower[0]),
        _mm512_unpackhi_epi64(upper[0], lower[0]),
        _mm512_unpacklo_epi64(upper[1], lower[1]),
        _mm512_unpackhi_epi64(upper[1], lower[1]),
    ]
}
