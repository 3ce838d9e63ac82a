//! The operations of a frozen transformer as an extension of Burn's [`Backend`]: what Burn has no fused form for,
//! and what a frozen model can do cheaper because its weights never change.
//!
//! [`FrozenOps`] is implemented by [`flex`] with this crate's own kernels, and by [`generic`]'s functions of plain Burn
//! tensors for every other backend (and, in tests, for autodiff). The model in [`crate::decoder`] is written once over it.
//!
//! Shape suffixes: `r` rows (all positions of all sequences, one after another), `d` hidden size, `f` feed-forward size.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use numalign_config::Dtype;

use crate::error::ModelError;
use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;
use crate::norms::NormParameter;
use crate::sequences::Sequences;

pub mod flex;
pub mod generic;

/// How a dense weight lies in a model's files, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// `[input, output]`: GPT-2's `Conv1D`.
    InputOutput,
    /// `[output, input]`: `torch.nn.Linear`.
    OutputInput,
}

/// A dense weight on the host, and its bias.
#[derive(Debug, Clone, Copy)]
pub struct HostLinear<'a> {
    pub weight: &'a [f32],
    pub stored: Stored,
    pub input: usize,
    pub output: usize,
    /// Range of outputs to use: the parts of GPT-2's fused query-key-value weight are told apart this way.
    pub outputs: (usize, usize),
    pub bias: Option<&'a [f32]>,
    /// How the weight is held on the device. Biases and norms stay `f32`.
    pub dtype: Dtype,
}

/// What a norm keeps for its backward pass.
pub struct Normed<B: Backend> {
    /// `(x − mean)·rstd`, `[r, d]`; an RMS norm has no mean
    pub normed_rd: Tensor<B, 2>,
    /// `1/√(var + eps)`, `[r, 1]`
    pub rstd_r1: Tensor<B, 2>,
}

/// Scale and shift of a norm, on the device.
pub struct NormWeights<B: Backend> {
    /// The tensors' common name in the model's files, without `.weight`.
    pub name: String,
    pub gamma_d: Tensor<B, 1>,
    /// A layer norm's shift. `None` is an RMS norm, which does not centre its input either.
    pub beta_d: Option<Tensor<B, 1>>,
    pub eps: f32,
}

impl<B: Backend> NormWeights<B> {
    /// Numbers that the norm has.
    pub fn numbers(&self) -> usize {
        let [width] = self.gamma_d.dims();
        if self.beta_d.is_some() { 2 * width } else { width }
    }

    /// Appends the norm's parameters to `list`: the scale, then the shift if there is one.
    pub fn parameters(&self, list: &mut Vec<NormParameter>) -> Result<(), ModelError> {
        let named = |kind: &str, values: &Tensor<B, 1>| {
            let values = to_host(values.clone().unsqueeze::<2>())?;
            Ok::<_, ModelError>(NormParameter { name: format!("{}.{kind}", self.name), values })
        };
        list.push(named("weight", &self.gamma_d)?);
        if let Some(beta_d) = &self.beta_d {
            list.push(named("bias", beta_d)?);
        }
        Ok(())
    }

    /// Takes the norm's numbers from the front of `values`, which has at least as many; returns the rest.
    pub fn set<'a>(&mut self, values: &'a [f32]) -> &'a [f32] {
        let [width] = self.gamma_d.dims();
        let device = self.gamma_d.device();
        let tensor = |part: &[f32]| Tensor::from_data(TensorData::new(part.to_vec(), [width]), &device);
        let (gamma, mut rest) = values.split_at(width);
        self.gamma_d = tensor(gamma);
        if let Some(beta_d) = &mut self.beta_d {
            let (beta, tail) = rest.split_at(width);
            *beta_d = tensor(beta);
            rest = tail;
        }
        rest
    }
}

/// A tensor's values, row-major.
pub fn to_host<B: Backend>(x: Tensor<B, 2>) -> Result<Vec<f32>, ModelError> {
    x.into_data().convert::<f32>().into_vec::<f32>().map_err(|error| ModelError::Device {
        device: "tensor".to_owned(),
        reason: format!("its result cannot be read: {error:?}"),
    })
}

/// Cosine and sine of every rotary angle, `[positions, head_size/2]`, on the device.
pub struct RotaryTable<B: Backend> {
    pub cos: Tensor<B, 2>,
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> RotaryTable<B> {
    /// Angles of positions `0..positions`, given radians per position. The platform's `cos` and `sin` are not used, since
    /// they differ between platforms.
    pub fn new(frequencies: &[f32], positions: usize, device: &B::Device) -> Self {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            for frequency in frequencies {
                // The product is rounded to `f32`, as `transformers` has it.
                let angle = f64::from(position as f32 * frequency);
                cos.push(libm::cos(angle) as f32);
                sin.push(libm::sin(angle) as f32);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [positions, frequencies.len()]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Positions that the table holds.
    pub fn positions(&self) -> usize {
        let [positions, _] = self.cos.dims();
        positions
    }
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
    type Linear: Send + Sync;

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

    /// Each head of `x` turned by the angles of its row's position; back by them where `inverse`.
    fn rotate(
        x_rd: Tensor<Self, 2>,
        table: &RotaryTable<Self>,
        positions: &[usize],
        head_size: usize,
        inverse: bool,
    ) -> Tensor<Self, 2>;

    /// Values for each query head: what attention returns where every sequence has one position.
    fn spread_values(v_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2>;

    /// The gradient of [`FrozenOps::spread_values`].
    fn gather_values(grad_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2>;

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
