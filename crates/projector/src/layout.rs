//! Where each trainable tensor lies in the flat vector of trainable numbers.

use std::ops::Range;

use numalign_config::Recipe;

use crate::encoding::InputEncoder;

/// Name, shape and place of one projector tensor, as in the checkpoint file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// `input_projection.weight` and the like.
    pub name: &'static str,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Its floats in the flat vector.
    pub range: Range<usize>,
}

/// One tensor of a layer norm of the frozen model, where these train, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormTensor {
    /// The model's own name, such as `h.0.ln_1.weight`.
    pub name: String,
    /// Numbers in it.
    pub len: usize,
}

impl NormTensor {
    /// Numbers in all of `tensors`.
    pub fn total_len(tensors: &[Self]) -> usize {
        tensors.iter().map(|tensor| tensor.len).sum()
    }
}

/// The flat vector `[input weight d·w | input bias d | output weight k·d | output bias 1 | layer norms n]` of hidden size
/// `d`, input width `w` (1, or `1+2p` with `fourier` of `p` periods), `k` places that are read side by side, and `n`
/// numbers of the frozen model's layer norms (0 where they do not train).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    hidden: usize,
    input_width: usize,
    places: usize,
    layer_norms: usize,
}

/// Widest parts that [`Layout::to_word`] can hold.
const MOST_HIDDEN: u64 = (1 << 24) - 1;
const MOST_WIDTH: u64 = 1 << 8;
const MOST_PLACES: u64 = numalign_config::MOST_TAPS as u64;
const MOST_NORMS: u64 = (1 << 24) - 1;

impl Layout {
    /// Layout for hidden size `d`, one scalar per number, one place that is read, no layer norms.
    pub fn new(hidden: usize) -> Self {
        Self { hidden, input_width: 1, places: 1, layer_norms: 0 }
    }

    /// Layout that `recipe` trains on a model of hidden size `d` whose layer norms have `layer_norms` numbers.
    pub fn of(recipe: &Recipe, hidden: usize, layer_norms: usize) -> Self {
        let layer_norms = if recipe.train_layer_norms { layer_norms } else { 0 };
        Self { hidden, input_width: InputEncoder::of(recipe).width(), places: recipe.places().len(), layer_norms }
    }

    /// The same with an output projector that reads `places` places.
    pub fn with_places(self, places: usize) -> Self {
        Self { places, ..self }
    }

    /// The same with `layer_norms` numbers of layer norms.
    pub fn with_layer_norms(self, layer_norms: usize) -> Self {
        Self { layer_norms, ..self }
    }

    /// The same with an input projector of `input_width` columns.
    #[cfg(test)]
    pub(crate) fn with_input_width(self, input_width: usize) -> Self {
        Self { input_width, ..self }
    }

    /// Hidden size `d`.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Places `k` that the output projector reads.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Columns `k·d` of the output projector: what is read of a sample, the hidden states of all places side by side.
    pub fn read_width(&self) -> usize {
        self.places * self.hidden
    }

    /// Columns `w` of the input projector.
    pub fn input_width(&self) -> usize {
        self.input_width
    }

    /// `d·w + d + k·d + 1 + n`.
    pub fn len(&self) -> usize {
        self.layer_norms().end
    }

    /// True only for a hidden size of zero parameters, which no model has.
    pub fn is_empty(&self) -> bool {
        self.hidden == 0
    }

    /// Floats of one gradient row: the gradient of every number, then the loss.
    pub fn row_len(&self) -> usize {
        self.len() + 1
    }

    /// `[d, w]`, row-major.
    pub fn input_weight(&self) -> Range<usize> {
        0..self.hidden * self.input_width
    }

    /// `[d]`
    pub fn input_bias(&self) -> Range<usize> {
        let start = self.input_weight().end;
        start..start + self.hidden
    }

    /// `[k·d]`
    pub fn output_weight(&self) -> Range<usize> {
        let start = self.input_bias().end;
        start..start + self.read_width()
    }

    /// The place of the one number.
    pub fn output_bias(&self) -> usize {
        self.output_weight().end
    }

    /// The input projector, weight and bias.
    pub fn input(&self) -> Range<usize> {
        0..self.input_bias().end
    }

    /// The output projector, weight and bias.
    pub fn output(&self) -> Range<usize> {
        self.output_weight().start..self.output_bias() + 1
    }

    /// The layer norms, in the model's order; empty where they do not train.
    pub fn layer_norms(&self) -> Range<usize> {
        let start = self.output_bias() + 1;
        start..start + self.layer_norms
    }

    /// The four projector tensors, in PyTorch's `Linear` layout. Layer norms have the model's names, which a layout does
    /// not know.
    pub fn tensors(&self) -> [TensorSpec; 4] {
        let d = self.hidden;
        let bias = self.output_bias();
        [
            TensorSpec {
                name: "input_projection.weight",
                shape: vec![d, self.input_width],
                range: self.input_weight(),
            },
            TensorSpec { name: "input_projection.bias", shape: vec![d], range: self.input_bias() },
            TensorSpec {
                name: "output_projection.weight",
                shape: vec![1, self.read_width()],
                range: self.output_weight(),
            },
            TensorSpec { name: "output_projection.bias", shape: vec![1], range: bias..bias + 1 },
        ]
    }

    /// The layout as one number: the hidden size itself where the rest is at its default.
    pub fn to_word(self) -> u64 {
        let (width, places) = (self.input_width as u64 - 1, self.places as u64 - 1);
        self.hidden as u64 | width << 24 | places << 32 | (self.layer_norms as u64) << 40
    }

    /// Inverse of [`Layout::to_word`].
    pub fn from_word(word: u64) -> Self {
        Self {
            hidden: (word & MOST_HIDDEN) as usize,
            input_width: ((word >> 24) % MOST_WIDTH) as usize + 1,
            places: ((word >> 32) % MOST_PLACES) as usize + 1,
            layer_norms: (word >> 40 & MOST_NORMS) as usize,
        }
    }
}

impl From<usize> for Layout {
    /// [`Layout::new`]
    fn from(hidden: usize) -> Self {
        Self::new(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_follow_one_another() {
        let layout = Layout::new(5).with_input_width(3).with_layer_norms(7);
        assert_eq!(layout.input_weight(), 0..15);
        assert_eq!(layout.input_bias(), 15..20);
        assert_eq!((layout.output_weight(), layout.output_bias()), (20..25, 25));
        assert_eq!((layout.input(), layout.output()), (0..20, 20..26));
        assert_eq!((layout.layer_norms(), layout.len()), (26..33, 33));
        assert_eq!(Layout::new(5).len(), 16);
        assert!(Layout::new(5).layer_norms().is_empty());
        let layout = layout.with_places(3);
        assert_eq!((layout.output_weight(), layout.output_bias(), layout.read_width()), (20..35, 35, 15));
        assert_eq!((layout.layer_norms(), layout.tensors()[2].shape.clone()), (36..43, vec![1, 15]));
    }

    #[test]
    fn a_word_holds_a_layout() {
        assert_eq!(Layout::new(768).to_word(), 768);
        let wide = Layout::new(1 << 20).with_input_width(129).with_layer_norms(2_000_000);
        for layout in [wide, wide.with_places(numalign_config::MOST_TAPS), Layout::new(1)] {
            assert_eq!(Layout::from_word(layout.to_word()), layout);
        }
    }
}
