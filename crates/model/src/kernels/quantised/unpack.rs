//! From a record's cell to 32 rows of `f32`.
//!
//! Plain loops over 32 columns, compiled for each instruction set. Every number is one conversion, one multiplication and, where
//! there is a minimum, one addition, each rounded: no fused multiply-add, since GGML has none.

use super::super::dispatch::{Isa, multiversion};
use super::super::panels::{CELL, PANEL};
use super::layout::Form;

/// One number per column.
type Row = [f32; PANEL];

/// Writes the cell `part` of `record`: a row for each of its inputs.
pub fn unpack(found: Isa, form: Form, record: &[u32], part: usize, to: &mut [f32; CELL]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an `Isa` of this kind is only made after the CPU reported the feature.
    if found == Isa::Avx512 && unsafe { super::wide::unpack(form, record, to) } {
        return;
    }
    run(found, form, record, part, to);
}

multiversion! {
    fn run(form: Form, record: &[u32], part: usize, to: &mut [f32; CELL]) => body
}

#[inline(always)]
fn body(form: Form, record: &[u32], part: usize, to: &mut [f32; CELL]) {
    let cell = &record[form.cell(part)];
    let (scales, planes) = cell.split_at(form.cell_scales() * PANEL / 4);
    let scale = halves(&record[..PANEL / 2]);
    let (rows, _) = to.as_chunks_mut::<PANEL>();
    match form {
        Form::Q8_0 => eight_bits(planes, &scale, rows),
        Form::Q4_0 => low_bits::<0, false>(planes, 8, &[scale; 2], &scale, rows),
        Form::Q5_0 => low_bits::<1, false>(planes, 16, &[scale; 2], &scale, rows),
        Form::Q4_1 => low_bits::<0, true>(planes, 0, &[scale; 2], &halves(&record[PANEL / 2..PANEL]), rows),
        Form::Q5_1 => low_bits::<1, true>(planes, 0, &[scale; 2], &halves(&record[PANEL / 2..PANEL]), rows),
        Form::Q4_K | Form::Q5_K => {
            let (factors, minima) = scales.split_at(PANEL / 4);
            let scale = scaled(&scale, factors, f32::from);
            let minimum = scaled(&halves(&record[PANEL / 2..PANEL]), minima, f32::from);
            let added = minimum.map(|minimum| -minimum);
            match form {
                Form::Q4_K => low_bits::<0, true>(planes, 0, &[scale; 2], &added, rows),
                _ => low_bits::<1, true>(planes, 0, &[scale; 2], &added, rows),
            }
        }
        Form::Q6_K => {
            let (first, second) = scales.split_at(PANEL / 4);
            let groups = [first, second].map(|factors| scaled(&scale, factors, |byte| f32::from(byte as i8)));
            low_bits::<2, false>(planes, 32, &groups, &scale, rows);
        }
    }
}

/// Halves of words as `f32`: the number of column `2·w` in the lower half of word `w`. Neither infinite nor NaN, as such
/// weights are refused before.
#[inline(always)]
fn halves(words: &[u32]) -> Row {
    const TWO_TO_112: f32 = f32::from_bits((112 + 127) << 23);
    let mut out = [0.0; PANEL];
    for (out, word) in out.chunks_exact_mut(2).zip(words) {
        for (half, out) in out.iter_mut().enumerate() {
            let bits = word >> (16 * half) & 0xffff;
            // The exponent's bias is 15 there and 127 here; below the normal numbers this is exact as well.
            let size = f32::from_bits((bits & 0x7fff) << 13) * TWO_TO_112;
            *out = f32::from_bits(size.to_bits() | (bits & 0x8000) << 16);
        }
    }
    out
}

/// Each column's number times its byte.
#[inline(always)]
fn scaled(row: &Row, bytes: &[u32], number: impl Fn(u8) -> f32) -> Row {
    let mut out = *row;
    for (out, word) in out.chunks_exact_mut(4).zip(bytes) {
        for (out, byte) in out.iter_mut().zip(word.to_le_bytes()) {
            *out *= number(byte);
        }
    }
    out
}

/// Signed bytes.
#[inline(always)]
fn eight_bits(plane: &[u32], scale: &Row, rows: &mut [Row]) {
    for (words, rows) in plane.as_chunks::<PANEL>().0.iter().zip(rows.chunks_exact_mut(4)) {
        for (byte, row) in rows.iter_mut().enumerate() {
            for j in 0..PANEL {
                let q = (words[j] << (24 - 8 * byte)).cast_signed() >> 24;
                row[j] = q as f32 * scale[j];
            }
        }
    }
}

/// Four bits and `HIGH` above them, less `offset`; scales for the first 16 inputs and for the others.
#[inline(always)]
fn low_bits<const HIGH: usize, const ADDED: bool>(
    planes: &[u32],
    offset: i32,
    scales: &[Row; 2],
    added: &Row,
    rows: &mut [Row],
) {
    let (low, high) = planes.split_at(4 * PANEL);
    let (low, high) = (low.as_chunks::<PANEL>().0, high.as_chunks::<PANEL>().0);
    for (w, rows) in rows.chunks_exact_mut(8).enumerate() {
        let (words, scale) = (&low[w], &scales[w / 2]);
        for (nibble, row) in rows.iter_mut().enumerate() {
            for j in 0..PANEL {
                let mut q = words[j] >> (4 * nibble) & 15;
                if HIGH == 1 {
                    q |= (high[0][j] >> (8 * w + nibble) & 1) << 4;
                }
                if HIGH == 2 {
                    q |= (high[w / 2][j] >> (2 * (8 * (w % 2) + nibble)) & 3) << 4;
                }
                let value = (q.cast_signed() - offset) as f32 * scale[j];
                row[j] = if ADDED { value + added[j] } else { value };
            }
        }
    }
}
