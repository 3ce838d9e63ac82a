//! One pre-norm transformer block, forward and backward.
//!
//! `x ← x + attention(norm₁(x))`, then `x ← x + feed_forward(norm₂(x))`. What the families do differently is optional:
//! rotary positions, norms of query and key heads, and a gate in the feed-forward part (Shazeer, 2020). The backward
//! pass yields the gradient of the block's input and, where asked, of its norms; weights are frozen, so nothing is kept for theirs.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `d` hidden size, `f` feed-forward size.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::error::ModelError;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;
use crate::ops::norms::{NormSums, NormWeights, Normed};
use crate::ops::sequences::Sequences;
use crate::ops::{FrozenOps, RotaryTable};

/// Weights and arithmetic of one block.
pub struct Block<B: FrozenOps> {
    /// Before attention.
    pub norm_1: NormWeights<B>,
    /// `[d, heads·head_size]`
    pub query: B::Linear,
    /// `[d, kv_heads·head_size]`
    pub key: B::Linear,
    /// `[d, kv_heads·head_size]`
    pub value: B::Linear,
    /// Norms of each query head and each key head, before rotation.
    pub head_norms: Option<(NormWeights<B>, NormWeights<B>)>,
    /// `[heads·head_size, d]`
    pub output: B::Linear,
    /// Before the feed-forward part.
    pub norm_2: NormWeights<B>,
    /// `[d, f]`, if there is one: `contract(activation(gate(h)) · expand(h))`; else `contract(activation(expand(h)))`.
    pub gate: Option<B::Linear>,
    /// `[d, f]`
    pub expand: B::Linear,
    /// `[f, d]`
    pub contract: B::Linear,
    /// Numbers and size of the attention heads.
    pub heads: Heads,
    /// Of the feed-forward part.
    pub activation: Activation,
}

/// What one block keeps for the backward pass.
pub struct SavedBlock<B: Backend> {
    norm_1: Normed<B>,
    /// None where every sequence has one position and attention passes values through.
    query_key: Option<(Projected<B>, Projected<B>)>,
    value_rd: Tensor<B, 2>,
    norm_2: Normed<B>,
    feed_forward: SavedFeedForward<B>,
}

/// Queries or keys as attention takes them, and what the norm of their heads keeps.
struct Projected<B: Backend> {
    x_rd: Tensor<B, 2>,
    norm: Option<Normed<B>>,
}

/// What the feed-forward part keeps.
struct SavedFeedForward<B: Backend> {
    /// Input of the activation.
    hidden_rf: Tensor<B, 2>,
    /// What the activation is multiplied with, where there is a gate.
    other_rf: Option<Tensor<B, 2>>,
}

/// The rows that a block works on.
pub struct Rows<'a, B: Backend> {
    /// How the rows divide into sequences.
    pub sequences: &'a Sequences,
    /// Only the last position of each sequence is wanted from this block.
    pub last_only: bool,
    /// Angles of the positions, where they are rotary.
    pub rotary: Option<&'a RotaryTable<B>>,
}

impl<B: Backend> Rows<'_, B> {
    /// The sequences with the queries that this block computes.
    fn queries(&self) -> Sequences {
        if self.last_only { self.sequences.last_positions() } else { self.sequences.clone() }
    }
}

impl<B: FrozenOps> Block<B> {
    /// Numbers of the block's norms.
    pub fn norm_numbers(&self) -> usize {
        self.norm_1.numbers() + self.norm_2.numbers()
    }

