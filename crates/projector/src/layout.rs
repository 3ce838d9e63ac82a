//! Where each projector tensor lies in the flat vector of trainable numbers. Used by everything that touches one.

use std::ops::Range;

/// Name, shape and place of one projector tensor, as in the checkpoint file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: &'static str,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// The flat vector `[input weight d | input bias d | output weight d | output bias 1]` of hidden size `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    hidden: usize,
}

impl Layout {
    /// Layout for hidden size `d`.
    pub fn new(hidden: usize) -> Self {
        Self { hidden }
    }

    /// Hidden size `d`.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// `3d+1`.
    pub fn len(&self) -> usize {
        3 * self.hidden + 1
    }

    /// True only for a hidden size of zero parameters, which no model has.
    pub fn is_empty(&self) -> bool {
        self.hidden == 0
    }

    /// Floats of one gradient row: the gradient of every number, then the loss.
    pub fn row_len(&self) -> usize {
        self.len() + 1
    }

    pub fn input_weight(&self) -> Range<usize> {
        0..self.hidden
    }

    pub fn input_bias(&self) -> Range<usize> {
        self.hidden..2 * self.hidden
    }

    pub fn output_weight(&self) -> Range<usize> {
        2 * self.hidden..3 * self.hidden
    }

    pub fn output_bias(&self) -> usize {
        3 * self.hidden
    }

    /// The four tensors, in PyTorch's `Linear` layout.
    pub fn tensors(&self) -> [TensorSpec; 4] {
        let d = self.hidden;
        [
            TensorSpec { name: "input_projection.weight", shape: vec![d, 1], range: self.input_weight() },
            TensorSpec { name: "input_projection.bias", shape: vec![d], range: self.input_bias() },
            TensorSpec { name: "output_projection.weight", shape: vec![1, d], range: self.output_weight() },
            TensorSpec { name: "output_projection.bias", shape: vec![1], range: 3 * d..3 * d + 1 },
        ]
    }
}
