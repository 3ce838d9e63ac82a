//! [`FrozenOps`] on NVIDIA's GPUs, by this crate's kernels and cubek's matrix products.

use std::ops::Range;

use burn::backend::cuda::CudaDevice;
use burn::tensor::Tensor;

use super::attend::Plan;
use super::attention_backward::Kept;
use super::finish::Epilogue;
use super::linear::Linear;
use super::matrix::Matrix;
use super::rotary::{Positions, prepare, prepare_backward};
use super::rows::{self, Progression};
use super::{Cuda, finish_norm, gate, norm};
use crate::kernels::activation::Activation;
use crate::kernels::attention::Heads;
use crate::ops::attend::{self, Own, Projected};
use crate::ops::device_failure;
use crate::ops::norms::{NormWeights, Normed};
use crate::ops::sequences::{RowKind, Sequences};
use crate::ops::{Attended, AttentionGradient, AttentionShape, FrozenOps, HostLinear, Parts, RotaryTable, generic};

impl FrozenOps for Cuda {
    type Linear = Linear;
    type Joined = Linear;

    const RAGGED: bool = false;
    const REPEATS_ROWS: bool = true;

    fn prepare(host: HostLinear<'_>, device: &CudaDevice) -> Linear {
        Linear::new(&host, device)
    }

    fn join(weights: Vec<Linear>) -> Linear {
        Linear::join(weights)
    }

    fn frozen_linear(
        x: Tensor<Self, 2>,
        linear: &Linear,
        residual: Option<Tensor<Self, 2>>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        linear.forward(&Matrix::of(x), 0..1, kind, added(residual)).0.tensor()
    }

    fn frozen_linear_backward(
        g: Tensor<Self, 2>,
        linear: &Linear,
        to: Option<Tensor<Self, 2>>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        linear.backward(&Matrix::of(g), 0..1, kind, added(to)).tensor()
    }

    fn joined_linear(x: Tensor<Self, 2>, joined: &Linear, parts: Range<usize>, kind: RowKind) -> Parts<Self> {
        let (whole, _) = joined.forward(&Matrix::of(x), parts.clone(), kind, Epilogue::Plain);
        side_by_side(whole, joined.widths(&parts))
    }

    fn joined_linear_backward(
        grad: Parts<Self>,
        joined: &Linear,
        parts: Range<usize>,
        to: Option<Tensor<Self, 2>>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        let whole = grad.whole.unwrap_or_else(|| Tensor::cat(grad.each, 1));
        joined.backward(&Matrix::of(whole), parts, kind, added(to)).tensor()
    }

    fn linear_normalized(
        x: Tensor<Self, 2>,
        linear: &Linear,
        residual: Tensor<Self, 2>,
        weights: &NormWeights<Self>,
        kind: RowKind,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>, Normed<Self>) {
        let (product, bias) = linear.product(&Matrix::of(x), 0..1, kind);
        let (sum, y, normed) = finish_norm::forward(&product, bias.as_ref(), &Matrix::of(residual), weights);
        (sum.tensor(), y.tensor(), normed)
    }

    fn linear_backward_normalized(
        g: Tensor<Self, 2>,
        linear: &Linear,
        norm: (&NormWeights<Self>, &Normed<Self>),
        to: Tensor<Self, 2>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        let product = linear.product_backward(&Matrix::of(g), 0..1, kind);
        finish_norm::backward(&product, None, norm, &Matrix::of(to)).tensor()
    }

    fn joined_linear_backward_normalized(
        grad: Parts<Self>,
        (joined, parts): (&Linear, Range<usize>),
        own: Option<Tensor<Self, 2>>,
        norm: (&NormWeights<Self>, &Normed<Self>),
        to: Tensor<Self, 2>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        let whole = grad.whole.unwrap_or_else(|| Tensor::cat(grad.each, 1));
        let product = joined.product_backward(&Matrix::of(whole), parts, kind);
        finish_norm::backward(&product, own.map(Matrix::of).as_ref(), norm, &Matrix::of(to)).tensor()
    }

    fn activated_linear(
        x: Tensor<Self, 2>,
        linear: &Linear,
        function: Activation,
        kind: RowKind,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (u, active) = linear.forward(&Matrix::of(x), 0..1, kind, Epilogue::Activate(function));
        let active = active.unwrap_or_else(|| gate::activate(function, &u, None));
        (active.tensor(), u.tensor())
    }

