//! Weights in GGML's blocks: some bits for each number, and scales for 32 or 256 of them.
//!
//! A weight `[k, n]` has blocks along `k`. In memory the blocks of 32 columns are interleaved into a record ([`layout`]), so that
//! one register holds the same number of several columns, and unpacking ([`unpack`]) is shifts, a conversion and a multiplication
//! with a register of scales. The numbers are those that [`crate::load::gguf::dequantise`] gives, to the bit; products take them
//! in the order in which they take plain weights.

#[cfg(target_arch = "x86_64")]
pub mod few;
pub mod layout;
pub mod make;
pub mod pack;
pub mod unpack;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::ops::Range;

use layout::Form;

use super::aligned::Aligned;
use super::dispatch::Isa;
use super::panels::{CELL, PANEL};
use super::tile::Ahead;

/// A weight in records, panel by panel, from the first input to the last.
#[derive(Debug)]
pub struct Quantised {
    form: Form,
    k: usize,
    records: Aligned<u32>,
}

impl Quantised {
    /// Records of `form`; `k` is a multiple of its block.
    pub fn new(form: Form, k: usize, records: Aligned<u32>) -> Self {
        Self { form, k, records }
    }

    /// The kind of blocks.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Rows `PANEL·strip..` of panel `p`, [`PANEL`] numbers each, as `f32`.
    pub fn unpack(&self, found: Isa, p: usize, strip: usize, to: &mut [f32; CELL]) {
        let (record, part) = self.record(p, strip);
        unpack::unpack(found, self.form, &self.records.as_slice()[record], part, to);
    }

    /// The record of rows `PANEL·strip..` of panel `p`, for kinds whose blocks are of [`PANEL`] numbers.
    pub fn record_of(&self, p: usize, strip: usize) -> &[u32] {
        &self.records.as_slice()[self.record(p, strip).0]
    }

    /// The records of panel `p`.
    pub fn panel(&self, p: usize) -> &[u32] {
        let words = self.k / self.form.block() * self.form.words();
        &self.records.as_slice()[p * words..][..words]
    }

    /// The memory that [`Quantised::unpack`] reads; any place will do.
    pub fn place(&self, p: usize, strip: usize) -> Ahead {
        let (record, part) = self.record(p, strip);
        let first = record.start + self.form.cell(part).start;
        let bytes = self.form.cell(0).len() * size_of::<u32>();
        Ahead::spread(self.records.as_slice().as_ptr().wrapping_add(first), bytes)
    }

    /// Where the record lies that holds a cell, and which of its cells that is.
    fn record(&self, p: usize, strip: usize) -> (Range<usize>, usize) {
        let (cells, words) = (self.form.cells(), self.form.words());
        let index = p * (self.k / (cells * PANEL)) + strip / cells;
        (index * words..(index + 1) * words, strip % cells)
    }
}

#[cfg(test)]
mod oracle;
