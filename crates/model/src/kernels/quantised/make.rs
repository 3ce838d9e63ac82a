//! Blocks from `f32`, rounded as GGML's reference code rounds: `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref` of
//! `ggml-quants.c`, and `gguf.quants.quantize` of the `gguf` Python package.

use half::f16;

use super::super::panels::PANEL;
use super::Quantised;
use super::layout::Form;
use super::pack::{Block, pack};

/// Packs `b [k, n]`, element `(i, j)` at `i·row_stride + j·column_stride`, in blocks of `form`, [`Form::Q8_0`] or
/// [`Form::Q4_0`]. `k` is a multiple of 32.
pub fn from_f32(form: Form, b: &[f32], k: usize, n: usize, row_stride: usize, column_stride: usize) -> Quantised {
    pack(form, k, n, |column, index| {
        let number = |i: usize| b[(index * PANEL + i) * row_stride + column * column_stride];
        block(form, std::array::from_fn(number))
    })
}

/// One block.
pub fn block(form: Form, values: [f32; PANEL]) -> Block {
    let mut block = Block::zero();
    if form == Form::Q8_0 {
        let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block.scale = f16::from_f32(scale).to_bits();
        for (to, value) in block.numbers.iter_mut().zip(values) {
            *to = ((value * inverse).round() as i8).cast_unsigned();
        }
        return block;
    }
    // The number that is largest in size becomes −8.
    let largest = values.iter().fold(0.0f32, |most, value| if value.abs() > most.abs() { *value } else { most });
    let scale = largest / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    block.scale = f16::from_f32(scale).to_bits();
    for (to, value) in block.numbers.iter_mut().zip(values) {
        // In `f64` as the Python package has it; the C code's last bit depends on the compiler.
        *to = (f64::from(value) * f64::from(inverse) + 8.5).clamp(0.0, 15.0) as u8;
    }
    block
}