    fn activated_linear_backward(
        g: Tensor<Self, 2>,
        linear: &Linear,
        function: Activation,
        u: Tensor<Self, 2>,
        kind: RowKind,
    ) -> Tensor<Self, 2> {
        linear.backward(&Matrix::of(g), 0..1, kind, Epilogue::Slope(function, Matrix::of(u))).tensor()
    }

    fn gated(function: Activation, gate_other: &Parts<Self>) -> Tensor<Self, 2> {
        gate::gated(function, &whole(gate_other)).tensor()
    }

    fn gated_backward(function: Activation, gate_other: Parts<Self>, grad: Tensor<Self, 2>) -> Parts<Self> {
        let grad = gate::gated_backward(function, &whole(&gate_other), &Matrix::dense(grad));
        let each = grad.columns / 2;
        side_by_side(grad, &[each, each])
    }

    fn normalize(x_rd: Tensor<Self, 2>, weights: &NormWeights<Self>) -> (Tensor<Self, 2>, Normed<Self>) {
        norm::forward(x_rd, weights)
    }

    fn normalize_backward(
        grad_rd: Tensor<Self, 2>,
        saved: &Normed<Self>,
        weights: &NormWeights<Self>,
        to: Option<Tensor<Self, 2>>,
    ) -> Tensor<Self, 2> {
        norm::backward(grad_rd, saved, weights, to)
    }

    fn activate(function: Activation, u_rf: Tensor<Self, 2>) -> Tensor<Self, 2> {
        gate::activate(function, &Matrix::dense(u_rf), None).tensor()
    }

    fn activate_backward(function: Activation, u_rf: Tensor<Self, 2>, grad_rf: Tensor<Self, 2>) -> Tensor<Self, 2> {
        gate::activate(function, &Matrix::dense(u_rf), Some(&Matrix::dense(grad_rf))).tensor()
    }

    fn rotate(
        x_rd: Tensor<Self, 2>,
        table: &RotaryTable<Self>,
        positions: &[usize],
        head_size: usize,
        inverse: bool,
    ) -> Tensor<Self, 2> {
        generic::rotate(x_rd, table, positions, head_size, inverse)
    }

