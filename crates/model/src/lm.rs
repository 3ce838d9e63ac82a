//! The one interface between a frozen language model and the rest of numalign.
//!
//! Implemented by [`crate::gpt2::Gpt2`] for every backend; used by the worker and by the command line.
//! Everything crosses it as plain `f32` on the host, so that projectors, losses and reductions never
//! depend on a backend.

use crate::error::ModelError;

/// A stretch of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Token ids, embedded by the model's own table.
    Tokens(Vec<u32>),
    /// Row `row` of [`LmInput::embeddings`], at `repeat` consecutive positions.
    Embedding { row: usize, repeat: usize },
}

/// A batch of sequences and the external embeddings they refer to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LmInput {
    pub sequences: Vec<Vec<Piece>>,
    /// `[rows, hidden_size]`, row-major.
    pub embeddings: Vec<f32>,
}

/// Positions that `sequence` fills.
pub fn positions(sequence: &[Piece]) -> usize {
    let mut total = 0;
    for piece in sequence {
        total += match piece {
            Piece::Tokens(ids) => ids.len(),
            Piece::Embedding { repeat, .. } => *repeat,
        };
    }
    total
}

/// A frozen causal language model: nothing in it ever trains.
pub trait FrozenLm: Send {
    /// Width of embeddings and hidden states.
    fn hidden_size(&self) -> usize;

    /// Longest sequence.
    fn max_positions(&self) -> usize;

    /// Token ids of `text`.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, ModelError>;

    /// Rows of the token table, `[ids, hidden_size]`.
    fn embed_tokens(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError>;

    /// Final hidden state of the last position of each sequence, `[sequences, hidden_size]`.
    ///
    /// With `keep`, what [`FrozenLm::backward_to_embeddings`] needs is kept until the next call.
    fn forward(&mut self, input: &LmInput, keep: bool) -> Result<Vec<f32>, ModelError>;

    /// Gradient of each external embedding, `[rows of embeddings, hidden_size]`, summed over the positions that it
    /// fills in ascending order, given the gradient of the last kept forward's result.
    fn backward_to_embeddings(&mut self, grad_hidden: &[f32]) -> Result<Vec<f32>, ModelError>;

    /// Whether sequences of different samples may share a batch without changing a bit of any result.
    fn batches_freely(&self) -> bool;

    /// Every weight's fingerprint with the configuration's: a projector is valid for one base only.
    fn fingerprint(&self) -> blake3::Hash;

    /// Bytes of weights held.
    fn weight_bytes(&self) -> u64;

    /// Numbers in the model.
    fn parameters(&self) -> u64;
}
