//! The training loss of one sample and its slope, in encoded units.
//!
//! The loss of a step is the mean over its global batch. Plain products and one comparison: no platform function decides
//! a bit.

use numalign_config::{Loss, Recipe};

use crate::encoding::Encoding;

/// Targets below this share of the range count as this large in a relative error, as in the metrics.
pub const RELATIVE_FLOOR: f64 = 0.01;

/// One of the losses, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossFunction {
    /// `e²`
    SquaredError,
    /// `e²/2` where `|e| ≤ δ`, else `δ(|e| − δ/2)`: `torch.nn.HuberLoss`.
    Huber {
        /// `δ`, in encoded units.
        delta: f32,
    },
    /// `(w·e)²` with `w = scale / max(|target|, floor)`: the squared relative error of the decoded value.
    Relative {
        /// That of the encoding: value units per encoded unit.
        scale: f64,
        /// In value units.
        floor: f64,
    },
}

impl LossFunction {
    /// As the recipe says.
    pub fn of(recipe: &Recipe) -> Self {
        match recipe.loss {
            Loss::Mse => Self::SquaredError,
            Loss::Huber => Self::Huber { delta: recipe.huber_delta.unwrap_or(1.0) as f32 },
            Loss::Relative => {
                Self::Relative { scale: Encoding::of(recipe).scale, floor: RELATIVE_FLOOR * recipe.range() }
            }
        }
    }

    /// The weight `w` of a sample's error, from its target in value units; 1 for the losses that have none.
    pub fn weight(&self, target: f64) -> f32 {
        match self {
            Self::SquaredError | Self::Huber { .. } => 1.0,
            Self::Relative { scale, floor } => (scale / target.abs().max(*floor)) as f32,
        }
    }

    /// Loss of an error `e = prediction − target` and its derivative by `e`, for a sample of `weight`, each times
    /// `inverse_batch`.
    pub fn value_and_slope(&self, error: f32, weight: f32, inverse_batch: f32) -> (f32, f32) {
        match self {
            Self::SquaredError => (error * error * inverse_batch, 2.0 * inverse_batch * error),
            Self::Huber { delta } if error.abs() <= *delta => {
                (0.5 * error * error * inverse_batch, inverse_batch * error)
            }
            Self::Huber { delta } => {
                let value = delta * (error.abs() - 0.5 * delta) * inverse_batch;
                (value, inverse_batch * delta.copysign(error))
            }
            Self::Relative { .. } => {
                let weighted = weight * error;
                (weighted * weighted * inverse_batch, 2.0 * inverse_batch * weight * weighted)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;

    use super::*;

    fn of(flags: &[(&str, &str)]) -> LossFunction {
        LossFunction::of(&Config::with(flags).unwrap().recipe)
    }

    /// Values of `torch.nn.HuberLoss(delta=0.5)` and `MSELoss`, and a relative error worked out by hand.
    #[test]
    fn values_are_those_of_the_definitions() {
        let huber = of(&[("loss", "huber"), ("huber_delta", "0.5")]);
        assert_eq!(huber.value_and_slope(0.25, 1.0, 1.0), (0.03125, 0.25));
        assert_eq!(huber.value_and_slope(-2.0, 1.0, 1.0), (0.875, -0.5));
        assert_eq!(of(&[]).value_and_slope(-3.0, 1.0, 0.25), (2.25, -1.5));
        let relative = of(&[("loss", "relative"), ("value_encoding", "raw")]);
        assert_eq!(relative.weight(50.0), 0.02);
        assert_eq!(relative.weight(-0.5), 1.0);
        let (value, slope) = relative.value_and_slope(5.0, relative.weight(50.0), 1.0);
        assert!((value - 0.01).abs() < 1e-7 && (slope - 0.004).abs() < 1e-7, "{value} {slope}");
    }

    #[test]
    fn slopes_are_the_derivatives() {
        for flags in
            [&[][..], &[("loss", "huber")], &[("loss", "huber"), ("huber_delta", "0.01")], &[("loss", "relative")]]
        {
            let loss = of(flags);
            for error in [-3.0f32, -0.9, -0.004, 0.0, 0.3, 2.5] {
                for target in [0.0, 3.0, -80.0] {
                    let weight = loss.weight(target);
                    let at = |error: f32| f64::from(loss.value_and_slope(error, weight, 0.125).0);
                    let width = 1.0 / 512.0;
                    let numeric = (at(error + width) - at(error - width)) / (2.0 * f64::from(width));
                    let slope = f64::from(loss.value_and_slope(error, weight, 0.125).1);
                    // Where Huber's pieces meet inside the interval, the difference is off by up to half of it.
                    let tolerance = 1e-3 * (1.0 + slope.abs());
                    assert!((numeric - slope).abs() < tolerance, "{loss:?} at {error}: {numeric} and {slope}");
                }
            }
        }
    }
}
