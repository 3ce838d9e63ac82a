//! Attention of queries and keys as the products yield them, by [`FrozenOps`]' single steps: norms of the heads, rotation,
//! attention, and all of it backward.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use numalign_config::Arithmetic;

use super::norms::{NormWeights, Normed};
use super::sequences::Sequences;
use super::{AttentionGradient, FrozenOps, RotaryTable};
use crate::kernels::attention::Heads;

/// What attention is told beside its tensors.
pub struct AttentionShape<'a, B: Backend> {
    /// Norms of each query head and each key head, before rotation.
    pub norms: Option<(&'a NormWeights<B>, &'a NormWeights<B>)>,
    /// Angles of the positions, where they are rotary.
    pub rotary: Option<&'a RotaryTable<B>>,
    /// The sequences with all their positions.
    pub sequences: &'a Sequences,
    /// The same with the positions that queries are there for.
    pub queries: &'a Sequences,
    /// Numbers and size of the heads.
    pub heads: Heads,
    /// To what the factors of products are rounded, on backends that have a choice.
    pub arithmetic: Arithmetic,
}

/// What attention keeps for the backward pass.
pub struct Attended<B: Backend> {
    /// Queries as attention takes them.
    pub query: Projected<B>,
    /// Keys likewise.
    pub key: Projected<B>,
    /// Values.
    pub value_rd: Tensor<B, 2>,
    /// What a backend's own backward pass wants beside these.
    pub own: Option<Own<B>>,
}

/// What attention keeps where queries and keys are prepared and attended by kernels of a backend's own.
pub struct Own<B: Backend> {
    /// The result.
    pub out_rd: Tensor<B, 2>,
    /// The largest score and the sum of each query's row of scores, `[queries, heads·2]`.
    pub stats: Tensor<B, 2>,
    /// Queries as the product yielded them; meaningful where their heads have a norm.
    pub query_rd: Tensor<B, 2>,
    /// Keys likewise.
    pub key_rd: Tensor<B, 2>,
}

/// Queries or keys as attention takes them, and what the norm of their heads keeps.
pub struct Projected<B: Backend> {
    /// `[r, heads·head_size]`
    pub x_rd: Tensor<B, 2>,
    /// Of the heads, one a row.
    pub norm: Option<Normed<B>>,
}

/// [`FrozenOps::attend`] by single steps.
pub fn forward<B: FrozenOps>(
    q_rd: Tensor<B, 2>,
    k_rd: Tensor<B, 2>,
    v_rd: Tensor<B, 2>,
    shape: &AttentionShape<'_, B>,
) -> (Tensor<B, 2>, Attended<B>) {
    let key = normalize_and_rotate(k_rd, shape.norms.map(|(_, key)| key), shape.sequences, shape);
    let query = normalize_and_rotate(q_rd, shape.norms.map(|(query, _)| query), shape.queries, shape);
    let (q_rd, k_rd) = (query.x_rd.clone(), key.x_rd.clone());
    let out = B::causal_attention(q_rd, k_rd, v_rd.clone(), shape.queries, shape.heads);
    (out, Attended { query, key, value_rd: v_rd, own: None })
}

/// [`FrozenOps::attend_backward`] by single steps.
pub fn backward<B: FrozenOps>(
    grad_rd: Tensor<B, 2>,
    attended: Attended<B>,
    shape: &AttentionShape<'_, B>,
) -> AttentionGradient<B> {
    let Attended { query, key, value_rd, .. } = attended;
    let grad = B::causal_attention_backward(grad_rd, query.x_rd, key.x_rd, value_rd, shape.queries, shape.heads);
    let query_norm = shape.norms.map(|(weights, _)| weights).zip(query.norm.as_ref());
    let key_norm = shape.norms.map(|(_, weights)| weights).zip(key.norm.as_ref());
    AttentionGradient {
        query_rd: normalize_and_rotate_backward(grad.query_rd, query_norm, shape.queries, shape),
        key_rd: normalize_and_rotate_backward(grad.key_rd, key_norm, shape.sequences, shape),
        value_rd: grad.value_rd,
        whole: None,
    }
}

/// Queries or keys with the norm of their heads and their rotation.
fn normalize_and_rotate<B: FrozenOps>(
    x_rd: Tensor<B, 2>,
    norm: Option<&NormWeights<B>>,
    positions: &Sequences,
    shape: &AttentionShape<'_, B>,
) -> Projected<B> {
    let size = shape.heads.head_size;
    let [rows, width] = x_rd.dims();
    let (x_rd, norm) = match norm {
        None => (x_rd, None),
        Some(weights) => {
            let (x, normed) = B::normalize(x_rd.reshape([rows * width / size, size]), weights);
            (x.reshape([rows, width]), Some(normed))
        }
    };
    let x_rd = match shape.rotary {
        None => x_rd,
        Some(table) => B::rotate(x_rd, table, &positions.query_positions(), size, false),
    };
    Projected { x_rd, norm }
}

/// The gradient of what [`normalize_and_rotate`] was given.
fn normalize_and_rotate_backward<B: FrozenOps>(
    grad_rd: Tensor<B, 2>,
    norm: Option<(&NormWeights<B>, &Normed<B>)>,
    positions: &Sequences,
    shape: &AttentionShape<'_, B>,
) -> Tensor<B, 2> {
    let size = shape.heads.head_size;
    let [rows, width] = grad_rd.dims();
    let grad_rd = match shape.rotary {
        None => grad_rd,
        Some(table) => B::rotate(grad_rd, table, &positions.query_positions(), size, true),
    };
    let Some((weights, normed)) = norm else {
        return grad_rd;
    };
    let grad = grad_rd.reshape([rows * width / size, size]);
    B::normalize_backward(grad, normed, weights, None).reshape([rows, width])
}
