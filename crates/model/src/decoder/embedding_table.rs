//! The tables of token and position embeddings, on the host: a step needs a few rows of them.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use numalign_config::Dtype;

use crate::kernels::vocabulary;

/// Rows of `width` numbers.
pub struct EmbeddingTable {
    width: usize,
    numbers: Numbers,
}

enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl EmbeddingTable {
    /// No rows yet, with room for `rows`; beside quantised weights they are held in `f32`.
    pub fn with_capacity(rows: usize, width: usize, dtype: Dtype) -> Self {
        let count = rows * width;
        let numbers = match dtype {
            Dtype::Bf16 => Numbers::Bf16(Vec::with_capacity(count)),
            Dtype::F16 => Numbers::F16(Vec::with_capacity(count)),
            _ => Numbers::F32(Vec::with_capacity(count)),
        };
        Self { width, numbers }
    }

    /// Appends numbers, rounded to the table's type.
    pub fn extend(&mut self, values: &[f32]) {
        match &mut self.numbers {
            Numbers::F32(numbers) => numbers.extend_from_slice(values),
            Numbers::Bf16(numbers) => numbers.extend(values.iter().map(|value| bf16::from_f32(*value))),
            Numbers::F16(numbers) => numbers.extend(values.iter().map(|value| f16::from_f32(*value))),
        }
    }

    /// Whole rows.
    pub fn rows(&self) -> usize {
        self.len() / self.width
    }

    /// Numbers in all.
    pub fn numbers(&self) -> u64 {
        self.len() as u64
    }

    fn len(&self) -> usize {
        match &self.numbers {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::Bf16(numbers) => numbers.len(),
            Numbers::F16(numbers) => numbers.len(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let each = if matches!(self.numbers, Numbers::F32(_)) { 4 } else { 2 };
        each * self.len() as u64
    }

    /// Row `row` into `out`; false if there is no such row.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) -> bool {
        if row >= self.rows() {
            return false;
        }
        let range = row * self.width..(row + 1) * self.width;
        match &self.numbers {
            Numbers::F32(numbers) => out.copy_from_slice(&numbers[range]),
            Numbers::Bf16(numbers) => numbers[range].convert_to_f32_slice(out),
            Numbers::F16(numbers) => numbers[range].convert_to_f32_slice(out),
        }
        true
    }

    /// The scalar product of every row with each of `hidden [n, width]`, `[n, rows]`.
    pub fn scores(&self, hidden: &[f32]) -> Vec<f32> {
        vocabulary::scores(hidden, self.rows(), self.width, |row, out| {
            self.copy_row(row, out);
        })
    }
}
