//! The operations of a frozen transformer as an extension of Burn's [`Backend`]: what Burn has no fused form for,
//! and what a frozen model can do cheaper because its weights never change.
//!
//! [`FrozenOps`] is implemented by [`flex`] with this crate's own kernels, and by [`generic`]'s functions of plain Burn
//! tensors for every other backend (and, in tests, for autodiff). The model in [`crate::gpt2`] is written once over it.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `d` hidden size, `f` feed-forward size.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;
use crate::sequences::Sequences;

pub mod flex;
pub mod generic;

/// A dense `[input, output]` weight on the host, row-major, and its bias.
#[derive(Debug, Clone, Copy)]
pub struct HostLinear<'a> {
    pub weight: &'a [f32],
    pub input: usize,
    pub output: usize,
    /// Column range of `weight` to use: the parts of GPT-2's fused query-key-value weight are told apart this way.
    pub columns: (usize, usize),
    pub bias: Option<&'a [f32]>,
}

/// What a layer norm keeps for its backward pass.
pub struct Normed<B: Backend> {
    /// `(x − mean)·rstd`, `[r, d]`
    pub normed_rd: Tensor<B, 2>,
    /// `1/√(var + eps)`, `[r, 1]`
    pub rstd_r1: Tensor<B, 2>,
}

/// Scale and shift of a layer norm, on the device.
pub struct NormWeights<B: Backend> {
    pub gamma_d: Tensor<B, 1>,
    pub beta_d: Tensor<B, 1>,
    pub eps: f32,
}

/// Gradients of an attention's inputs.
pub struct AttentionGradient<B: Backend> {
    pub query_rd: Tensor<B, 2>,
    pub key_rd: Tensor<B, 2>,
    pub value_rd: Tensor<B, 2>,
}

/// Operations of a frozen transformer. All tensors are `f32` in the unit of rows × features.
pub trait FrozenOps: Backend {
    /// A frozen weight, prepared for products in both directions.
    type Linear: Send;

    /// Whether rows of sequences with different lengths may share one batch without changing a bit of any of them.
    const RAGGED: bool;

    /// Moves a weight to the device and prepares it; `backward` is false where its transpose is never needed.
    fn prepare(host: HostLinear<'_>, backward: bool, device: &Self::Device) -> Self::Linear;

    /// `x·W + b`, plus `residual` where given.
    fn project(x: Tensor<Self, 2>, linear: &Self::Linear, residual: Option<Tensor<Self, 2>>) -> Tensor<Self, 2>;

    /// `g·Wᵀ`, plus `to` where given.
    fn project_backward(g: Tensor<Self, 2>, linear: &Self::Linear, to: Option<Tensor<Self, 2>>) -> Tensor<Self, 2>;

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

    /// Causal attention of `q` over `k`, `v`; `q` may hold the read positions only.
    fn attend(
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        sequences: &Sequences,
        heads: Heads,
    ) -> Tensor<Self, 2>;

    /// Gradients of [`FrozenOps::attend`].
    fn attend_backward(
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
