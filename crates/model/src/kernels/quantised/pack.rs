//! From GGML's blocks, row after row, to records.

use rayon::prelude::*;

use super::super::aligned::Aligned;
use super::super::panels::PANEL;
use super::Quantised;
use super::layout::Form;
use crate::load::gguf::dequantise::bits;

/// The most numbers of a block.
const MOST: usize = 256;

/// One column's block as integers.
pub struct Block {
    /// The numbers as they are stored, before anything is taken from them; bytes of `Q8_0` are signed.
    pub numbers: [u8; MOST],
    /// An `f16`.
    pub scale: u16,
    /// An `f16`; 0 where there is none.
    pub minimum: u16,
    /// For each cell what [`Form::cell_scales`] counts.
    pub cell_scales: [[u8; 2]; 8],
}

impl Block {
    /// All zero.
    pub fn zero() -> Self {
        Self { numbers: [0; MOST], scale: 0, minimum: 0, cell_scales: [[0; 2]; 8] }
    }

    /// Reads a block of GGML.
    pub fn read(form: Form, bytes: &[u8]) -> Self {
        let mut block = Self::zero();
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut set = |values: &mut dyn Iterator<Item = u8>| {
            for (to, value) in block.numbers.iter_mut().zip(values) {
                *to = value;
            }
        };
        match form {
            Form::Q8_0 => set(&mut bytes[2..].iter().copied()),
            Form::Q4_0 => set(&mut bits::nibbles(&bytes[2..])),
            Form::Q4_1 => set(&mut bits::nibbles(&bytes[4..])),
            Form::Q5_0 => set(&mut bits::five_bits(&bytes[2..])),
            Form::Q5_1 => set(&mut bits::five_bits(&bytes[4..])),
            Form::Q4_K => set(&mut (0..8).flat_map(|group| bits::four_bits(&bytes[16..], group))),
            Form::Q5_K => set(&mut (0..8).flat_map(|group| bits::five_bits_of_256(bytes, group))),
            Form::Q6_K => set(&mut (0..MOST).map(|place| bits::six_bits(bytes, place))),
        }
        block.scale = word(if form == Form::Q6_K { 208 } else { 0 });
        if form.has_minimum() {
            block.minimum = word(2);
        }
        for (cell, scales) in block.cell_scales.iter_mut().enumerate().take(form.cells()) {
            match form {
                Form::Q4_K | Form::Q5_K => *scales = bits::scale_and_minimum(&bytes[4..16], cell).into(),
                Form::Q6_K => *scales = [bytes[192 + 2 * cell], bytes[193 + 2 * cell]],
                _ => {}
            }
        }
        block
    }
}

/// Packs the rows `outputs` of a weight `[outputs, k]` of GGML's blocks. `k` is a multiple of the form's block.
pub fn from_ggml(form: Form, bytes: &[u8], block_bytes: usize, k: usize, outputs: std::ops::Range<usize>) -> Quantised {
    let per_row = k / form.block();
    pack(form, k, outputs.len(), |column, index| {
        let at = ((outputs.start + column) * per_row + index) * block_bytes;
        Block::read(form, &bytes[at..at + block_bytes])
    })
}

/// Packs a weight `[k, n]`; `block` gives block `index` of a column.
pub fn pack(form: Form, k: usize, n: usize, block: impl Fn(usize, usize) -> Block + Sync) -> Quantised {
    let (words, per_panel) = (form.words(), k / form.block());
    let mut records = Aligned::zeroed(n.div_ceil(PANEL) * per_panel * words);
    records.as_mut_slice().par_chunks_exact_mut(words).enumerate().for_each(|(index, record)| {
        let (p, index) = (index / per_panel, index % per_panel);
        for lane in 0..PANEL.min(n - p * PANEL) {
            write(form, record, lane, &block(p * PANEL + lane, index));
        }
    });
    Quantised::new(form, k, records)
}

/// Writes one column's block into a record of zeros.
fn write(form: Form, record: &mut [u32], lane: usize, block: &Block) {
    let half = |value: u16| u32::from(value) << (16 * (lane % 2));
    record[lane / 2] |= half(block.scale);
    if form.has_minimum() {
        record[PANEL / 2 + lane / 2] |= half(block.minimum);
    }
    for part in 0..form.cells() {
        let cell = &mut record[form.cell(part)];
        let (scales, planes) = cell.split_at_mut(form.cell_scales() * PANEL / 4);
        for (scales, value) in scales.chunks_exact_mut(PANEL / 4).zip(block.cell_scales[part]) {
            scales[lane / 4] |= u32::from(value) << (8 * (lane % 4));
        }
        for (i, number) in block.numbers[part * PANEL..(part + 1) * PANEL].iter().enumerate() {
            let number = u32::from(*number);
            if form == Form::Q8_0 {
                planes[i / 4 * PANEL + lane] |= number << (8 * (i % 4));
                continue;
            }
            planes[i / 8 * PANEL + lane] |= (number & 15) << (4 * (i % 8));
            let (high, bits) = (number >> 4, form.high_bits());
            if let Some(per_word) = 32_usize.checked_div(bits) {
                planes[(4 + i / per_word) * PANEL + lane] |= high << (bits * (i % per_word));
            }
        }
    }
}
