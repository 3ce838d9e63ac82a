//! The operations of a frozen transformer as an extension of Burn's [`Backend`]: what Burn has no fused form for,
//! and what a frozen model can do cheaper because its weights never change.
//!
//! [`FrozenOps`] is implemented by [`flex`] with this crate's own kernels, and by [`generic`]'s functions of plain Burn
//! tensors for every other backend (and, in tests, for autodiff). The model in [`crate::decoder`] is written once over it.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `d` hidden size, `f` feed-forward size.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device_failure;
pub mod flex;
pub mod generic;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod generic_impl;
mod host;
pub mod norms;
#[cfg(feature = "cuda")]
mod products;
mod rotary;
pub mod sequences;

pub use host::{HostBlocks, HostLinear, WeightOrder, WeightStorage};
pub(crate) use host::{move_to_device, to_host};
use norms::{NormWeights, Normed};
pub use rotary::RotaryTable;
use sequences::Sequences;

/// Gradients of an attention's inputs.
pub struct AttentionGradient<B: Backend> {
    /// As `q`.
    pub query_rd: Tensor<B, 2>,
    /// As `k`.
    pub key_rd: Tensor<B, 2>,
    /// As `v`.
    pub value_rd: Tensor<B, 2>,
}

/// Operations of a frozen transformer. All tensors are `f32` in the unit of rows × features.
pub trait FrozenOps: Backend {
    /// A frozen weight, prepared for products in both directions.
    type Linear: Send + Sync;

    /// Whether rows of sequences with different lengths may share one batch without changing a bit of any of them.
    const RAGGED: bool;

    /// Moves a weight to the device and prepares it; `backward` is false where its transpose is never needed.
    fn prepare(host: HostLinear<'_>, backward: bool, device: &Self::Device) -> Self::Linear;

    /// `x·W + b`, plus `residual` if given: `x [r, inputs]`, the result `[r, outputs]`.
    fn frozen_linear(x: Tensor<Self, 2>, linear: &Self::Linear, residual: Option<Tensor<Self, 2>>) -> Tensor<Self, 2>;

    /// `g·Wᵀ`, plus `to` if given: `g [r, outputs]`, the result `[r, inputs]`.
    fn frozen_linear_backward(
        g: Tensor<Self, 2>,
        linear: &Self::Linear,
        to: Option<Tensor<Self, 2>>,
    ) -> Tensor<Self, 2>;

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

    /// The rows `indices` of `x`.
    fn gather_rows(x_rd: Tensor<Self, 2>, indices: &[usize]) -> Tensor<Self, 2>;

    /// A `[rows, d]` tensor of zeros but for `x`'s rows, which go to `indices`.
    fn scatter_rows(x_rd: Tensor<Self, 2>, indices: &[usize], rows: usize) -> Tensor<Self, 2>;
}
