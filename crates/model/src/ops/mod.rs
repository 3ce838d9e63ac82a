//! The operations of a frozen transformer as an extension of Burn's [`Backend`]: what Burn has no fused form for,
//! and what a frozen model can do cheaper because its weights never change.
//!
//! [`FrozenOps`] is implemented by [`flex`] with this crate's own kernels for the CPU, by `cuda` with those for NVIDIA's GPUs,
//! and, for autodiff in tests, by [`generic`]'s functions of plain Burn tensors. The model in [`crate::decoder`] is written
//! once over it.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `d` hidden size, `f` feed-forward size.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;

pub mod attend;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device_failure;
pub mod flex;
pub mod generic;
#[cfg(test)]
pub(crate) mod generic_impl;
mod host;
pub mod joined;
pub mod norms;
mod rotary;
pub mod sequences;

pub use attend::{Attended, AttentionShape};
pub use host::{HostBlocks, HostLinear, WeightOrder, WeightStorage};
pub(crate) use host::{move_to_device, to_host};
pub use joined::Parts;
use norms::{NormWeights, Normed};
pub use rotary::RotaryTable;
use sequences::{RowKind, Sequences};

/// Gradients of an attention's inputs.
pub struct AttentionGradient<B: Backend> {
    /// As `q`.
    pub query_rd: Tensor<B, 2>,
    /// As `k`.
    pub key_rd: Tensor<B, 2>,
    /// As `v`.
    pub value_rd: Tensor<B, 2>,
    /// Queries, keys and values side by side, or without the queries where these are the last positions only; where the
    /// backend has them so.
    pub whole: Option<Tensor<B, 2>>,
}

/// Operations of a frozen transformer. All tensors are `f32` in the unit of rows × features.
///
/// The provided methods are sequences of the others; a backend has its own where one kernel does the work of several.
pub trait FrozenOps: Backend {
    /// A frozen weight with its bias, prepared for both passes.
    type Linear: Send + Sync;

    /// Several of them over one input.
    type Joined: Send + Sync;

    /// Whether rows of sequences with different lengths may share one batch. Those of equally long ones always may: no row's
    /// bits depend on the others or on how many there are, only on its own sequence.
    const RAGGED: bool;

    /// Whether the rows of a repeated embedding are made and summed by [`FrozenOps::repeat_rows`] and [`FrozenOps::sum_rows`], in the
    /// place of the host: where the way to the device is long.
    const REPEATS_ROWS: bool = false;

