//! The operations of [`super::FrozenOps`] in plain Burn tensors, for backends without kernels of our own.
//! In tests they are an independent second opinion on `flex`'s.
//!
//! Attention here wants sequences of one length: callers pad, or batch by length. Shape suffixes and letters: `r` rows
//! (all positions of all sequences, one after another), `d` hidden size, `h` query heads, `k` key heads, `s` head size.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, FloatDType, Int, Tensor, TensorData, activation as act};
use numalign_config::{Arithmetic, Dtype};

use super::norms::{NormWeights, Normed};
use super::sequences::Sequences;
use super::{AttentionGradient, HostLinear, RotaryTable, WeightOrder};
use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;

/// A weight `[input, output]` and its bias on the device; the transpose is a view.
pub struct DenseLinear<B: Backend> {
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 2>>,
    arithmetic: Arithmetic,
}

/// `a·b` in `f32`, `[n, k] × [k, m]`, with the factors rounded as the last argument says.
pub type Product<B> = fn(Tensor<B, 2>, Tensor<B, 2>, Arithmetic) -> Tensor<B, 2>;

/// The [`Product`] of a backend that multiplies in `f32` alone.
#[cfg(test)]
pub fn product<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>, _: Arithmetic) -> Tensor<B, 2> {
    let b = if b.dtype() == burn::tensor::DType::F32 { b } else { b.cast(FloatDType::F32) };
    a.matmul(b)
}

/// Moves a weight to `device`.
pub fn prepare<B: Backend>(host: HostLinear<'_>, device: &B::Device) -> DenseLinear<B> {
    let (from, to) = host.outputs;
    let width = to - from;
    let weight: Tensor<B, 2> = match host.order {
        WeightOrder::InputOutput => {
            let mut part = Vec::with_capacity(host.input * width);
            for row in host.weight.chunks_exact(host.output) {
                part.extend_from_slice(&row[from..to]);
            }
            Tensor::from_data(TensorData::new(part, [host.input, width]), device)
        }
        WeightOrder::OutputInput => {
            let part = host.weight[from * host.input..to * host.input].to_vec();
            Tensor::<B, 2>::from_data(TensorData::new(part, [width, host.input]), device).transpose()
        }
    };
    let weight = match host.dtype {
        Dtype::Bf16 => weight.cast(FloatDType::BF16),
        Dtype::F16 => weight.cast(FloatDType::F16),
        // Blocks are the CPU's: `load` refuses them elsewhere.
        _ => weight,
    };
    DenseLinear {
        weight,
        bias: host.bias.map(|bias| Tensor::from_data(TensorData::new(bias[from..to].to_vec(), [1, width]), device)),
        arithmetic: host.arithmetic,
    }
}

