//! How the blocks of 32 columns lie in a record.
//!
//! A record begins with the columns' scales, as `f16`, two to a word, and where there are minima with these. Then follow its
//! cells of 32 inputs: where a block of 256 has scales for parts of it, those, a byte for each column, and then planes of bits.
//! A plane has for each of its words the word of column 0, of column 1, …; word `w` of a plane of 4 bits holds inputs
//! `8·w..8·w + 8` of the cell, the first in the lowest bits.

use std::ops::Range;

use super::super::panels::PANEL;

/// A kind of blocks, named as GGML names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "GGML's own names")]
pub enum Form {
    /// `scale·q`, `q` of 8 bits.
    Q8_0,
    /// `scale·(q − 8)`, `q` of 4 bits.
    Q4_0,
    /// `scale·q + minimum`, `q` of 4 bits.
    Q4_1,
    /// `scale·(q − 16)`, `q` of 5 bits.
    Q5_0,
    /// `scale·q + minimum`, `q` of 5 bits.
    Q5_1,
    /// `scale·s·q − minimum·m` for each 32 of 256, `q` of 4 bits.
    Q4_K,
    /// `scale·s·q − minimum·m` for each 32 of 256, `q` of 5 bits.
    Q5_K,
    /// `scale·s·(q − 32)` for each 16 of 256, `q` of 6 bits.
    Q6_K,
}

impl Form {
    /// All of them.
    pub const ALL: [Form; 8] =
        [Form::Q8_0, Form::Q4_0, Form::Q4_1, Form::Q5_0, Form::Q5_1, Form::Q4_K, Form::Q5_K, Form::Q6_K];

    /// Numbers of a block.
    pub fn block(self) -> usize {
        self.cells() * PANEL
    }

    /// Cells of a record.
    pub fn cells(self) -> usize {
        match self {
            Form::Q4_K | Form::Q5_K | Form::Q6_K => 8,
            _ => 1,
        }
    }

    /// Whether each block has a minimum.
    pub fn has_minimum(self) -> bool {
        matches!(self, Form::Q4_1 | Form::Q5_1 | Form::Q4_K | Form::Q5_K)
    }

    /// Scales that a cell has for each column beside the block's: bytes.
    pub fn cell_scales(self) -> usize {
        match self {
            // A scale and a minimum.
            Form::Q4_K | Form::Q5_K => 2,
            // Two scales.
            Form::Q6_K => 2,
            _ => 0,
        }
    }

    /// Bits of a number above the fourth, or all eight.
    pub fn high_bits(self) -> usize {
        match self {
            Form::Q8_0 => 8,
            Form::Q4_0 | Form::Q4_1 | Form::Q4_K => 0,
            Form::Q5_0 | Form::Q5_1 | Form::Q5_K => 1,
            Form::Q6_K => 2,
        }
    }

    /// What is taken from a number before it is scaled.
    pub fn offset(self) -> i32 {
        match self {
            Form::Q4_0 => 8,
            Form::Q5_0 => 16,
            Form::Q6_K => 32,
            _ => 0,
        }
    }

    /// Words of a record's scales and minima.
    pub fn head(self) -> usize {
        PANEL / 2 * if self.has_minimum() { 2 } else { 1 }
    }

    /// Where the words of a record's cell lie.
    pub fn cell(self, index: usize) -> Range<usize> {
        let low = if self.high_bits() == 8 { 0 } else { 4 };
        let words = self.cell_scales() * PANEL / 4 + (low + self.high_bits()) * PANEL;
        self.head() + index * words..self.head() + (index + 1) * words
    }

    /// Words of a record.
    pub fn words(self) -> usize {
        self.cell(self.cells() - 1).end
    }
}
