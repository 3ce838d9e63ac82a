//! [`FrozenOps`] for Burn's CPU backend `flex`, by this crate's kernels on the tensors' own memory.

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::tensor::{DType, Shape, Tensor, TensorData, TensorPrimitive};
use burn_flex::{Flex, FlexDevice, FlexTensor};
use numalign_config::{Arithmetic, Dtype};
use rayon::prelude::*;

use super::norms::{NormWeights, Normed};
use super::sequences::{RowKind, Sequences};
use super::{AttentionGradient, FrozenOps, HostBlocks, HostLinear, Parts, RotaryTable, WeightOrder, joined};
use crate::kernels::activation::{self, Activation};
use crate::kernels::attention::{self, Heads};
use crate::kernels::bf16::Pairs;
use crate::kernels::dispatch::isa;
use crate::kernels::matmul::{Direction, Epilogue, Factor, matmul, matmul_new};
use crate::kernels::panels::{PANEL, Packed};
use crate::kernels::quantised::layout::Form;
use crate::kernels::quantised::{make, pack};
use crate::kernels::{norm, rotary};
use crate::load::gguf::kind::Kind;

/// A frozen weight, packed for both passes.
pub struct PackedLinear {
    weight: Weight,
    bias: Option<Vec<f32>>,
}

/// As the arithmetic of its products wants it.
enum Weight {
    F32(Packed),
    Bf16(Pairs),
}

impl FrozenOps for Flex {
    type Linear = PackedLinear;
    type Joined = Vec<PackedLinear>;

    const RAGGED: bool = true;

    fn prepare(host: HostLinear<'_>, _device: &FlexDevice) -> PackedLinear {
        let (from, to) = host.outputs;
        let (k, n) = (host.input, to - from);
        let (part, rows, columns) = match host.order {
            WeightOrder::InputOutput => (&host.weight[from..], host.output, 1),
            WeightOrder::OutputInput => (&host.weight[from * k..], 1, k),
        };
        let bias = host.bias.map(|bias| bias[from..to].to_vec());
        if host.arithmetic == Arithmetic::Bf16 {
            return PackedLinear { weight: Weight::Bf16(Pairs::new(part, k, n, rows, columns)), bias };
        }
        let plain = |dtype: Dtype| Packed::new(part, k, n, rows, columns, dtype);
        let weight = match (host.blocks, host.dtype) {
            // As the file has it, so that the numbers are those of the file.
            (Some(HostBlocks { kind, bytes }), _) => match (form(*kind), kind) {
                (Some(form), _) => {
                    Packed::quantised(k, n, pack::from_ggml(form, bytes, kind.block().1 as usize, k, from..to))
                }
                (None, Kind::F16) => plain(Dtype::F16),
                (None, Kind::BF16) => plain(Dtype::Bf16),
                (None, _) => plain(Dtype::F32),
            },
            (None, Dtype::Q8_0) if k.is_multiple_of(PANEL) => {
                Packed::quantised(k, n, make::from_f32(Form::Q8_0, part, k, n, rows, columns))
            }
            (None, Dtype::Q4_0) if k.is_multiple_of(PANEL) => {
                Packed::quantised(k, n, make::from_f32(Form::Q4_0, part, k, n, rows, columns))
            }
            (None, dtype) => plain(dtype),
        };
        PackedLinear { weight: Weight::F32(weight), bias }
    }

    fn frozen_linear(
        x: Tensor<Self, 2>,
        linear: &PackedLinear,
        residual: Option<Tensor<Self, 2>>,
        _: RowKind,
    ) -> Tensor<Self, 2> {
        let bias = linear.bias.as_deref();
        match &linear.weight {
            Weight::F32(weight) => product(x, weight, Direction::Forward, bias, residual),
            Weight::Bf16(weight) => product(x, weight, Direction::Forward, bias, residual),
        }
    }

    fn frozen_linear_backward(
        g: Tensor<Self, 2>,
        linear: &PackedLinear,
        to: Option<Tensor<Self, 2>>,
        _: RowKind,
    ) -> Tensor<Self, 2> {
        match &linear.weight {
            Weight::F32(weight) => product(g, weight, Direction::Backward, None, to),
            Weight::Bf16(weight) => product(g, weight, Direction::Backward, None, to),
        }
    }

    fn join(weights: Vec<PackedLinear>) -> Vec<PackedLinear> {
        weights
    }

    fn joined_linear(
        x: Tensor<Self, 2>,
        joined: &Vec<PackedLinear>,
        parts: Range<usize>,
        kind: RowKind,
    ) -> Parts<Self> {
        joined::linear(x, joined, parts, kind)
    }

