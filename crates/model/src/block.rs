//! One pre-norm transformer block, forward and backward. Called by the decoder; built by each family's loader.
//!
//! `x ← x + attention(norm₁(x))`, then `x ← x + feed_forward(norm₂(x))`. The backward pass yields the gradient of the
//! block's input and, where asked, of its norms; weights are frozen, so nothing is kept for theirs.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `d` hidden size, `f` feed-forward size.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::error::ModelError;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;
use crate::norms::NormSums;
use crate::ops::{FrozenOps, NormWeights, Normed};
use crate::sequences::Sequences;

/// Weights and arithmetic of one block.
pub struct Block<B: FrozenOps> {
    pub norm_1: NormWeights<B>,
    pub query: B::Linear,
    pub key: B::Linear,
    pub value: B::Linear,
    pub output: B::Linear,
    pub norm_2: NormWeights<B>,
    pub expand: B::Linear,
    pub contract: B::Linear,
    pub heads: Heads,
    pub activation: Activation,
}

/// What one block keeps for the backward pass.
pub struct SavedBlock<B: Backend> {
    norm_1: Normed<B>,
    /// Query and key; none where every sequence has one position and attention passes values through.
    query_key: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
    value_rd: Tensor<B, 2>,
    norm_2: Normed<B>,
    hidden_rf: Tensor<B, 2>,
}

/// The rows that a block works on.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub sequences: &'a Sequences,
    /// Only the last position of each sequence is wanted from this block.
    pub last_only: bool,
}

impl<B: FrozenOps> Block<B> {
    /// Numbers of the block's norms.
    pub fn norm_numbers(&self) -> usize {
        self.norm_1.numbers() + self.norm_2.numbers()
    }

    /// The block's output, `[r, d]` or `[sequences, d]`, and what the backward pass needs.
    pub fn forward(&self, x_rd: Tensor<B, 2>, rows: Rows<'_>, keep: bool) -> (Tensor<B, 2>, Option<SavedBlock<B>>) {
        let sequences = rows.sequences;
        let (h_rd, norm_1) = B::normalize(x_rd.clone(), &self.norm_1);
        let value_rd = B::project(h_rd.clone(), &self.value, None);
        let (attended, residual, query_key) = if sequences.single_positions() {
            (value_rd.clone(), x_rd, None)
        } else {
            let key_rd = B::project(h_rd.clone(), &self.key, None);
            let (h_query, residual, queries) = if rows.last_only {
                let last = sequences.last_rows();
                (B::gather_rows(h_rd, &last), B::gather_rows(x_rd, &last), sequences.read_positions())
            } else {
                (h_rd, x_rd, sequences.clone())
            };
            let query = B::project(h_query, &self.query, None);
            let attended = B::attend(query.clone(), key_rd.clone(), value_rd.clone(), &queries, self.heads);
            (attended, residual, Some((query, key_rd)))
        };
        let x_rd = B::project(attended, &self.output, Some(residual));
        let (h_rd, norm_2) = B::normalize(x_rd.clone(), &self.norm_2);
        let hidden_rf = B::project(h_rd, &self.expand, None);
        let active_rf = B::activate(self.activation, hidden_rf.clone());
        let x_rd = B::project(active_rf, &self.contract, Some(x_rd));
        let saved = keep.then_some(SavedBlock { norm_1, query_key, value_rd, norm_2, hidden_rf });
        (x_rd, saved)
    }

    /// Gradient of the block's input. The gradients of its norms, whose numbers begin at `norms_at`, go to `sums`.
    pub(crate) fn backward(
        &self,
        saved: SavedBlock<B>,
        grad_rd: Tensor<B, 2>,
        rows: Rows<'_>,
        norms_at: usize,
        sums: &mut Option<NormSums<'_>>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let grad_h = self.feed_forward_backward(grad_rd.clone(), saved.hidden_rf);
        if let Some(sums) = sums {
            sums.add(norms_at + self.norm_1.numbers(), &self.norm_2, &grad_h, &saved.norm_2)?;
        }
        let grad_rd = B::normalize_backward(grad_h, &saved.norm_2, &self.norm_2, Some(grad_rd));
        let grad_attended = B::project_backward(grad_rd.clone(), &self.output, None);
        let (grad_h, grad_rd) = self.attention_backward(grad_attended, saved.query_key, saved.value_rd, grad_rd, rows);
        if let Some(sums) = sums {
            sums.add(norms_at, &self.norm_1, &grad_h, &saved.norm_1)?;
        }
        Ok(B::normalize_backward(grad_h, &saved.norm_1, &self.norm_1, Some(grad_rd)))
    }

    /// From the gradient of the feed-forward part's output to that of its input.
    fn feed_forward_backward(&self, grad_rd: Tensor<B, 2>, hidden_rf: Tensor<B, 2>) -> Tensor<B, 2> {
        let grad_rf = B::project_backward(grad_rd, &self.contract, None);
        let grad_rf = B::activate_backward(self.activation, hidden_rf, grad_rf);
        B::project_backward(grad_rf, &self.expand, None)
    }

    /// Gradient of the first norm's output, and that of the residual stream beside it, for all rows.
    fn attention_backward(
        &self,
        grad_attended: Tensor<B, 2>,
        query_key: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
        value_rd: Tensor<B, 2>,
        grad_rd: Tensor<B, 2>,
        rows: Rows<'_>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let sequences = rows.sequences;
        let Some((query, key_rd)) = query_key else {
            return (B::project_backward(grad_attended, &self.value, None), grad_rd);
        };
        let queries = if rows.last_only { sequences.read_positions() } else { sequences.clone() };
        let grad = B::attend_backward(grad_attended, query, key_rd, value_rd, &queries, self.heads);
        let mut grad_h = B::project_backward(grad.query_rd, &self.query, None);
        let mut grad_rd = grad_rd;
        if rows.last_only {
            let last = sequences.last_rows();
            grad_h = B::scatter_rows(grad_h, &last, sequences.rows());
            grad_rd = B::scatter_rows(grad_rd, &last, sequences.rows());
        }
        let grad_h = B::project_backward(grad.key_rd, &self.key, Some(grad_h));
        let grad_h = B::project_backward(grad.value_rd, &self.value, Some(grad_h));
        (grad_h, grad_rd)
    }
}
