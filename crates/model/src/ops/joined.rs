//! Weights over one input that stand side by side, such as those of queries, keys and values: [`FrozenOps::Joined`] where a
//! backend has no product of its own for them.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::FrozenOps;
use super::sequences::RowKind;

/// What joined weights yield or take: one tensor for each weight, all with the same rows.
pub struct Parts<B: Backend> {
    /// In the order of the weights.
    pub each: Vec<Tensor<B, 2>>,
    /// The same side by side, where the backend has them so.
    pub whole: Option<Tensor<B, 2>>,
}

impl<B: Backend> Parts<B> {
    /// Tensors that lie apart.
    pub fn apart(each: Vec<Tensor<B, 2>>) -> Self {
        Self { each, whole: None }
    }

    /// All of them, of as many weights as `N` says.
    pub fn split<const N: usize>(self) -> [Tensor<B, 2>; N] {
        match self.each.try_into() {
            Ok(each) => each,
            Err(each) => unreachable!("{} tensors of {N} weights", Vec::<Tensor<B, 2>>::len(&each)),
        }
    }
}

/// [`FrozenOps::joined_linear`], one weight after another.
pub fn linear<B: FrozenOps>(x: Tensor<B, 2>, weights: &[B::Linear], parts: Range<usize>, kind: RowKind) -> Parts<B> {
    Parts::apart(weights[parts].iter().map(|weight| B::frozen_linear(x.clone(), weight, None, kind)).collect())
}

/// [`FrozenOps::joined_linear_backward`], one weight after another.
pub fn linear_backward<B: FrozenOps>(
    grad: Parts<B>,
    weights: &[B::Linear],
    parts: Range<usize>,
    to: Option<Tensor<B, 2>>,
    kind: RowKind,
) -> Tensor<B, 2> {
    let mut sum = to;
    for (grad, weight) in grad.each.into_iter().zip(&weights[parts]) {
        sum = Some(B::frozen_linear_backward(grad, weight, sum, kind));
    }
    match sum {
        Some(sum) => sum,
        None => unreachable!("there is at least one weight"),
    }
}