    fn joined_linear_backward(
        grad: Parts<Self>,
        joined: &Vec<PackedLinear>,
        parts: Range<usize>,
        to: Option<Tensor<Self, 2>>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        joined::linear_backward(grad, joined, parts, to, kind)
    }

    fn normalize(x_rd: Tensor<Self, 2>, weights: &NormWeights<Self>) -> (Tensor<Self, 2>, Normed<Self>) {
        let [rows, d] = x_rd.dims();
        let x = Host::of(x_rd);
        let (gamma, beta) = (Host::of(weights.gamma_d.clone()), weights.beta_d.clone().map(Host::of));
        let (mut normed, mut rstd, mut y) = (zeros(rows * d), zeros(rows), zeros(rows * d));
        let beta = beta.as_ref().map(Host::slice);
        norm::forward(x.slice(), gamma.slice(), beta, weights.eps, &mut normed, &mut rstd, &mut y);
        (tensor(y, [rows, d]), Normed { normed_rd: tensor(normed, [rows, d]), rstd_r1: tensor(rstd, [rows, 1]) })
    }

    fn normalize_backward(
        grad_rd: Tensor<Self, 2>,
        saved: &Normed<Self>,
        weights: &NormWeights<Self>,
        to: Option<Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        let [rows, d] = grad_rd.dims();
        let mut out = to.map_or_else(|| zeros(rows * d), into_vec);
        norm::backward_add(
            Host::of(grad_rd).slice(),
            Host::of(saved.normed_rd.clone()).slice(),
            Host::of(saved.rstd_r1.clone()).slice(),
            Host::of(weights.gamma_d.clone()).slice(),
            weights.beta_d.is_some(),
            &mut out,
        );
        tensor(out, [rows, d])
    }

    fn activate(function: Activation, u_rf: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let shape = u_rf.dims();
        let mut out = zeros(shape[0] * shape[1]);
        activation::forward(function, Host::of(u_rf).slice(), &mut out);
        tensor(out, shape)
    }

    fn activate_backward(function: Activation, u_rf: Tensor<Self, 2>, grad_rf: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let shape = u_rf.dims();
        let mut grad = into_vec(grad_rf);
        activation::backward(function, Host::of(u_rf).slice(), &mut grad);
        tensor(grad, shape)
    }

    fn rotate(
        x_rd: Tensor<Self, 2>,
        table: &RotaryTable<Self>,
        positions: &[usize],
        head_size: usize,
        inverse: bool,
    ) -> Tensor<Self, 2> {
        let shape = x_rd.dims();
        let mut x = into_vec(x_rd);
        let (cos, sin) = (Host::of(table.cos.clone()), Host::of(table.sin.clone()));
        rotary::turn(&mut x, shape[1], head_size, positions, cos.slice(), sin.slice(), inverse);
        tensor(x, shape)
    }