/// `x·W + b`, plus `residual` if given: `x [r, inputs]`, the result `[r, outputs]`.
pub fn linear<B: Backend>(
    x: Tensor<B, 2>,
    linear: &DenseLinear<B>,
    residual: Option<Tensor<B, 2>>,
    product: Product<B>,
) -> Tensor<B, 2> {
    let mut y = product(x, linear.weight.clone(), linear.arithmetic);
    if let Some(bias) = &linear.bias {
        y = y + bias.clone();
    }
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

/// `g·Wᵀ`, plus `to` if given: `g [r, outputs]`, the result `[r, inputs]`.
pub fn linear_backward<B: Backend>(
    g: Tensor<B, 2>,
    linear: &DenseLinear<B>,
    to: Option<Tensor<B, 2>>,
    product: Product<B>,
) -> Tensor<B, 2> {
    let product = product(g, linear.weight.clone().transpose(), linear.arithmetic);
    match to {
        Some(to) => to + product,
        None => product,
    }
}

/// Layer norm of `x [r, d]`, or RMS norm without a shift (formulas: [`crate::kernels::norm`]); and what the backward pass
/// needs.
pub fn normalize<B: Backend>(x_rd: Tensor<B, 2>, weights: &NormWeights<B>) -> (Tensor<B, 2>, Normed<B>) {
    let centred = match weights.beta_d {
        Some(_) => x_rd.clone() - x_rd.mean_dim(1),
        None => x_rd,
    };
    let variance = centred.clone().powi_scalar(2).mean_dim(1);
    let rstd_r1 = variance.add_scalar(weights.eps).sqrt().recip();
    let normed_rd = centred * rstd_r1.clone();
    let scaled = normed_rd.clone() * weights.gamma_d.clone().unsqueeze();
    let y = match &weights.beta_d {
        Some(beta_d) => scaled + beta_d.clone().unsqueeze(),
        None => scaled,
    };
    (y, Normed { normed_rd, rstd_r1 })
}

/// `to` plus the gradient of the norm's input, `[r, d]`, from that of its output.
pub fn normalize_backward<B: Backend>(
    grad_rd: Tensor<B, 2>,
    saved: &Normed<B>,
    weights: &NormWeights<B>,
    to: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let scaled = grad_rd * weights.gamma_d.clone().unsqueeze();
    let along = (scaled.clone() * saved.normed_rd.clone()).mean_dim(1);
    let centred = match weights.beta_d {
        Some(_) => scaled.clone() - scaled.mean_dim(1),
        None => scaled,
    };
    let grad = (centred - saved.normed_rd.clone() * along) * saved.rstd_r1.clone();
    match to {
        Some(to) => to + grad,
        None => grad,
    }
}

const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// `f(u)`, element by element; `[r, f]`.
pub fn activation<B: Backend>(function: Activation, u: Tensor<B, 2>) -> Tensor<B, 2> {
    match function {
        Activation::GeluErf => act::gelu(u),
        Activation::GeluTanh => {
            let inner = (u.clone() + u.clone().powi_scalar(3).mul_scalar(GELU_CUBIC)).mul_scalar(GELU_SCALE);
            u.mul_scalar(0.5) * inner.tanh().add_scalar(1.0)
        }
        Activation::QuickGelu => u.clone() * act::sigmoid(u.mul_scalar(1.702)),
        Activation::Relu => act::relu(u),
        Activation::Silu => act::silu(u),
        Activation::Tanh => u.tanh(),
    }
}

/// `grad · f′(u)`, element by element; `[r, f]`.
pub fn activation_backward<B: Backend>(function: Activation, u: Tensor<B, 2>, grad: Tensor<B, 2>) -> Tensor<B, 2> {
    let gated = |u: Tensor<B, 2>, sharpness: f32| {
        let gate = act::sigmoid(u.clone().mul_scalar(sharpness));
        let slope = u.mul_scalar(sharpness) * gate.clone() * (gate.clone().neg().add_scalar(1.0));
        gate + slope
    };
    let slope = match function {
        Activation::GeluTanh => {
            let squared = u.clone().powi_scalar(2);
            let inner = (u.clone() + u.clone() * squared.clone().mul_scalar(GELU_CUBIC)).mul_scalar(GELU_SCALE);
            let t = inner.tanh();
            let inner_slope = squared.mul_scalar(3.0 * GELU_CUBIC).add_scalar(1.0).mul_scalar(GELU_SCALE);
            let rise = t.clone().powi_scalar(2).neg().add_scalar(1.0) * inner_slope;
            t.add_scalar(1.0).mul_scalar(0.5) + u.mul_scalar(0.5) * rise
        }
        Activation::GeluErf => {
            let cdf = u.clone().mul_scalar(std::f32::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
            let density = u.clone().powi_scalar(2).mul_scalar(-0.5).exp().mul_scalar(0.398_942_3);
            cdf + u * density
        }
        Activation::QuickGelu => gated(u, 1.702),
        Activation::Silu => gated(u, 1.0),
        Activation::Relu => u.greater_elem(0.0).float(),
        Activation::Tanh => u.tanh().powi_scalar(2).neg().add_scalar(1.0),
    };
    grad * slope
}

/// `[rows, heads·size]` as `[batch, heads, positions, size]`.
fn split_heads<B: Backend>(x: Tensor<B, 2>, batch: usize, heads: usize) -> Tensor<B, 4> {
    let [rows, width] = x.dims();
    x.reshape([batch, rows / batch, heads, width / heads]).swap_dims(1, 2)
}

/// Keys or values of each query head, `[batch, heads, positions, size]`.
fn split_kv<B: Backend>(x: Tensor<B, 2>, batch: usize, heads: Heads) -> Tensor<B, 4> {
    let x = split_heads(x, batch, heads.kv_heads);
    if heads.group() == 1 {
        return x;
    }
    let [_, kv, positions, size] = x.dims();
    let each = x.reshape([batch, kv, 1, positions, size]).repeat_dim(2, heads.group());
    each.reshape([batch, heads.heads, positions, size])
}

/// The gradient of [`split_kv`].
fn merge_kv<B: Backend>(x: Tensor<B, 4>, heads: Heads) -> Tensor<B, 2> {
    let [batch, _, positions, size] = x.dims();
    let groups = x.reshape([batch, heads.kv_heads, heads.group(), positions, size]);
    merge_heads(groups.sum_dim(2).reshape([batch, heads.kv_heads, positions, size]))
}

/// Values `[r, k·s]` for each query head, `[r, h·s]`.
pub fn repeat_kv<B: Backend>(v: Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
    let [rows, _] = v.dims();
    let each = v.reshape([rows, heads.kv_heads, 1, heads.head_size]).repeat_dim(2, heads.group());
    each.reshape([rows, heads.width()])
}

/// The gradient of [`repeat_kv`]: `[r, h·s]`, summed over the heads that share a value, `[r, k·s]`.
pub fn repeat_kv_backward<B: Backend>(grad: Tensor<B, 2>, heads: Heads) -> Tensor<B, 2> {
    let [rows, _] = grad.dims();
    let groups = grad.reshape([rows, heads.kv_heads, heads.group(), heads.head_size]);
    groups.sum_dim(2).reshape([rows, heads.kv_width()])
}

/// Each head of `x [r, heads·s]` turned by the angles of its row's position, or back by them with `inverse`.
pub fn rotate<B: Backend>(
    x: Tensor<B, 2>,
    table: &RotaryTable<B>,
    positions: &[usize],
    head_size: usize,
    inverse: bool,
) -> Tensor<B, 2> {
    let [rows, width] = x.dims();
    let half = head_size / 2;
    let indices = index::<B>(positions, &x.device());
    let of_rows = |table: &Tensor<B, 2>| table.clone().select(0, indices.clone()).reshape([rows, 1, half]);
    let (cos, sin) = (of_rows(&table.cos), of_rows(&table.sin));
    let sin = if inverse { sin.neg() } else { sin };
    let x = x.reshape([rows, width / head_size, head_size]);
    let (a, b) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    Tensor::cat(vec![first, second], 2).reshape([rows, width])
}

fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, heads, positions, size] = x.dims();
    x.swap_dims(1, 2).reshape([batch * positions, heads * size])
}

