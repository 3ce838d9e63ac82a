//! One pre-norm transformer block, forward and backward.
//!
//! `x ← x + attention(norm₁(x))`, then `x ← x + feed_forward(norm₂(x))`. What the families do differently is optional:
//! rotary positions, norms of query and key heads, and a gate in the feed-forward part (Shazeer, 2020). The backward
//! pass yields the gradient of the block's input and, where asked, of its norms; weights are frozen, so nothing is kept for theirs.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `d` hidden size, `f` feed-forward size.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use numalign_config::Arithmetic;

use crate::error::ModelError;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;
use crate::ops::norms::{NormSums, NormWeights, Normed};
use crate::ops::sequences::{RowKind, Sequences};
use crate::ops::{Attended, AttentionGradient, AttentionShape, FrozenOps, Parts, RotaryTable};

/// Places of queries, keys and values in [`Block::query_key_value`].
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

/// Weights and arithmetic of one block.
pub struct Block<B: FrozenOps> {
    /// Before attention.
    pub norm_1: NormWeights<B>,
    /// `[d, heads·head_size]`, and twice `[d, kv_heads·head_size]`
    pub query_key_value: B::Joined,
    /// Norms of each query head and each key head, before rotation.
    pub head_norms: Option<(NormWeights<B>, NormWeights<B>)>,
    /// `[heads·head_size, d]`
    pub output: B::Linear,
    /// Before the feed-forward part.
    pub norm_2: NormWeights<B>,
    /// From the block's width to that of the feed-forward part.
    pub expand: Expand<B>,
    /// `[f, d]`
    pub contract: B::Linear,
    /// Numbers and size of the attention heads.
    pub heads: Heads,
    /// Of the feed-forward part.
    pub activation: Activation,
    /// To what the factors of attention's products are rounded.
    pub arithmetic: Arithmetic,
}

/// The first half of the feed-forward part.
pub enum Expand<B: FrozenOps> {
    /// `activation(expand(h))`, `[d, f]`
    Plain(B::Linear),
    /// `activation(gate(h)) · expand(h)`, gate and expand `[d, f]` each
    Gated(B::Joined),
}

/// What one block keeps for the backward pass.
pub struct SavedBlock<B: Backend> {
    norm_1: Normed<B>,
    /// None where every sequence has one position and attention passes values through.
    attended: Option<Attended<B>>,
    norm_2: Normed<B>,
    feed_forward: SavedFeedForward<B>,
}

