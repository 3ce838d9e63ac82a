//! Values to what the projectors see, and back: [`InputEncoder`] for the input projector, [`Encoding`] for targets and
//! predictions.
//!
//! Logarithms and sines come from `libm`, compiled in, so that every machine encodes to the same bits.

use std::f64::consts::TAU;

use numalign_config::{Choice, Recipe, Span, TargetEncoding, ValueEncoding, signlog, signlog_inverse};

/// A map between values and the scalars of one projector: `x = (u(v) − offset) / scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Encoding {
    /// In the units of `u`: value units, or logarithms.
    pub offset: f64,
    /// In the units of `u`; positive.
    pub scale: f64,
    /// `u` is [`signlog`] with this threshold; `u(v) = v` where there is none.
    pub threshold: Option<f64>,
}

impl Encoding {
    /// The encoding of targets and predictions.
    pub fn of(recipe: &Recipe) -> Self {
        let range = Span { min: recipe.min_val, max: recipe.max_val };
        match (recipe.target_encoding(), recipe.value_encoding) {
            (TargetEncoding::Signlog, _) => Self::standardised(range, recipe.log_threshold),
            (TargetEncoding::Linear, ValueEncoding::Raw) => Self::RAW,
            (TargetEncoding::Linear, _) => Self::standardised(range, None),
        }
    }

    /// `x = v`
    const RAW: Self = Self { offset: 0.0, scale: 1.0, threshold: None };

    /// The scalar part of the encoding of inputs in `range`.
    fn of_inputs(recipe: &Recipe, range: Span) -> Self {
        match recipe.value_encoding {
            ValueEncoding::Raw => Self::RAW,
            ValueEncoding::Standard | ValueEncoding::Fourier => Self::standardised(range, None),
            ValueEncoding::Signlog => Self::standardised(range, recipe.log_threshold),
        }
    }

    /// Zero mean and unit variance for `u` uniform over the range, whose deviation is `(u(max)−u(min))/√12`.
    fn standardised(range: Span, threshold: Option<f64>) -> Self {
        let (min, max) = match threshold {
            Some(threshold) => (signlog(range.min, threshold), signlog(range.max, threshold)),
            None => (range.min, range.max),
        };
        Self { offset: (min + max) / 2.0, scale: (max - min) / 12f64.sqrt(), threshold }
    }

    /// Encoded scalar of `value`.
    pub fn encode(&self, value: f64) -> f32 {
        let u = match self.threshold {
            Some(threshold) => signlog(value, threshold),
            None => value,
        };
        ((u - self.offset) / self.scale) as f32
    }

    /// Value of an encoded scalar.
    pub fn decode(&self, encoded: f32) -> f64 {
        let u = f64::from(encoded) * self.scale + self.offset;
        match self.threshold {
            Some(threshold) => signlog_inverse(u, threshold),
            None => u,
        }
    }

    /// For people and for readers of the file: kind, offset, scale, and the threshold where there is one.
    fn describe(&self, kind: &str) -> serde_json::Value {
        let mut fields = serde_json::json!({ "kind": kind, "offset": self.offset, "scale": self.scale });
        if let Some(threshold) = self.threshold {
            fields["threshold"] = threshold.into();
        }
        fields
    }
}

/// A value as the input projector sees it: one scalar, and with `fourier` a sine and a cosine for each period.
#[derive(Debug, Clone, PartialEq)]
pub struct InputEncoder {
    scalar: Encoding,
    /// Where every sine begins.
    origin: f64,
    /// In value units, longest first.
    periods: Vec<f64>,
}

impl InputEncoder {
    /// As the recipe says, for the first number in an input.
    pub fn of(recipe: &Recipe) -> Self {
        Self::at(recipe, 0)
    }

    /// For the number at `place` in an input, counted from 0: the places differ in their ranges only.
    pub fn at(recipe: &Recipe, place: usize) -> Self {
        let range = recipe.input_range(place);
        let mut periods = Vec::new();
        let mut period = range.max - range.min;
        for _ in 0..recipe.fourier_periods.unwrap_or(0) {
            periods.push(period);
            period /= 2.0;
        }
        Self { scalar: Encoding::of_inputs(recipe, range), origin: range.min, periods }
    }

    /// Numbers that a value becomes: `1 + 2·periods`, the input projector's columns.
    pub fn width(&self) -> usize {
        1 + 2 * self.periods.len()
    }

    /// `[width]`: the scalar, then `sin` and `cos` of `2π(v − min)/period` for each period.
    pub fn encode(&self, value: f64) -> Vec<f32> {
        let mut features = Vec::with_capacity(self.width());
        features.push(self.scalar.encode(value));
        for period in &self.periods {
            let turns = (value - self.origin) / period;
            // Whole turns go first, so that the sine keeps its precision far from the origin.
            let (sine, cosine) = libm::sincos(TAU * (turns - turns.floor()));
            features.push(sine as f32);
            features.push(cosine as f32);
        }
        features
    }

    fn describe_inputs(&self, recipe: &Recipe) -> serde_json::Value {
        let mut fields = self.scalar.describe(recipe.value_encoding.name());
        if !self.periods.is_empty() {
            fields["origin"] = self.origin.into();
            fields["periods"] = self.periods.clone().into();
        }
        fields
    }