    /// The block's output, `[r, d]` or `[sequences, d]`, and what the backward pass needs.
    pub fn forward(&self, x_rd: Tensor<B, 2>, rows: &Rows<'_, B>, keep: bool) -> (Tensor<B, 2>, Option<SavedBlock<B>>) {
        let sequences = rows.sequences;
        let (h_rd, norm_1) = B::normalize(x_rd.clone(), &self.norm_1);
        let value_rd = B::frozen_linear(h_rd.clone(), &self.value, None);
        let (attended, residual, query_key) = if sequences.single_positions() {
            (B::repeat_kv(value_rd.clone(), self.heads), x_rd, None)
        } else {
            let queries = rows.queries();
            let key = B::frozen_linear(h_rd.clone(), &self.key, None);
            let key =
                self.normalize_and_rotate(key, self.head_norms.as_ref().map(|(_, key)| key), sequences, rows.rotary);
            let (h_query, residual) = if rows.last_only {
                let last = sequences.last_rows();
                (B::gather_rows(h_rd, &last), B::gather_rows(x_rd, &last))
            } else {
                (h_rd, x_rd)
            };
            let query = B::frozen_linear(h_query, &self.query, None);
            let query = self.normalize_and_rotate(
                query,
                self.head_norms.as_ref().map(|(query, _)| query),
                &queries,
                rows.rotary,
            );
            let (q_rd, k_rd) = (query.x_rd.clone(), key.x_rd.clone());
            (B::causal_attention(q_rd, k_rd, value_rd.clone(), &queries, self.heads), residual, Some((query, key)))
        };
        let x_rd = B::frozen_linear(attended, &self.output, Some(residual));
        let (h_rd, norm_2) = B::normalize(x_rd.clone(), &self.norm_2);
        let (active_rf, feed_forward) = self.feed_forward(h_rd);
        let x_rd = B::frozen_linear(active_rf, &self.contract, Some(x_rd));
        let saved = keep.then_some(SavedBlock { norm_1, query_key, value_rd, norm_2, feed_forward });
        (x_rd, saved)
    }

    /// Queries or keys with the norm of their heads and their rotation.
    fn normalize_and_rotate(
        &self,
        x_rd: Tensor<B, 2>,
        norm: Option<&NormWeights<B>>,
        positions: &Sequences,
        rotary: Option<&RotaryTable<B>>,
    ) -> Projected<B> {
        let size = self.heads.head_size;
        let [rows, width] = x_rd.dims();
        let (x_rd, norm) = match norm {
            None => (x_rd, None),
            Some(weights) => {
                let (x, normed) = B::normalize(x_rd.reshape([rows * width / size, size]), weights);
                (x.reshape([rows, width]), Some(normed))
            }
        };
        let x_rd = match rotary {
            None => x_rd,
            Some(table) => B::rotate(x_rd, table, &positions.query_positions(), size, false),
        };
        Projected { x_rd, norm }
    }

    /// The gradient of what [`Block::normalize_and_rotate`] was given.
    fn normalize_and_rotate_backward(
        &self,
        grad_rd: Tensor<B, 2>,
        norm: Option<(&NormWeights<B>, &Normed<B>)>,
        positions: &Sequences,
        rotary: Option<&RotaryTable<B>>,
    ) -> Tensor<B, 2> {
        let size = self.heads.head_size;
        let [rows, width] = grad_rd.dims();
        let grad_rd = match rotary {
            None => grad_rd,
            Some(table) => B::rotate(grad_rd, table, &positions.query_positions(), size, true),
        };
        let Some((weights, normed)) = norm else {
            return grad_rd;
        };
        let grad = grad_rd.reshape([rows * width / size, size]);
        B::normalize_backward(grad, normed, weights, None).reshape([rows, width])
    }

    /// What [`Block::contract`] is given.
    fn feed_forward(&self, h_rd: Tensor<B, 2>) -> (Tensor<B, 2>, SavedFeedForward<B>) {
        let Some(gate) = &self.gate else {
            let hidden_rf = B::frozen_linear(h_rd, &self.expand, None);
            let active_rf = B::activate(self.activation, hidden_rf.clone());
            return (active_rf, SavedFeedForward { hidden_rf, other_rf: None });
        };
        let hidden_rf = B::frozen_linear(h_rd.clone(), gate, None);
        let other_rf = B::frozen_linear(h_rd, &self.expand, None);
        let active_rf = B::activate(self.activation, hidden_rf.clone()) * other_rf.clone();
        (active_rf, SavedFeedForward { hidden_rf, other_rf: Some(other_rf) })
    }