fn probabilities<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>, scale: f32) -> Tensor<B, 4> {
    let [_, _, queries, _] = q.dims();
    let [_, _, keys, _] = k.dims();
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(scale);
    if queries == 1 {
        return act::softmax(scores, 3);
    }
    let device = scores.device();
    let hidden: Tensor<B, 2, Bool> = Tensor::<B, 2, Bool>::tril_mask([queries, keys], 0, &device);
    act::softmax(scores.mask_fill(hidden.unsqueeze(), f32::NEG_INFINITY), 3)
}

fn batch_of(sequences: &Sequences) -> usize {
    assert!(sequences.uniform_length().is_some(), "this backend wants sequences of one length");
    sequences.count()
}

/// Causal attention `softmax(q·kᵀ·scale)·v` in each sequence: `q [queries, h·s]`, `k` and `v [r, k·s]`, the result as `q`.
pub fn attention<B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    sequences: &Sequences,
    heads: Heads,
) -> Tensor<B, 2> {
    if sequences.single_positions() {
        return repeat_kv(v, heads);
    }
    let batch = batch_of(sequences);
    let (q, k, v) = (split_heads(q, batch, heads.heads), split_kv(k, batch, heads), split_kv(v, batch, heads));
    merge_heads(probabilities(q, k, heads.scale).matmul(v))
}

/// Gradients of [`attention`]'s inputs, from that of its result, `[queries, h·s]`.
pub fn attention_backward<B: Backend>(
    grad: Tensor<B, 2>,
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    sequences: &Sequences,
    heads: Heads,
) -> AttentionGradient<B> {
    if sequences.single_positions() {
        return AttentionGradient {
            query_rd: q.zeros_like(),
            key_rd: k.zeros_like(),
            value_rd: repeat_kv_backward(grad, heads),
            whole: None,
        };
    }
    let batch = batch_of(sequences);
    let (q, k, v) = (split_heads(q, batch, heads.heads), split_kv(k, batch, heads), split_kv(v, batch, heads));
    let grad = split_heads(grad, batch, heads.heads);
    let p = probabilities(q.clone(), k.clone(), heads.scale);
    let grad_v = p.clone().swap_dims(2, 3).matmul(grad.clone());
    let grad_p = grad.matmul(v.swap_dims(2, 3));
    let along = (grad_p.clone() * p.clone()).sum_dim(3);
    let grad_s = (p * (grad_p - along)).mul_scalar(heads.scale);
    AttentionGradient {
        query_rd: merge_heads(grad_s.clone().matmul(k)),
        key_rd: merge_kv(grad_s.swap_dims(2, 3).matmul(q), heads),
        value_rd: merge_kv(grad_v, heads),
        whole: None,
    }
}

fn index<B: Backend>(indices: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let indices: Vec<i64> = indices.iter().map(|i| *i as i64).collect();
    let count = indices.len();
    Tensor::from_data(TensorData::new(indices, [count]), device)
}

/// The rows `indices` of `x [r, d]`, `[indices, d]`.
pub fn gather_rows<B: Backend>(x: Tensor<B, 2>, indices: &[usize]) -> Tensor<B, 2> {
    let indices = index::<B>(indices, &x.device());
    x.select(0, indices)
}

/// A `[rows, d]` tensor of zeros, except for the rows of `x [indices, d]`, which go to `indices`.
pub fn scatter_rows<B: Backend>(x: Tensor<B, 2>, indices: &[usize], rows: usize) -> Tensor<B, 2> {
    let [_, d] = x.dims();
    let device = x.device();
    let target = index::<B>(indices, &device);
    Tensor::zeros([rows, d], &device).select_assign(0, target, x, burn::tensor::IndexingUpdateOp::Add)
}