    fn repeat_kv(v_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2> {
        if heads.group() == 1 { v_rd } else { rows::repeat(&Matrix::of(v_rd), heads).tensor() }
    }

    fn repeat_kv_backward(grad_rd: Tensor<Self, 2>, heads: Heads) -> Tensor<Self, 2> {
        if heads.group() == 1 { grad_rd } else { rows::repeat_backward(&Matrix::of(grad_rd), heads).tensor() }
    }

    fn causal_attention(
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        sequences: &Sequences,
        heads: Heads,
    ) -> Tensor<Self, 2> {
        generic::attention(q_rd, k_rd, v_rd, sequences, heads)
    }

    fn causal_attention_backward(
        grad_rd: Tensor<Self, 2>,
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        sequences: &Sequences,
        heads: Heads,
    ) -> AttentionGradient<Self> {
        generic::attention_backward(grad_rd, q_rd, k_rd, v_rd, sequences, heads)
    }

    fn attend(
        q_rd: Tensor<Self, 2>,
        k_rd: Tensor<Self, 2>,
        v_rd: Tensor<Self, 2>,
        shape: &AttentionShape<'_, Self>,
    ) -> (Tensor<Self, 2>, Attended<Self>) {
        let (q, k, v) = (Matrix::of(q_rd.clone()), Matrix::of(k_rd.clone()), Matrix::of(v_rd.clone()));
        let Some(plan) = Plan::new(&q, shape) else {
            device_failure::record(&format!("attention over heads of {} numbers does not fit", shape.heads.head_size));
            return attend::forward(q_rd, k_rd, v_rd, shape);
        };
        let [of_queries, of_keys] = Positions::of(plan.extent);
        let query = prepare(&q, shape.norms.map(|(query, _)| query), of_queries, shape);
        let key = prepare(&k, shape.norms.map(|(_, key)| key), of_keys, shape);
        let (out, stats) = plan.forward(&query, &key, &v);
        let own = Own { out_rd: out.clone().tensor(), stats: stats.tensor(), query_rd: q_rd, key_rd: k_rd };
        let projected = |x: Matrix| Projected { x_rd: x.tensor(), norm: None };
        let attended = Attended { query: projected(query), key: projected(key), value_rd: v_rd, own: Some(own) };
        (out.tensor(), attended)
    }

    fn attend_backward(
        grad_rd: Tensor<Self, 2>,
        attended: Attended<Self>,
        shape: &AttentionShape<'_, Self>,
    ) -> AttentionGradient<Self> {
        let heads = shape.heads;
        let grad = Matrix::dense(grad_rd.clone());
        let (plan, own) = match (Plan::new(&grad, shape), attended.own) {
            (Some(plan), Some(own)) => (plan, own),
            (_, own) => return attend::backward(grad_rd, Attended { own, ..attended }, shape),
        };
        let Attended { query, key, value_rd, .. } = attended;
        let (q, k, v) = (Matrix::of(query.x_rd), Matrix::of(key.x_rd), Matrix::of(value_rd));
        let (out, stats) = (Matrix::dense(own.out_rd), Matrix::dense(own.stats));
        // Gradients of the same rows lie side by side, for one product.
        let (width, kv_width) = (heads.width(), heads.kv_width());
        let same_rows = q.rows == k.rows;
        let whole = grad.empty(k.rows, 2 * kv_width + if same_rows { width } else { 0 });
        let kv_at = whole.columns - 2 * kv_width;
        let grad_q = if same_rows { whole.part(0, width) } else { grad.empty(q.rows, width) };
        let (grad_k, grad_v) = (whole.part(kv_at, kv_width), whole.part(kv_at + kv_width, kv_width));
        let kept = Kept { q: &q, k: &k, v: &v, out: &out, stats: &stats };
        plan.backward(&grad, &kept, [&grad_q, &grad_k, &grad_v]);
        let [of_queries, of_keys] = Positions::of(plan.extent);
        let (query_norm, key_norm) = (shape.norms.map(|(query, _)| query), shape.norms.map(|(_, key)| key));
        prepare_backward(&grad_q, &Matrix::of(own.query_rd), query_norm, of_queries, shape);
        prepare_backward(&grad_k, &Matrix::of(own.key_rd), key_norm, of_keys, shape);
        AttentionGradient {
            query_rd: grad_q.tensor(),
            key_rd: grad_k.tensor(),
            value_rd: grad_v.tensor(),
            whole: Some(whole.tensor()),
        }
    }

    fn repeat_rows(x_ed: Tensor<Self, 2>, positions: Option<&Tensor<Self, 2>>, each: usize) -> Tensor<Self, 2> {
        rows::repeat_rows(&Matrix::of(x_ed), positions.cloned().map(Matrix::of).as_ref(), each).tensor()
    }

    fn sum_rows(x_rd: Tensor<Self, 2>, each: usize) -> Tensor<Self, 2> {
        rows::sum_rows(&Matrix::of(x_rd), each).tensor()
    }

    fn gather_rows(x_rd: Tensor<Self, 2>, indices: &[usize]) -> Tensor<Self, 2> {
        match Progression::of(indices) {
            Some(from) => rows::gather(&Matrix::of(x_rd), from, indices.len()).tensor(),
            None => generic::gather_rows(x_rd, indices),
        }
    }

    fn scatter_rows(x_rd: Tensor<Self, 2>, indices: &[usize], rows: usize) -> Tensor<Self, 2> {
        match Progression::of(indices) {
            Some(to) => rows::scatter(&Matrix::of(x_rd), to, rows).tensor(),
            None => generic::scatter_rows(x_rd, indices, rows),
        }
    }
}

/// The epilogue that adds a tensor, where there is one.
fn added(to: Option<Tensor<Cuda, 2>>) -> Epilogue {
    to.map_or(Epilogue::Plain, |to| Epilogue::Add(Matrix::of(to)))
}

/// Columns of one matrix as tensors, and the whole.
fn side_by_side(whole: Matrix, widths: &[usize]) -> Parts<Cuda> {
    let mut from = 0;
    let mut each = Vec::with_capacity(widths.len());
    for width in widths {
        each.push(whole.part(from, *width).tensor());
        from += width;
    }
    Parts { each, whole: Some(whole.tensor()) }
}

/// All parts as one matrix without gaps.
fn whole(parts: &Parts<Cuda>) -> Matrix {
    Matrix::dense(parts.whole.clone().unwrap_or_else(|| Tensor::cat(parts.each.clone(), 1)))
}
