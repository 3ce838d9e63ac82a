//! The one interface between a frozen language model and the rest of numalign.
//!
//! Implemented by [`crate::decoder::Decoder`] for every family and backend; used by the worker and by the command line.
//! Everything crosses it as plain `f32` on the host, so that projectors, losses and reductions never
//! depend on a backend.

use crate::error::ModelError;
use crate::norms::{NormGradients, NormParameter};
use crate::read::Read;

/// A stretch of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Token ids, embedded by the model's own table.
    Tokens(Vec<u32>),
    /// Row `row` of [`LmInput::embeddings`], at `repeat` consecutive positions.
    Embedding { row: usize, repeat: usize },
}

/// A batch of sequences, the external embeddings they refer to, and what is read from each of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LmInput {
    pub sequences: Vec<Vec<Piece>>,
    /// `[rows, hidden_size]`, row-major.
    pub embeddings: Vec<f32>,
    /// By default the final hidden state of the last position.
    pub read: Read,
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

/// A frozen causal language model: nothing in it trains, but for the norms where a caller sets them.
pub trait FrozenLm: Send {
    /// Width of embeddings and hidden states.
    fn hidden_size(&self) -> usize;

    /// Blocks of the stack, the largest [`Read::layer`].
    fn layers(&self) -> usize;

    /// Longest sequence.
    fn max_positions(&self) -> usize;

    /// Token ids of `text`.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, ModelError>;

    /// Text of token ids.
    fn detokenize(&self, ids: &[u32]) -> Result<String, ModelError>;

    /// Rows of the token table, `[ids, hidden_size]`.
    fn embed_tokens(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError>;

    /// What `input.read` names of each sequence, `[sequences, hidden_size]`.
    ///
    /// With `keep`, what [`FrozenLm::backward`] needs is kept until the next call.
    fn forward(&mut self, input: &LmInput, keep: bool) -> Result<Vec<f32>, ModelError>;

    /// Gradient of each external embedding, `[rows of embeddings, hidden_size]`, summed over the positions that it
    /// fills in ascending order, given the gradient of the last kept forward's result. With `norms`, the gradients of the
    /// norms' parameters are added there.
    fn backward(&mut self, grad_hidden: &[f32], norms: Option<NormGradients<'_>>) -> Result<Vec<f32>, ModelError>;

    /// [`FrozenLm::backward`] without the norms.
    fn backward_to_embeddings(&mut self, grad_hidden: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.backward(grad_hidden, None)
    }

    /// The norms' present scales and shifts, in the order of the forward pass.
    fn norm_parameters(&self) -> Result<Vec<NormParameter>, ModelError>;

    /// Replaces all of [`FrozenLm::norm_parameters`], one after another in `values`. The fingerprint stays the base's.
    fn set_norm_parameters(&mut self, values: &[f32]) -> Result<(), ModelError>;

    /// Scores of every token after each of `hidden [n, hidden_size]`, `[n, vocabulary]`: final hidden states times the
    /// token table. Refused where the model's own head is not tied to it.
    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ModelError>;

    /// Whether sequences of different samples may share a batch without changing a bit of any result.
    fn batches_freely(&self) -> bool;

    /// Every weight's fingerprint with the configuration's: a projector is valid for one base only.
    fn fingerprint(&self) -> blake3::Hash;

    /// Bytes of weights held.
    fn weight_bytes(&self) -> u64;

    /// Numbers in the model.
    fn parameters(&self) -> u64;
}
