//! Axes: from values to places from 0 to 1, and the round values to mark. Used by [`super::panel`].

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

    /// Round values to mark.
    pub fn ticks(&self) -> Vec<f64> {
        let (low, high) = self.ends();
        let mut ticks = Vec::new();
        if self.scale == Scale::Linear {
            let raw = (high - low) / 5.0;
            let power = 10f64.powf(raw.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw).unwrap_or(raw);
            let mut index = (low / step).ceil();
            while index * step <= high && ticks.len() < 12 {
                ticks.push(index * step);
                index += 1.0;
            }
            return ticks;
        }
        let mut powers: Vec<f64> = Vec::new();
        let smallest = if let Scale::SignLog(threshold) = self.scale { threshold } else { low };
        for exponent in smallest.log10().floor() as i32..=low.abs().max(high.abs()).log10().ceil() as i32 {
            powers.push(10f64.powi(exponent));
        }
        let every = powers.len().div_ceil(6).max(1);
        for power in powers.iter().step_by(every) {
            ticks.extend([*power, -*power]);
        }
        if low <= 0.0 && high >= 0.0 {
            ticks.push(0.0);
        }
        ticks.retain(|tick| self.place(*tick).is_some());
        ticks
    }
}

/// A tick's number, short.
pub fn label(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