    /// Moves a weight to the device and prepares it.
    fn prepare(host: HostLinear<'_>, device: &Self::Device) -> Self::Linear;

    /// Puts weights with the same inputs side by side.
    fn join(weights: Vec<Self::Linear>) -> Self::Joined;

    /// `x·W + b`, plus `residual` if given: `x [r, inputs]`, the result `[r, outputs]`.
    fn frozen_linear(
        x: Tensor<Self, 2>,
        linear: &Self::Linear,
        residual: Option<Tensor<Self, 2>>,
        kind: RowKind,
    ) -> Tensor<Self, 2>;

    /// `g·Wᵀ`, plus `to` if given: `g [r, outputs]`, the result `[r, inputs]`.
    fn frozen_linear_backward(
        g: Tensor<Self, 2>,
        linear: &Self::Linear,
        to: Option<Tensor<Self, 2>>,
        kind: RowKind,
    ) -> Tensor<Self, 2>;

    /// `x·W + b` for each of the weights `parts`.
    fn joined_linear(x: Tensor<Self, 2>, joined: &Self::Joined, parts: Range<usize>, kind: RowKind) -> Parts<Self>;

    /// The sum of `g·Wᵀ` over the weights `parts`, plus `to` if given.
    fn joined_linear_backward(
        grad: Parts<Self>,
        joined: &Self::Joined,
        parts: Range<usize>,
        to: Option<Tensor<Self, 2>>,
        kind: RowKind,
    ) -> Tensor<Self, 2>;

    /// `x·W + b` plus `residual`; and the norm of that, with what the norm's backward pass needs.
    fn linear_normalized(
        x: Tensor<Self, 2>,
        linear: &Self::Linear,
        residual: Tensor<Self, 2>,
        weights: &NormWeights<Self>,
        kind: RowKind,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>, Normed<Self>) {
        let sum = Self::frozen_linear(x, linear, Some(residual), kind);
        let (y, normed) = Self::normalize(sum.clone(), weights);
        (sum, y, normed)
    }

    /// [`FrozenOps::frozen_linear_backward`], on through the norm before the product, plus `to`.
    fn linear_backward_normalized(
        g: Tensor<Self, 2>,
        linear: &Self::Linear,
        norm: (&NormWeights<Self>, &Normed<Self>),
        to: Tensor<Self, 2>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        let grad = Self::frozen_linear_backward(g, linear, None, kind);
        Self::normalize_backward(grad, norm.1, norm.0, Some(to))
    }

    /// [`FrozenOps::joined_linear_backward`] with `own` added, on through the norm before the products, plus `to`.
    fn joined_linear_backward_normalized(
        grad: Parts<Self>,
        joined: (&Self::Joined, Range<usize>),
        own: Option<Tensor<Self, 2>>,
        norm: (&NormWeights<Self>, &Normed<Self>),
        to: Tensor<Self, 2>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        let grad = Self::joined_linear_backward(grad, joined.0, joined.1, own, kind);
        Self::normalize_backward(grad, norm.1, norm.0, Some(to))
    }

    /// `f(u)` and `u = x·W + b`.
    fn activated_linear(
        x: Tensor<Self, 2>,
        linear: &Self::Linear,
        function: Activation,
        kind: RowKind,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let u = Self::frozen_linear(x, linear, None, kind);
        (Self::activate(function, u.clone()), u)
    }

    /// `(g·Wᵀ) · f′(u)`: the gradient of what an activation was given, from behind the product that follows it.
    fn activated_linear_backward(
        g: Tensor<Self, 2>,
        linear: &Self::Linear,
        function: Activation,
        u: Tensor<Self, 2>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        Self::activate_backward(function, u, Self::frozen_linear_backward(g, linear, None, kind))
    }

    /// `f(gate) · other`.
    fn gated(function: Activation, gate_other: &Parts<Self>) -> Tensor<Self, 2> {
        let [gate, other] = two(&gate_other.each);
        Self::activate(function, gate) * other
    }

    /// Gradients of gate and other of [`FrozenOps::gated`].
    fn gated_backward(function: Activation, gate_other: Parts<Self>, grad: Tensor<Self, 2>) -> Parts<Self> {
        let [gate, other] = two(&gate_other.each);
        let grad_other = grad.clone() * Self::activate(function, gate.clone());
        let grad_gate = Self::activate_backward(function, gate, grad * other);
        Parts::apart(vec![grad_gate, grad_other])
    }

    /// `γ·x̂ + β`, and what the backward pass needs.
    fn normalize(x_rd: Tensor<Self, 2>, weights: &NormWeights<Self>) -> (Tensor<Self, 2>, Normed<Self>);

    /// `to` plus the gradient with respect to the norm's input.
    fn normalize_backward(
        grad_rd: Tensor<Self, 2>,
        saved: &Normed<Self>,
        weights: &NormWeights<Self>,
        to: Option<Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;

    /// `f(u)`, element by element.
    fn activate(function: Activation, u_rf: Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// `grad · f′(u)`.
    fn activate_backward(function: Activation, u_rf: Tensor<Self, 2>, grad_rf: Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// Each head of `x [r, heads·head_size]` turned by the angles of its row's position, or back by them with `inverse`.
    fn rotate(
        x_rd: Tensor<Self, 2>,
        table: &RotaryTable<Self>,
        positions: &[usize],
        head_size: usize,
        inverse: bool,
    ) -> Tensor<Self, 2>;

    /// Values `[r, kv_heads·size]` for each query head, `[r, heads·size]`: what attention returns if every sequence has one
    /// position.
    fn repeat_kv(v_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2>;

    /// The gradient of [`FrozenOps::repeat_kv`].
    fn repeat_kv_backward(grad_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2>;

    /// Causal attention of `q [queries, heads·size]` over `k` and `v [r, kv_heads·size]`; `q` may hold the last positions
    /// only.
    fn causal_attention(
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        sequences: &Sequences,
        heads: Heads,
    ) -> Tensor<Self, 2>;

    /// Gradients of [`FrozenOps::causal_attention`].
    fn causal_attention_backward(
        grad_rd: Tensor<Self, 2>,
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        sequences: &Sequences,
        heads: Heads,
    ) -> AttentionGradient<Self>;

    /// Causal attention of queries and keys as the products yield them: their heads are normalised and turned first, as
    /// `shape` says. `q` may hold the last positions only.
    fn attend(
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        shape: &AttentionShape<'_, Self>,
    ) -> (Tensor<Self, 2>, Attended<Self>) {
        attend::forward(q_rd, k_rd, v_rd, shape)
    }

    /// Gradients of what [`FrozenOps::attend`] was given.
    fn attend_backward(
        grad_rd: Tensor<Self, 2>,
        attended: Attended<Self>,
        shape: &AttentionShape<'_, Self>,
    ) -> AttentionGradient<Self> {
        attend::backward(grad_rd, attended, shape)
    }

    /// Each row of `x_ed` `each` times, `[e·each, d]`, plus the rows of `positions` (at least `each`) from the first on.
    fn repeat_rows(x_ed: Tensor<Self, 2>, positions: Option<&Tensor<Self, 2>>, each: usize) -> Tensor<Self, 2> {
        let [count, d] = x_ed.dims();
        let rows = x_ed.reshape([count, 1, d]).repeat_dim(1, each);
        let rows = match positions {
            Some(table) => rows + table.clone().slice(0..each).reshape([1, each, d]),
            None => rows,
        };
        rows.reshape([count * each, d])
    }

    /// The sums of `each` rows that follow each other, in their order: `[r/each, d]`.
    fn sum_rows(x_rd: Tensor<Self, 2>, each: usize) -> Tensor<Self, 2> {
        let [rows, d] = x_rd.dims();
        x_rd.reshape([rows / each, each, d]).sum_dim(1).reshape([rows / each, d])
    }

    /// The rows `indices` of `x`.
    fn gather_rows(x_rd: Tensor<Self, 2>, indices: &[usize]) -> Tensor<Self, 2>;

    /// A `[rows, d]` tensor of zeros but for `x`'s rows, which go to `indices`.
    fn scatter_rows(x_rd: Tensor<Self, 2>, indices: &[usize], rows: usize) -> Tensor<Self, 2>;
}

/// The two tensors of a gate and what it is multiplied with.
fn two<B: Backend>(each: &[Tensor<B, 2>]) -> [Tensor<B, 2>; 2] {
    [each[0].clone(), each[1].clone()]
}