    /// Gradient of the block's input. The gradients of its norms, whose numbers begin at `norms_at`, go to `sums`.
    pub(crate) fn backward(
        &self,
        saved: SavedBlock<B>,
        grad_rd: Tensor<B, 2>,
        rows: &Rows<'_, B>,
        norms_at: usize,
        sums: &mut Option<NormSums<'_>>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let grad_h = self.feed_forward_backward(grad_rd.clone(), saved.feed_forward);
        if let Some(sums) = sums {
            sums.add(norms_at + self.norm_1.numbers(), &self.norm_2, &grad_h, &saved.norm_2)?;
        }
        let grad_rd = B::normalize_backward(grad_h, &saved.norm_2, &self.norm_2, Some(grad_rd));
        let grad_attended = B::frozen_linear_backward(grad_rd.clone(), &self.output, None);
        let (grad_h, grad_rd) = self.attention_backward(grad_attended, saved.query_key, saved.value_rd, grad_rd, rows);
        if let Some(sums) = sums {
            sums.add(norms_at, &self.norm_1, &grad_h, &saved.norm_1)?;
        }
        Ok(B::normalize_backward(grad_h, &saved.norm_1, &self.norm_1, Some(grad_rd)))
    }

    /// From the gradient of the feed-forward part's output to that of its input.
    fn feed_forward_backward(&self, grad_rd: Tensor<B, 2>, saved: SavedFeedForward<B>) -> Tensor<B, 2> {
        let SavedFeedForward { hidden_rf, other_rf } = saved;
        let grad_rf = B::frozen_linear_backward(grad_rd, &self.contract, None);
        let (Some(gate), Some(other_rf)) = (&self.gate, other_rf) else {
            let grad_rf = B::activate_backward(self.activation, hidden_rf, grad_rf);
            return B::frozen_linear_backward(grad_rf, &self.expand, None);
        };
        let grad_other = grad_rf.clone() * B::activate(self.activation, hidden_rf.clone());
        let grad_gate = B::activate_backward(self.activation, hidden_rf, grad_rf * other_rf);
        let grad_h = B::frozen_linear_backward(grad_gate, gate, None);
        B::frozen_linear_backward(grad_other, &self.expand, Some(grad_h))
    }

    /// Gradient of the first norm's output, and that of the residual stream beside it, for all rows.
    fn attention_backward(
        &self,
        grad_attended: Tensor<B, 2>,
        query_key: Option<(Projected<B>, Projected<B>)>,
        value_rd: Tensor<B, 2>,
        grad_rd: Tensor<B, 2>,
        rows: &Rows<'_, B>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let sequences = rows.sequences;
        let Some((query, key)) = query_key else {
            let grad_value = B::repeat_kv_backward(grad_attended, self.heads);
            return (B::frozen_linear_backward(grad_value, &self.value, None), grad_rd);
        };
        let queries = rows.queries();
        let grad = B::causal_attention_backward(grad_attended, query.x_rd, key.x_rd, value_rd, &queries, self.heads);
        let norms = self.head_norms.as_ref();
        let query_norm = norms.map(|(weights, _)| weights).zip(query.norm.as_ref());
        let key_norm = norms.map(|(_, weights)| weights).zip(key.norm.as_ref());
        let grad_query = self.normalize_and_rotate_backward(grad.query_rd, query_norm, &queries, rows.rotary);
        let grad_key = self.normalize_and_rotate_backward(grad.key_rd, key_norm, sequences, rows.rotary);
        let mut grad_h = B::frozen_linear_backward(grad_query, &self.query, None);
        let mut grad_rd = grad_rd;
        if rows.last_only {
            let last = sequences.last_rows();
            grad_h = B::scatter_rows(grad_h, &last, sequences.rows());
            grad_rd = B::scatter_rows(grad_rd, &last, sequences.rows());
        }
        let grad_h = B::frozen_linear_backward(grad_key, &self.key, Some(grad_h));
        let grad_h = B::frozen_linear_backward(grad.value_rd, &self.value, Some(grad_h));
        (grad_h, grad_rd)
    }
}
