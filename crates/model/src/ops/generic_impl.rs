//! [`super::FrozenOps`] for a backend by the functions of [`super::generic`], as a macro.

/// Implements [`super::FrozenOps`] for a backend by the functions of [`super::generic`] and a
/// [`Product`](super::generic::Product).
macro_rules! frozen_ops {
    ($backend:ty, $product:path) => {
        impl $crate::ops::FrozenOps for $backend {
            type Linear = $crate::ops::generic::DenseLinear<Self>;
            type Joined = Vec<Self::Linear>;

            const RAGGED: bool = false;
            const REPEATS_ROWS: bool = true;

            fn prepare(host: $crate::ops::HostLinear<'_>, device: &Self::Device) -> Self::Linear {
                $crate::ops::generic::prepare(host, device)
            }

            fn frozen_linear(
                x: burn::tensor::Tensor<Self, 2>,
                linear: &Self::Linear,
                residual: Option<burn::tensor::Tensor<Self, 2>>,
                _: $crate::ops::sequences::RowKind,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::linear(x, linear, residual, $product)
            }

            fn frozen_linear_backward(
                g: burn::tensor::Tensor<Self, 2>,
                linear: &Self::Linear,
                to: Option<burn::tensor::Tensor<Self, 2>>,
                _: $crate::ops::sequences::RowKind,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::linear_backward(g, linear, to, $product)
            }

            fn join(weights: Vec<Self::Linear>) -> Self::Joined {
                weights
            }

            fn joined_linear(
                x: burn::tensor::Tensor<Self, 2>,
                joined: &Self::Joined,
                parts: std::ops::Range<usize>,
                kind: $crate::ops::sequences::RowKind,
            ) -> $crate::ops::Parts<Self> {
                $crate::ops::joined::linear(x, joined, parts, kind)
            }

            fn joined_linear_backward(
                grad: $crate::ops::Parts<Self>,
                joined: &Self::Joined,
                parts: std::ops::Range<usize>,
                to: Option<burn::tensor::Tensor<Self, 2>>,
                kind: $crate::ops::sequences::RowKind,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::joined::linear_backward(grad, joined, parts, to, kind)
            }

            fn normalize(
                x_rd: burn::tensor::Tensor<Self, 2>,
                weights: &$crate::ops::norms::NormWeights<Self>,
            ) -> (burn::tensor::Tensor<Self, 2>, $crate::ops::norms::Normed<Self>) {
                $crate::ops::generic::normalize(x_rd, weights)
            }

            fn normalize_backward(
                grad_rd: burn::tensor::Tensor<Self, 2>,
                saved: &$crate::ops::norms::Normed<Self>,
                weights: &$crate::ops::norms::NormWeights<Self>,
                to: Option<burn::tensor::Tensor<Self, 2>>,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::normalize_backward(grad_rd, saved, weights, to)
            }

            fn activate(
                function: $crate::kernels::activation::Activation,
                u_rf: burn::tensor::Tensor<Self, 2>,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::activation(function, u_rf)
            }

            fn activate_backward(
                function: $crate::kernels::activation::Activation,
                u_rf: burn::tensor::Tensor<Self, 2>,
                grad_rf: burn::tensor::Tensor<Self, 2>,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::activation_backward(function, u_rf, grad_rf)
            }

            fn rotate(
                x_rd: burn::tensor::Tensor<Self, 2>,
                table: &$crate::ops::RotaryTable<Self>,
                positions: &[usize],
                head_size: usize,
                inverse: bool,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::rotate(x_rd, table, positions, head_size, inverse)
            }

            fn repeat_kv(
                v_rd: burn::tensor::Tensor<Self, 2>,
                heads: $crate::kernels::attention::Heads,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::repeat_kv(v_rd, heads)
            }

            fn repeat_kv_backward(
                grad_rd: burn::tensor::Tensor<Self, 2>,
                heads: $crate::kernels::attention::Heads,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::repeat_kv_backward(grad_rd, heads)
            }

            fn causal_attention(
                q_rd: burn::tensor::Tensor<Self, 2>,
                k_rd: burn::tensor::Tensor<Self, 2>,
                v_rd: burn::tensor::Tensor<Self, 2>,
                sequences: &$crate::ops::sequences::Sequences,
                heads: $crate::kernels::attention::Heads,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::attention(q_rd, k_rd, v_rd, sequences, heads)
            }

            fn causal_attention_backward(
                grad_rd: burn::tensor::Tensor<Self, 2>,
                q_rd: burn::tensor::Tensor<Self, 2>,
                k_rd: burn::tensor::Tensor<Self, 2>,
                v_rd: burn::tensor::Tensor<Self, 2>,
                sequences: &$crate::ops::sequences::Sequences,
                heads: $crate::kernels::attention::Heads,
            ) -> $crate::ops::AttentionGradient<Self> {
                $crate::ops::generic::attention_backward(grad_rd, q_rd, k_rd, v_rd, sequences, heads)
            }

            fn gather_rows(x_rd: burn::tensor::Tensor<Self, 2>, indices: &[usize]) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::gather_rows(x_rd, indices)
            }

            fn scatter_rows(
                x_rd: burn::tensor::Tensor<Self, 2>,
                indices: &[usize],
                rows: usize,
            ) -> burn::tensor::Tensor<Self, 2> {
                $crate::ops::generic::scatter_rows(x_rd, indices, rows)
            }
        }
    };
}
pub(crate) use frozen_ops;
