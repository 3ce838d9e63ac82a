//! Values to the scalars that the projectors see, and back. Used for inputs, targets and predictions.

use numalign_config::{Recipe, ValueEncoding};

/// An affine map `x = (v − offset) / scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Encoding {
    /// In value units.
    pub offset: f64,
    /// In value units; positive.
    pub scale: f64,
}

impl Encoding {
    /// `standard`: zero mean and unit variance for values uniform in `[min, max)`, whose deviation is
    /// `(max−min)/√12`. `raw`: the value itself.
    pub fn of(recipe: &Recipe) -> Self {
        match recipe.value_encoding {
            ValueEncoding::Raw => Self { offset: 0.0, scale: 1.0 },
            ValueEncoding::Standard => Self {
                offset: (recipe.min_val + recipe.max_val) / 2.0,
                scale: (recipe.max_val - recipe.min_val) / 12f64.sqrt(),
            },
        }
    }

    /// Encoded scalar of `value`.
    pub fn encode(&self, value: f64) -> f32 {
        ((value - self.offset) / self.scale) as f32
    }

    /// Value of an encoded scalar.
    pub fn decode(&self, encoded: f32) -> f64 {
        f64::from(encoded) * self.scale + self.offset
    }
}