    fn repeat_kv(v_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2> {
        if heads.group() == 1 {
            return v_rd;
        }
        let [rows, _] = v_rd.dims();
        let mut out = zeros(rows * heads.width());
        attention::repeat_kv(Host::of(v_rd).slice(), heads, &mut out);
        tensor(out, [rows, heads.width()])
    }

    fn repeat_kv_backward(grad_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2> {
        if heads.group() == 1 {
            return grad_rd;
        }
        let [rows, _] = grad_rd.dims();
        let mut out = zeros(rows * heads.kv_width());
        attention::repeat_kv_backward(Host::of(grad_rd).slice(), heads, &mut out);
        tensor(out, [rows, heads.kv_width()])
    }

    fn causal_attention(
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        sequences: &Sequences,
        heads: Heads,
    ) -> Tensor<Self, 2> {
        let shape = q_rd.dims();
        let mut out = zeros(shape[0] * shape[1]);
        let (q, k, v) = (Host::of(q_rd), Host::of(k_rd), Host::of(v_rd));
        attention::forward(isa(), q.slice(), k.slice(), v.slice(), &sequences.spans(), heads, &mut out);
        tensor(out, shape)
    }

    fn causal_attention_backward(
        grad_rd: Tensor<Self, 2>,
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        sequences: &Sequences,
        heads: Heads,
    ) -> AttentionGradient<Self> {
        let (query_shape, key_shape) = (q_rd.dims(), k_rd.dims());
        let mut grad_q = zeros(query_shape[0] * query_shape[1]);
        let mut grad_k = zeros(key_shape[0] * key_shape[1]);
        let mut grad_v = zeros(key_shape[0] * key_shape[1]);
        let (grad, q, k, v) = (Host::of(grad_rd), Host::of(q_rd), Host::of(k_rd), Host::of(v_rd));
        attention::backward(
            isa(),
            grad.slice(),
            q.slice(),
            k.slice(),
            v.slice(),
            &sequences.spans(),
            heads,
            &mut grad_q,
            &mut grad_k,
            &mut grad_v,
        );
        AttentionGradient {
            query_rd: tensor(grad_q, query_shape),
            key_rd: tensor(grad_k, key_shape),
            value_rd: tensor(grad_v, key_shape),
            whole: None,
        }
    }

    fn gather_rows(x_rd: Tensor<Self, 2>, indices: &[usize]) -> Tensor<Self, 2> {
        let [_, d] = x_rd.dims();
        let x = Host::of(x_rd);
        let mut out = Vec::with_capacity(indices.len() * d);
        for &row in indices {
            out.extend_from_slice(&x.slice()[row * d..(row + 1) * d]);
        }
        tensor(out, [indices.len(), d])
    }

    fn scatter_rows(x_rd: Tensor<Self, 2>, indices: &[usize], rows: usize) -> Tensor<Self, 2> {
        let [_, d] = x_rd.dims();
        let x = Host::of(x_rd);
        let mut out = zeros(rows * d);
        for (i, &row) in indices.iter().enumerate() {
            out[row * d..(row + 1) * d].copy_from_slice(&x.slice()[i * d..(i + 1) * d]);
        }
        tensor(out, [rows, d])
    }
}

fn product(
    x: Tensor<Flex, 2>,
    weight: &impl Factor,
    direction: Direction,
    bias: Option<&[f32]>,
    add: Option<Tensor<Flex, 2>>,
) -> Tensor<Flex, 2> {
    let [rows, _] = x.dims();
    let (_, columns) = weight.sizes(direction);
    let x = Host::of(x);
    let out = match add {
        None => matmul_new(x.slice(), rows, weight, direction, bias),
        Some(add) => {
            let mut out = into_vec(add);
            matmul(x.slice(), rows, weight, direction, Epilogue { bias, accumulate: true }, &mut out);
            out
        }
    };
    tensor(out, [rows, columns])
}

/// The kind of blocks that products take as they are.
fn form(kind: Kind) -> Option<Form> {
    Some(match kind {
        Kind::Q8_0 => Form::Q8_0,
        Kind::Q4_0 => Form::Q4_0,
        Kind::Q4_1 => Form::Q4_1,
        Kind::Q5_0 => Form::Q5_0,
        Kind::Q5_1 => Form::Q5_1,
        Kind::Q4_K => Form::Q4_K,
        Kind::Q5_K => Form::Q5_K,
        Kind::Q6_K => Form::Q6_K,
        Kind::F32 | Kind::F16 | Kind::BF16 | Kind::Q2_K | Kind::Q3_K => return None,
    })
}

/// Cleared by all threads: of a long sequence's activations a single one would be busy for several percent of a step.
fn zeros(count: usize) -> Vec<f32> {
    const PART: usize = 1 << 18;
    if count <= PART {
        return vec![0.0; count];
    }
    let mut values = Vec::with_capacity(count);
    values.spare_capacity_mut()[..count].par_chunks_mut(PART).for_each(|part| {
        part.fill(MaybeUninit::new(0.0));
    });
    // SAFETY: the first `count` elements were written above.
    unsafe { values.set_len(count) };
    values
}

/// A tensor of `values`, without a copy.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    let flex = FlexTensor::from_data(TensorData::new(values, Shape::from(shape)));
    Tensor::from_primitive(TensorPrimitive::Float(flex))
}

/// The values of a tensor, without a copy where nobody else holds them.
fn into_vec(x: Tensor<Flex, 2>) -> Vec<f32> {
    let data = x.into_primitive().tensor().into_data();
    match data.into_vec::<f32>() {
        Ok(values) => values,
        Err(error) => unreachable!("flex tensors of the model are f32: {error:?}"),
    }
}

/// A contiguous `f32` tensor whose memory can be read.
struct Host(FlexTensor);

impl Host {
    fn of<const D: usize>(x: Tensor<Flex, D>) -> Self {
        let primitive = x.into_primitive().tensor();
        debug_assert_eq!(primitive.dtype(), DType::F32);
        Self(primitive.to_contiguous())
    }

    fn slice(&self) -> &[f32] {
        let count = self.0.layout().shape().num_elements();
        &self.0.storage::<f32>()[self.0.layout().start_offset()..][..count]
    }
}
