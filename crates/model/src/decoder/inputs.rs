//! The input of the first block: token and external embeddings, plus positions where they are learnt. Rows are made on the host,
//! or on the device where they are one embedding many times.

use burn::tensor::{Tensor, TensorData};

use super::Decoder;
use crate::error::ModelError;
use crate::lm::{LmInput, Piece, positions};
use crate::ops::FrozenOps;
use crate::ops::sequences::Sequences;

/// Fewer rows of one embedding than this cost the host less than two kernels cost a device.
const LEAST_REPEATS: usize = 16;

/// What the rows of the first block are made of.
pub(super) enum Inputs {
    /// `[r, d]`, made on the host.
    Rows(Vec<f32>),
    /// Every sequence is one external embedding, in order, this many times: the device makes the rows.
    Repeated(usize),
}

/// The input of the first block.
pub(super) struct Embedded {
    pub inputs: Inputs,
    pub sequences: Sequences,
    /// For each external embedding, the rows it fills, ascending.
    pub rows_of_embedding: Vec<Vec<usize>>,
    /// Whether an external embedding fills the row.
    pub external: Vec<bool>,
}

impl<B: FrozenOps> Decoder<B> {
    /// How often each embedding is repeated, if every sequence is one of them, in order, and the device makes so many rows faster
    /// than the host.
    fn repeated(input: &LmInput, rows_given: usize) -> Option<usize> {
        if !B::REPEATS_ROWS || input.sequences.len() != rows_given {
            return None;
        }
        let mut each = None;
        for (index, sequence) in input.sequences.iter().enumerate() {
            match sequence[..] {
                [Piece::Embedding { row, repeat }] if row == index && *each.get_or_insert(repeat) == repeat => (),
                _ => return None,
            }
        }
        each.filter(|each| *each >= LEAST_REPEATS)
    }

    /// Token and external embeddings, plus positions where they are learnt.
    pub(super) fn embed(&self, input: &LmInput) -> Result<Embedded, ModelError> {
        let d = self.parts.hidden_size;
        let rows_given = input.embeddings.len() / d;
        let mut lengths = Vec::with_capacity(input.sequences.len());
        let mut rows_of_embedding = vec![Vec::new(); rows_given];
        let (mut x, mut external) = (Vec::new(), Vec::new());
        let mut token = vec![0.0f32; d];
        let repeated = Self::repeated(input, rows_given);
        for sequence in &input.sequences {
            let length = positions(sequence);
            if length == 0 {
                return Err(ModelError::Empty);
            }
            let most = self.parts.max_positions;
            if length > most {
                return Err(ModelError::TooLong { positions: length, most });
            }
            lengths.push(length);
            let mut position = 0;
            for piece in sequence {
                match piece {
                    Piece::Tokens(ids) => {
                        for id in ids {
                            self.copy_token_row(*id, &mut token)?;
                            self.push_row(&mut x, &token, position);
                            external.push(false);
                            position += 1;
                        }
                    }
                    Piece::Embedding { row, repeat } => {
                        let Some(embedding) = input.embeddings.get(row * d..(row + 1) * d) else {
                            return Err(ModelError::NoSuchEmbedding { row: *row, rows: rows_given });
                        };
                        for _ in 0..*repeat {
                            rows_of_embedding[*row].push(external.len());
                            if repeated.is_none() {
                                self.push_row(&mut x, embedding, position);
                            }
                            external.push(true);
                            position += 1;
                        }
                    }
                }
            }
        }
        if lengths.is_empty() {
            return Err(ModelError::Empty);
        }
        let inputs = repeated.map_or(Inputs::Rows(x), Inputs::Repeated);
        Ok(Embedded { inputs, sequences: Sequences::all(lengths), rows_of_embedding, external })
    }

    /// The rows of the first block, on its device.
    pub(super) fn first_rows(&mut self, inputs: Inputs, embeddings: &[f32]) -> Tensor<B, 2> {
        let d = self.parts.hidden_size;
        let device = self.placement.device(0).clone();
        let rows_of = |x: Vec<f32>| {
            let rows = x.len() / d;
            Tensor::from_data(TensorData::new(x, [rows, d]), &device)
        };
        match inputs {
            Inputs::Rows(x) => rows_of(x),
            Inputs::Repeated(each) => {
                if let Some(table) = &self.parts.position_table
                    && self.positions.as_ref().is_none_or(|rows| rows.dims()[0] < each)
                {
                    let mut rows = vec![0.0f32; each * d];
                    for (position, row) in rows.chunks_exact_mut(d).enumerate() {
                        table.copy_row(position, row);
                    }
                    self.positions = Some(rows_of(rows));
                }
                B::repeat_rows(rows_of(embeddings.to_vec()), self.positions.as_ref(), each)
            }
        }
    }

    fn push_row(&self, x: &mut Vec<f32>, embedding: &[f32], position: usize) {
        let d = self.parts.hidden_size;
        let start = x.len();
        x.resize(start + d, 0.0);
        let row = &mut x[start..];
        match &self.parts.position_table {
            None => row.copy_from_slice(embedding),
            Some(table) => {
                table.copy_row(position, row);
                for (place, e) in row.iter_mut().zip(embedding) {
                    *place += e;
                }
            }
        }
    }
}