/// What the feed-forward part keeps.
enum SavedFeedForward<B: Backend> {
    /// Input of the activation.
    Plain(Tensor<B, 2>),
    /// The same, and what its result is multiplied with.
    Gated(Parts<B>),
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
        let (sequences, kind) = (rows.sequences, rows.sequences.kind());
        let (h_rd, norm_1) = B::normalize(x_rd.clone(), &self.norm_1);
        let (attended_rd, residual, attended) = if sequences.single_positions() {
            let [value_rd] = B::joined_linear(h_rd, &self.query_key_value, VALUE..VALUE + 1, kind).split();
            (B::repeat_kv(value_rd, self.heads), x_rd, None)
        } else {
            let queries = rows.queries();
            let (q_rd, k_rd, v_rd, residual) = if rows.last_only {
                let last = sequences.last_rows();
                let [k, v] = B::joined_linear(h_rd.clone(), &self.query_key_value, KEY..VALUE + 1, kind).split();
                let h_last = B::gather_rows(h_rd, &last);
                let [q] = B::joined_linear(h_last, &self.query_key_value, QUERY..QUERY + 1, kind).split();
                (q, k, v, B::gather_rows(x_rd, &last))
            } else {
                let [q, k, v] = B::joined_linear(h_rd, &self.query_key_value, QUERY..VALUE + 1, kind).split();
                (q, k, v, x_rd)
            };
            let (out, attended) = B::attend(q_rd, k_rd, v_rd, &self.attention(rows, &queries));
            (out, residual, Some(attended))
        };
        let (x_rd, h_rd, norm_2) = B::linear_normalized(attended_rd, &self.output, residual, &self.norm_2, kind);
        let (active_rf, feed_forward) = self.feed_forward(h_rd, kind);
        let x_rd = B::frozen_linear(active_rf, &self.contract, Some(x_rd), kind);
        let saved = keep.then_some(SavedBlock { norm_1, attended, norm_2, feed_forward });
        (x_rd, saved)
    }

    fn attention<'a>(&'a self, rows: &Rows<'a, B>, queries: &'a Sequences) -> AttentionShape<'a, B> {
        AttentionShape {
            norms: self.head_norms.as_ref().map(|(query, key)| (query, key)),
            rotary: rows.rotary,
            sequences: rows.sequences,
            queries,
            heads: self.heads,
            arithmetic: self.arithmetic,
        }
    }

    /// What [`Block::contract`] is given.
    fn feed_forward(&self, h_rd: Tensor<B, 2>, kind: RowKind) -> (Tensor<B, 2>, SavedFeedForward<B>) {
        match &self.expand {
            Expand::Plain(expand) => {
                let (active_rf, hidden_rf) = B::activated_linear(h_rd, expand, self.activation, kind);
                (active_rf, SavedFeedForward::Plain(hidden_rf))
            }
            Expand::Gated(gate_expand) => {
                let gate_other = B::joined_linear(h_rd, gate_expand, 0..2, kind);
                (B::gated(self.activation, &gate_other), SavedFeedForward::Gated(gate_other))
            }
        }
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
        let kind = rows.sequences.kind();
        let product = self.feed_forward_backward(grad_rd.clone(), saved.feed_forward, kind);
        let norm_2 = (&self.norm_2, &saved.norm_2);
        let grad_rd = product.through_norm(norm_2, grad_rd, norms_at + self.norm_1.numbers(), sums, kind)?;
        let grad_attended = B::frozen_linear_backward(grad_rd.clone(), &self.output, None, kind);
        let (product, grad_rd) = self.attention_backward(grad_attended, saved.attended, grad_rd, rows);
        product.through_norm((&self.norm_1, &saved.norm_1), grad_rd, norms_at, sums, kind)
    }

    /// From the gradient of the feed-forward part's output to the last product before that of its input.
    fn feed_forward_backward(
        &self,
        grad_rd: Tensor<B, 2>,
        saved: SavedFeedForward<B>,
        kind: RowKind,
    ) -> LastProduct<'_, B> {
        match (&self.expand, saved) {
            (Expand::Plain(expand), SavedFeedForward::Plain(hidden_rf)) => {
                let grad_rf = B::activated_linear_backward(grad_rd, &self.contract, self.activation, hidden_rf, kind);
                LastProduct::Single(grad_rf, expand)
            }
            (Expand::Gated(gate_expand), SavedFeedForward::Gated(gate_other)) => {
                let grad_rf = B::frozen_linear_backward(grad_rd, &self.contract, None, kind);
                let grad = B::gated_backward(self.activation, gate_other, grad_rf);
                LastProduct::Joined { grad, joined: (gate_expand, 0..2), own: None }
            }
            _ => unreachable!("a block keeps what it is made of"),
        }
    }

    /// The last product before the gradient of the first norm's output, and that of the residual stream beside it, for all rows.
    fn attention_backward(
        &self,
        grad_attended: Tensor<B, 2>,
        attended: Option<Attended<B>>,
        grad_rd: Tensor<B, 2>,
        rows: &Rows<'_, B>,
    ) -> (LastProduct<'_, B>, Tensor<B, 2>) {
        let (sequences, kind, joined) = (rows.sequences, rows.sequences.kind(), &self.query_key_value);
        let Some(attended) = attended else {
            let grad = Parts::apart(vec![B::repeat_kv_backward(grad_attended, self.heads)]);
            return (LastProduct::Joined { grad, joined: (joined, VALUE..VALUE + 1), own: None }, grad_rd);
        };
        let queries = rows.queries();
        let AttentionGradient { query_rd, key_rd, value_rd, whole } =
            B::attend_backward(grad_attended, attended, &self.attention(rows, &queries));
        if !rows.last_only {
            let grad = Parts { each: vec![query_rd, key_rd, value_rd], whole };
            return (LastProduct::Joined { grad, joined: (joined, QUERY..VALUE + 1), own: None }, grad_rd);
        }
        let last = sequences.last_rows();
        let grad_h = B::joined_linear_backward(Parts::apart(vec![query_rd]), joined, QUERY..QUERY + 1, None, kind);
        let grad_h = B::scatter_rows(grad_h, &last, sequences.rows());
        let grad_rd = B::scatter_rows(grad_rd, &last, sequences.rows());
        let grad = Parts { each: vec![key_rd, value_rd], whole };
        (LastProduct::Joined { grad, joined: (joined, KEY..VALUE + 1), own: Some(grad_h) }, grad_rd)
    }
}

/// The product whose result is the gradient of a norm's output.
enum LastProduct<'a, B: FrozenOps> {
    /// With one weight.
    Single(Tensor<B, 2>, &'a B::Linear),
    /// With several, plus `own`.
    Joined { grad: Parts<B>, joined: (&'a B::Joined, Range<usize>), own: Option<Tensor<B, 2>> },
}

impl<B: FrozenOps> LastProduct<'_, B> {
    /// `to` plus the gradient of the norm's input. The gradients of the norm, whose numbers begin at `at`, go to `sums`.
    fn through_norm(
        self,
        norm: (&NormWeights<B>, &Normed<B>),
        to: Tensor<B, 2>,
        at: usize,
        sums: &mut Option<NormSums<'_>>,
        kind: RowKind,
    ) -> Result<Tensor<B, 2>, ModelError> {
        let Some(sums) = sums else {
            return Ok(match self {
                Self::Single(grad, linear) => B::linear_backward_normalized(grad, linear, norm, to, kind),
                Self::Joined { grad, joined, own } => {
                    B::joined_linear_backward_normalized(grad, joined, own, norm, to, kind)
                }
            });
        };
        let grad = match self {
            Self::Single(grad, linear) => B::frozen_linear_backward(grad, linear, None, kind),
            Self::Joined { grad, joined, own } => B::joined_linear_backward(grad, joined.0, joined.1, own, kind),
        };
        sums.add(at, norm.0, &grad, norm.1)?;
        Ok(B::normalize_backward(grad, norm.1, norm.0, Some(to)))
    }
}
