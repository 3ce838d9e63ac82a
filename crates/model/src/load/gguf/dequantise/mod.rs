//! GGML's blocks to `f32`, equal to the bit to `gguf.quants.dequantize` of the `gguf` Python package.
//!
//! Products and sums are taken in the package's order, each rounded to `f32`. Plain and 32-number blocks are here,
//! the 256-number ones in [`k_quants`].

pub mod bits;
mod k_quants;

use half::{bf16, f16};

use super::kind::Kind;
use bits::{five_bits, nibbles};

/// Appends the numbers of whole blocks to `out`; bytes after the last whole block are passed over.
pub fn dequantise(kind: Kind, bytes: &[u8], out: &mut Vec<f32>) {
    match kind {
        Kind::F32 => each(bytes, |block: &[u8; 4]| out.push(f32::from_le_bytes(*block))),
        Kind::F16 => each(bytes, |block: &[u8; 2]| out.push(f16::from_le_bytes(*block).to_f32())),
        Kind::BF16 => each(bytes, |block: &[u8; 2]| out.push(bf16::from_le_bytes(*block).to_f32())),
        Kind::Q8_0 => each(bytes, |block| q8_0(block, out)),
        Kind::Q4_0 => each(bytes, |block| q4_0(block, out)),
        Kind::Q4_1 => each(bytes, |block| q4_1(block, out)),
        Kind::Q5_0 => each(bytes, |block| q5_0(block, out)),
        Kind::Q5_1 => each(bytes, |block| q5_1(block, out)),
        Kind::Q2_K => each(bytes, |block| k_quants::q2_k(block, out)),
        Kind::Q3_K => each(bytes, |block| k_quants::q3_k(block, out)),
        Kind::Q4_K => each(bytes, |block| k_quants::q4_k(block, out)),
        Kind::Q5_K => each(bytes, |block| k_quants::q5_k(block, out)),
        Kind::Q6_K => each(bytes, |block| k_quants::q6_k(block, out)),
    }
}

fn each<const N: usize>(bytes: &[u8], mut with: impl FnMut(&[u8; N])) {
    for block in bytes.as_chunks().0 {
        with(block);
    }
}

/// The half-precision number in the first two bytes.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// `scale: f16 | 32 × i8`
fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let scale = half(block);
    out.extend(block[2..].iter().map(|q| f32::from(*q as i8) * scale));
}

/// `scale: f16 | 32 × 4 bits`, the numbers less 8.
fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let scale = half(block);
    out.extend(nibbles(&block[2..]).map(|q| scale * f32::from(q as i8 - 8)));
}

/// `scale: f16 | minimum: f16 | 32 × 4 bits`
fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let (scale, least) = (half(block), half(&block[2..]));
    out.extend(nibbles(&block[4..]).map(|q| scale * f32::from(q) + least));
}

/// `scale: f16 | 32 fifth bits | 32 × 4 bits`, the numbers less 16.
fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let scale = half(block);
    out.extend(five_bits(&block[2..]).map(|q| scale * f32::from(q as i8 - 16)));
}

/// `scale: f16 | minimum: f16 | 32 fifth bits | 32 × 4 bits`
fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let (scale, least) = (half(block), half(&block[2..]));
    out.extend(five_bits(&block[4..]).map(|q| scale * f32::from(q) + least));
}