    /// The checkpoint's `encoder`: everything needed to encode inputs and decode predictions without the recipe. Where the
    /// numbers of an input have ranges of their own, `places` has the encoding of each; the last one holds for all that
    /// follow.
    pub fn describe(&self, recipe: &Recipe) -> serde_json::Value {
        let mut fields = self.describe_inputs(recipe);
        if recipe.input_ranges.len() > 1 {
            let places = (0..recipe.input_ranges.len()).map(|place| Self::at(recipe, place).describe_inputs(recipe));
            fields["places"] = places.collect();
        }
        let target = Encoding::of(recipe);
        if target != self.scalar {
            let kind = if target.threshold.is_some() { "signlog" } else { "linear" };
            fields["target"] = target.describe(kind);
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;
    use proptest::prelude::*;

    use super::*;

    fn recipe(flags: &[(&str, &str)]) -> Recipe {
        Config::with(flags).unwrap().recipe
    }

    #[test]
    fn standard_is_one_scalar_of_unit_variance() {
        let recipe = recipe(&[]);
        let inputs = InputEncoder::of(&recipe);
        assert_eq!(inputs.width(), 1);
        assert_eq!(inputs.encode(50.0), [0.0]);
        assert!((inputs.encode(100.0)[0] - 3f32.sqrt()).abs() < 1e-6);
        let fields = inputs.describe(&recipe).to_string();
        assert_eq!(fields, r#"{"kind":"standard","offset":50.0,"scale":28.86751345948129}"#);
    }

    #[test]
    fn signlog_spreads_orders_of_magnitude_evenly() {
        let recipe = recipe(&[("value_encoding", "signlog"), ("min_val", "1e-6"), ("max_val", "1e9")]);
        assert_eq!(recipe.log_threshold, Some(1e-6));
        let encoding = Encoding::of(&recipe);
        let step = encoding.encode(1e4) - encoding.encode(1e3);
        assert!((encoding.encode(1e8) - encoding.encode(1e7) - step).abs() < 1e-5);
        assert_eq!(InputEncoder::of(&recipe).encode(123.0), [encoding.encode(123.0)]);
    }

    #[test]
    fn signlog_takes_negative_values_and_zero() {
        let recipe = recipe(&[("value_encoding", "signlog"), ("min_val", "-1e12"), ("max_val", "1e12")]);
        let encoding = Encoding::of(&recipe);
        assert_eq!(encoding.encode(0.0), 0.0);
        assert_eq!(encoding.encode(-5.0), -encoding.encode(5.0));
        assert!(encoding.encode(1e12) < 1.74);
        assert!(encoding.decode(f32::MAX).is_finite());
    }

    #[test]
    fn fourier_repeats_with_its_periods() {
        let recipe = recipe(&[("value_encoding", "fourier"), ("fourier_periods", "3"), ("max_val", "8")]);
        let inputs = InputEncoder::of(&recipe);
        assert_eq!(inputs.width(), 7);
        assert_eq!(inputs.periods, [8.0, 4.0, 2.0]);
        let (a, b) = (inputs.encode(0.5), inputs.encode(4.5));
        assert_ne!(a[0], b[0]);
        assert!((a[1] + b[1]).abs() < 1e-6, "half a turn of the longest period");
        assert_eq!(a[3..], b[3..]);
        assert!((a[5] - 1.0).abs() < 1e-6, "a quarter turn of the shortest period");
        let fields = inputs.describe(&recipe);
        assert_eq!(fields["periods"], serde_json::json!([8.0, 4.0, 2.0]));
        assert!(fields.get("target").is_none());
    }

    #[test]
    fn each_place_has_its_own_range() {
        let recipe = recipe(&[("input_ranges", "0..80,1000..5000"), ("max_val", "10")]);
        let at = |place: usize, value: f64| InputEncoder::at(&recipe, place).encode(value)[0];
        assert_eq!(
            (at(0, 40.0), at(1, 3000.0), at(7, 3000.0)),
            (0.0, 0.0, 0.0),
            "the last one holds for all that follow"
        );
        assert_eq!(at(0, 80.0), at(1, 5000.0));
        assert_eq!(Encoding::of(&recipe).encode(5.0), 0.0, "targets keep theirs");
        let fields = InputEncoder::of(&recipe).describe(&recipe);
        assert_eq!((&fields["offset"], &fields["places"][1]["offset"]), (&40.0.into(), &3000.0.into()));
    }

    #[test]
    fn the_target_may_differ_from_the_input() {
        let recipe = recipe(&[("target", "signlog"), ("min_val", "1"), ("max_val", "1000")]);
        let inputs = InputEncoder::of(&recipe);
        assert_eq!(inputs.describe(&recipe)["target"]["threshold"], 1.0);
        assert_eq!(inputs.scalar.threshold, None);
        assert_eq!(Encoding::of(&recipe).threshold, Some(1.0));
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(exponent in -6.0f64..12.0, negative: bool) {
            let recipe = recipe(&[("value_encoding", "signlog"), ("min_val", "-1e12"), ("max_val", "1e12")]);
            let encoding = Encoding::of(&recipe);
            let value = libm::pow(10.0, exponent) * if negative { -1.0 } else { 1.0 };
            let back = encoding.decode(encoding.encode(value));
            // An f32 near 1.7 resolves 1.2e-7 of 24 in the logarithm.
            prop_assert!((back / value - 1.0).abs() < 2e-5, "{value} came back as {back}");
        }
    }
}
