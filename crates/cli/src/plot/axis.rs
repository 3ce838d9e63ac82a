//! Axes: from values to places from 0 to 1, and the round values to mark.

use numalign_config::{signlog, signlog_inverse};

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    Linear,
    /// Decimal logarithm; positive values only.
    Log,
    /// [`signlog`] with this threshold.
    SignLog(f64),
}

/// One axis: a scale and the ends of what it shows, in scaled units.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Axis {
    /// An axis that holds every finite one of `values`, and `range` too.
    pub fn new(scale: Scale, values: impl Iterator<Item = f64>, range: Option<(f64, f64)>) -> Self {
        let mut axis = Self { scale, low: f64::INFINITY, high: f64::NEG_INFINITY };
        let range = range.map(|(from, to)| [from, to]);
        for value in values.chain(range.into_iter().flatten()) {
            let scaled = axis.scaled(value);
            if scaled.is_finite() {
                axis.low = axis.low.min(scaled);
                axis.high = axis.high.max(scaled);
            }
        }
        if axis.low >= axis.high {
            let middle = if axis.low.is_finite() { axis.low } else { 0.0 };
            (axis.low, axis.high) = (middle - 1.0, middle + 1.0);
        }
        axis
    }

    fn scaled(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Log => value.log10(),
            Scale::SignLog(threshold) => signlog(value, threshold),
        }
    }

    /// Place of a value from 0 to 1; none where the axis cannot show it.
    pub fn place(&self, value: f64) -> Option<f64> {
        let place = (self.scaled(value) - self.low) / (self.high - self.low);
        (place.is_finite() && (-1e-9..=1.0 + 1e-9).contains(&place)).then_some(place)
    }

    /// Smallest and largest value shown.
    pub fn ends(&self) -> (f64, f64) {
        let unscaled = |scaled: f64| match self.scale {
            Scale::Linear => scaled,
            Scale::Log => 10f64.powf(scaled),
            Scale::SignLog(threshold) => signlog_inverse(scaled, threshold),
        };
        (unscaled(self.low), unscaled(self.high))
    }

    /// The same with a little room at both ends, so that nothing lies on the frame.
    pub fn padded(self) -> Self {
        let room = 0.03 * (self.high - self.low);
        Self { low: self.low - room, high: self.high + room, ..self }
    }

    /// The same with room for a line of text above the highest value.
    pub fn with_room_above(self) -> Self {
        Self { high: self.high + 0.05 * (self.high - self.low), ..self }
    }

    /// Round values to mark, at even distances where there are enough of them.
    pub fn ticks(&self) -> Vec<f64> {
        let (low, high) = self.ends();
        let shown = |mut values: Vec<f64>| {
            values.retain(|tick| self.place(*tick).is_some());
            values
        };
        let ticks = match self.scale {
            Scale::Linear => round_steps(low, high),
            Scale::Log => {
                let tens = shown(powers(low, high, &[1.0]));
                if tens.len() < 3 { shown(powers(low, high, &[1.0, 2.0, 5.0])) } else { thinned(tens) }
            }
            Scale::SignLog(threshold) => {
                let positive = thinned(powers(threshold, low.abs().max(high.abs()), &[1.0]));
                let negative = positive.iter().map(|power| -power);
                shown(positive.iter().copied().chain(negative).chain([0.0]).collect())
            }
        };
        if ticks.len() < 2 { round_steps(low, high) } else { shown(ticks) }
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, from `low` to `high`: four to nine of them.
fn round_steps(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw).unwrap_or(raw);
    let mut steps = Vec::new();
    let mut index = (low / step).ceil();
    // A product of floats may come out a little too large.
    while index * step <= high + 1e-9 * step && steps.len() < 12 {
        // Adding zero makes a negative one positive.
        steps.push(index * step + 0.0);
        index += 1.0;
    }
    steps
}

/// Powers of ten around `low` to `high`, both positive, times each of `mantissas`.
fn powers(low: f64, high: f64, mantissas: &[f64]) -> Vec<f64> {
    let mut values = Vec::new();
    for exponent in low.log10().floor() as i32..=high.log10().ceil() as i32 {
        values.extend(mantissas.iter().map(|mantissa| mantissa * 10f64.powi(exponent)));
    }
    values
}

/// Every second, third … of many, so that at most six are left.
fn thinned(values: Vec<f64>) -> Vec<f64> {
    let every = values.len().div_ceil(6).max(1);
    values.into_iter().step_by(every).collect()
}

/// A tick's number, short.
pub fn label(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        let text = format!("{value:.2e}");
        let Some((mantissa, exponent)) = text.split_once('e') else {
            return text;
        };
        return format!("{}e{exponent}", without_zeros(mantissa));
    }
    without_zeros(&format!("{value:.4}")).to_owned()
}

/// A decimal number without the zeros at its end.
fn without_zeros(number: &str) -> &str {
    number.trim_end_matches('0').trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, low: f64, high: f64) -> Vec<String> {
        Axis::new(scale, [low, high].into_iter(), None).ticks().into_iter().map(label).collect()
    }

    #[test]
    fn every_axis_has_round_ticks() {
        assert_eq!(labels(Scale::Linear, -4.0, 100.0), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(labels(Scale::Linear, 0.0, 1.5e9), ["0", "5e8", "1e9", "1.5e9"]);
        assert_eq!(labels(Scale::Log, 0.004, 3.0), ["0.01", "0.1", "1"]);
        assert_eq!(labels(Scale::Log, 0.03, 0.3), ["0.05", "0.1", "0.2"]);
        assert_eq!(labels(Scale::Log, 2.4, 2.9), ["2.4", "2.5", "2.6", "2.7", "2.8", "2.9"]);
        assert_eq!(labels(Scale::Log, 1e-12, 1.0), ["1e-12", "1e-9", "1e-6", "0.001", "1"]);
        // Even distances: no 2 and 5 where there are powers of ten enough.
        assert_eq!(labels(Scale::Log, 4e-4, 30.0), ["0.001", "0.01", "0.1", "1", "10"]);
        let wide = labels(Scale::SignLog(1.0), -1e6, 1e6);
        assert!(wide.contains(&"-1e6".to_owned()) || wide.contains(&"-10000".to_owned()), "{wide:?}");
        assert!(wide.contains(&"0".to_owned()));
    }

    #[test]
    fn padding_keeps_the_ends_off_the_frame() {
        let axis = Axis::new(Scale::Log, [1.0, 100.0].into_iter(), None).padded();
        assert!(axis.place(1.0) > Some(0.01) && axis.place(100.0) < Some(0.99));
    }
}
