//! Products with frozen weights on the GPU, and what follows them: [`Linear`] holds one weight or several side by side.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use numalign_config::Arithmetic;

use super::finish::{Epilogue, finish};
use super::matrix::Matrix;
use super::weight::Weight;
use super::{Cuda, mapped_products, products, skinny};
use crate::ops::HostLinear;
use crate::ops::sequences::RowKind;

/// A weight, or several over one input, and the bias.
pub struct Linear {
    /// `[input, output]`
    weight: Weight,
    /// `[1, output]`
    bias: Option<Matrix>,
    /// Outputs of each weight.
    widths: Vec<usize>,
    /// To what products round their factors.
    arithmetic: Arithmetic,
    /// Whether the GPU reads tiles by tensor maps.
    tensor_maps: bool,
}

impl Linear {
    /// Moves a weight to `device`.
    pub fn new(host: &HostLinear<'_>, device: &burn::backend::cuda::CudaDevice) -> Self {
        let (from, to) = host.outputs;
        let bias = host.bias.map(|bias| {
            let data = TensorData::new(bias[from..to].to_vec(), [1, to - from]);
            Matrix::dense(Tensor::from_data(data, device))
        });
        Self {
            weight: Weight::new(host, device),
            bias,
            widths: vec![to - from],
            arithmetic: host.arithmetic,
            tensor_maps: super::has_tensor_maps(device.index),
        }
    }

    /// Weights with the same inputs, side by side.
    pub fn join(parts: Vec<Self>) -> Self {
        let (mut arithmetic, mut tensor_maps) = (Arithmetic::F32, false);
        let (mut weights, mut biases, mut widths) = (Vec::new(), Vec::new(), Vec::new());
        let biased = parts.iter().any(|part| part.bias.is_some());
        for part in parts {
            let width = part.weight.columns;
            (arithmetic, tensor_maps) = (part.arithmetic, part.tensor_maps);
            if biased {
                let device = part.weight.primitive().device;
                biases.push(match part.bias {
                    Some(bias) => bias.tensor(),
                    None => Tensor::<Cuda, 2>::zeros([1, width], &device),
                });
            }
            widths.extend(part.widths);
            weights.push(part.weight);
        }
        let bias = biased.then(|| Matrix::dense(Tensor::cat(biases, 1)));
        Self { weight: Weight::side_by_side(weights), bias, widths, arithmetic, tensor_maps }
    }

    /// The first column of the weights `parts`, and how many columns they have.
    fn columns(&self, parts: &Range<usize>) -> (usize, usize) {
        (self.widths[..parts.start].iter().sum(), self.widths[parts.clone()].iter().sum())
    }

    /// Outputs of each of the weights `parts`.
    pub fn widths(&self, parts: &Range<usize>) -> &[usize] {
        &self.widths[parts.clone()]
    }

    /// `x·W + b` of the weights `parts`, and what follows.
    pub fn forward(
        &self,
        x: &Matrix,
        parts: Range<usize>,
        kind: RowKind,
        epilogue: Epilogue,
    ) -> (Matrix, Option<Matrix>) {
        let (product, bias) = self.product(x, parts, kind);
        product.finish(bias.as_ref(), epilogue)
    }

    /// `g·Wᵀ` of the weights `parts`, and what follows.
    pub fn backward(&self, grad: &Matrix, parts: Range<usize>, kind: RowKind, epilogue: Epilogue) -> Matrix {
        self.product_backward(grad, parts, kind).finish(None, epilogue).0
    }

    /// `x·W` of the weights `parts`, and their biases.
    pub fn product(&self, x: &Matrix, parts: Range<usize>, kind: RowKind) -> (Product, Option<Matrix>) {
        let (from, count) = self.columns(&parts);
        let bias = self.bias.as_ref().map(|bias| bias.part(from, count));
        (self.multiply(x, &self.weight.part(from, count), kind), bias)
    }

    /// `g·Wᵀ` of the weights `parts`.
    pub fn product_backward(&self, grad: &Matrix, parts: Range<usize>, kind: RowKind) -> Product {
        let (from, count) = self.columns(&parts);
        self.multiply(grad, &self.weight.part(from, count).turned(), kind)
    }

    fn multiply(&self, x: &Matrix, weight: &Weight, kind: RowKind) -> Product {
        let (parts, count) = match (kind, self.arithmetic) {
            (RowKind::Short, _) => skinny::product(x, weight, true),
            (RowKind::Long, Arithmetic::F32) => skinny::product(x, weight, false),
            (RowKind::Long, arithmetic) => {
                let mapped = self.tensor_maps.then(|| mapped_products::product(x, weight, arithmetic)).flatten();
                (mapped.unwrap_or_else(|| products::product(x, weight, arithmetic)), 1)
            }
        };
        Product { parts, count, rows: x.rows }
    }
}

/// A product before its parts are added up.
pub struct Product {
    /// The parts one after another.
    pub parts: Matrix,
    /// How many there are.
    pub count: usize,
    /// Rows of each.
    rows: usize,
}

impl Product {
    fn finish(self, bias: Option<&Matrix>, epilogue: Epilogue) -> (Matrix, Option<Matrix>) {
        if self.count == 1 && bias.is_none() && matches!(epilogue, Epilogue::Plain) {
            return (self.parts, None);
        }
        finish(&self.parts, self.count, [self.rows, self.parts.columns], bias, epilogue)
    }
}
