//! The one interface between a frozen language model and the rest of numalign.
//!
//! Everything crosses it as plain `f32` on the host, so that projectors, losses and reductions never
//! depend on a backend.

use crate::error::ModelError;
use crate::ops::norms::{NormGradients, NormParameter};
use crate::tokenizer::Tokenizer;

/// The positions of a sequence whose hidden states are averaged into its read-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadPositions {
    /// The last position alone. In the last block that runs, only these positions need a query and a feed-forward part.
    #[default]
    Last,
    /// All positions.
    Mean,
    /// The positions that external embeddings fill; a sequence without one is an error.
    Embeddings,
}

/// Which hidden state is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PooledRead {
    /// The positions that are averaged.
    pub positions: ReadPositions,
    /// `None`: the output of the final norm. `Some(k)` with `k` up to the number of blocks: the residual stream after the
    /// first `k` blocks, without the final norm; 0 is the input of the first block, learnt positions included. Blocks
    /// behind the last one that is read are not run. For `k` below the number of blocks that is `hidden_states[k]` of
    /// `transformers`.
    pub layer: Option<usize>,
}

/// A stretch of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Token ids, embedded by the model's own table.
    Tokens(Vec<u32>),
    /// Row `row` of [`LmInput::embeddings`], at `repeat` consecutive positions.
    Embedding {
        /// Which of them, from 0.
        row: usize,
        /// Positions that it fills.
        repeat: usize,
    },
}

/// A batch of sequences, the external embeddings they refer to, and what is read from each of them.
#[derive(Debug, Clone, PartialEq)]
pub struct LmInput {
    /// The pieces of each sequence, one after another.
    pub sequences: Vec<Vec<Piece>>,
    /// `[rows, hidden_size]`, row-major.
    pub embeddings: Vec<f32>,
    /// At least one; by default the final hidden state of the last position.
    pub reads: Vec<PooledRead>,
}

impl Default for LmInput {
    fn default() -> Self {
        Self { sequences: Vec::new(), embeddings: Vec::new(), reads: vec![PooledRead::default()] }
    }
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

/// Positions that pass through a model at once where memory is not known to have room for more: enough for full speed on a CPU,
/// and a bound on the memory of activations.
pub const PASS_POSITIONS: usize = 2048;

/// A frozen causal language model: nothing in it trains, except norms that a caller sets.
pub trait FrozenLm: Send {
    /// Width of embeddings and hidden states.
    fn hidden_size(&self) -> usize;

    /// Blocks of the stack, the largest [`PooledRead::layer`].
    fn layers(&self) -> usize;

    /// Longest sequence.
    fn max_positions(&self) -> usize;

    /// Text to token ids and back.
    fn tokenizer(&self) -> &Tokenizer;

    /// Token ids of `text`, without special tokens around it.
    ///
    /// # Errors
    /// The model has no tokenizer.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.tokenizer().encode(text)
    }

    /// Text of token ids.
    ///
    /// # Errors
    /// The model has no tokenizer, or no such token.
    fn detokenize(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.tokenizer().decode(ids)
    }

    /// Rows of the token table, `[ids, hidden_size]`.
    ///
    /// # Errors
    /// An id that is not in the vocabulary.
    fn embed_tokens(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError>;

    /// What `input.reads` names of each sequence, side by side: `[sequences, reads · hidden_size]`.
    ///
    /// With `keep`, what [`FrozenLm::backward`] needs is kept until the next call.
    ///
    /// # Errors
    /// Input that is empty, too long, or names tokens, embeddings or layers that do not exist.
    fn forward(&mut self, input: &LmInput, keep: bool) -> Result<Vec<f32>, ModelError>;

    /// Gradient of each external embedding, `[rows of embeddings, hidden_size]`, summed over the positions that it
    /// fills in ascending order, given the gradient of the last kept forward's result. With `norms`, the gradients of the
    /// norms' parameters are added there.
    ///
    /// # Errors
    /// No forward pass was kept, or `norms` does not fit its batch.
    fn backward(&mut self, grad_hidden: &[f32], norms: Option<NormGradients<'_>>) -> Result<Vec<f32>, ModelError>;

    /// [`FrozenLm::backward`] without the norms.
    ///
    /// # Errors
    /// As [`FrozenLm::backward`].
    fn backward_to_embeddings(&mut self, grad_hidden: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.backward(grad_hidden, None)
    }

    /// The norms' present scales and shifts, in the order of the forward pass.
    ///
    /// # Errors
    /// The device does not return them.
    fn norm_parameters(&self) -> Result<Vec<NormParameter>, ModelError>;

    /// Replaces all of [`FrozenLm::norm_parameters`], one after another in `values`. The fingerprint stays the base's.
    ///
    /// # Errors
    /// Another number of values than the norms have.
    fn set_norm_parameters(&mut self, values: &[f32]) -> Result<(), ModelError>;

    /// Scores of every token after each of `hidden [n, hidden_size]`, `[n, vocabulary]`: final hidden states times the
    /// token table. Refused where the model's own head is not tied to it.
    ///
    /// # Errors
    /// The model's own head is not its token table.
    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ModelError>;

    /// Positions of a pass that uses the device well and fits into its memory. No bit of any result depends on it.
    fn pass_positions(&self) -> usize {
        PASS_POSITIONS
    }

    /// Whether sequences of different lengths may share a batch; equally long ones always may. Sharing one changes no bit of any
    /// result.
    fn batches_freely(&self) -> bool;

    /// Every weight's fingerprint with the configuration's: a projector is valid for one base only.
    fn fingerprint(&self) -> blake3::Hash;

    /// Bytes of weights held.
    fn weight_bytes(&self) -> u64;

    /// Numbers in the model.
    fn parameters(&self) -> u64;
}
