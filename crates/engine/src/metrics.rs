//! Metrics of predictions on held-out samples, beside those of the best constant.

use numalign_config::Recipe;
use numalign_data::{constant_error, median};
use serde::Serialize;

/// What `eval --json` prints. Errors are in value units unless the name says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    /// The recipe's stage.
    pub stage: String,
    /// Number of samples.
    pub samples: usize,
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// The same in percent of the value range.
    pub mae_percent_of_range: f64,
    /// `|error| / max(|target|, 1 % of the range)`, averaged.
    pub mean_relative_error_percent: f64,
    /// Median of `|error| / |target|` over the samples whose target is not 0: what counts in a wide range.
    pub median_relative_error_percent: f64,
    /// Coefficient of determination; NaN where all targets are equal.
    pub r2: f64,
    /// Share of samples whose error is at most 1 % of the range, in percent.
    pub within_1_percent: f64,
    /// Share of samples whose error is at most 5 % of the range, in percent.
    pub within_5_percent: f64,
    /// Mean absolute error of the best constant: the median of the targets.
    pub baseline_mae: f64,
    /// The same in percent of the value range.
    pub baseline_mae_percent_of_range: f64,
}

/// Metrics of `predictions` against `targets`, both in value units; the lists have one length, at least 1.
pub fn measure(recipe: &Recipe, predictions: &[f64], targets: &[f64]) -> Metrics {
    let count = targets.len().max(1) as f64;
    let range = recipe.range();
    let floor = 0.01 * range;
    let mean = targets.iter().sum::<f64>() / count;
    let baseline = constant_error(targets);
    let (mut squared, mut absolute, mut relative, mut spread) = (0.0, 0.0, 0.0, 0.0);
    let (mut within_1, mut within_5) = (0usize, 0usize);
    for (prediction, target) in predictions.iter().zip(targets) {
        let error = (prediction - target).abs();
        squared += error * error;
        absolute += error;
        relative += error / target.abs().max(floor);
        spread += (target - mean) * (target - mean);
        within_1 += usize::from(error <= floor);
        within_5 += usize::from(error <= 5.0 * floor);
    }
    let percent = |value: f64| 100.0 * value / range;
    Metrics {
        stage: recipe.stage.to_string(),
        samples: targets.len(),
        mse: squared / count,
        mae: absolute / count,
        mae_percent_of_range: percent(absolute / count),
        mean_relative_error_percent: 100.0 * relative / count,
        median_relative_error_percent: 100.0 * median(relative_errors(predictions, targets)),
        r2: if spread > 0.0 { 1.0 - squared / spread } else { f64::NAN },
        within_1_percent: 100.0 * within_1 as f64 / count,
        within_5_percent: 100.0 * within_5 as f64 / count,
        baseline_mae: baseline,
        baseline_mae_percent_of_range: percent(baseline),
    }
}

/// `|prediction − target| / |target|` of the samples whose target is not 0.
pub(crate) fn relative_errors(predictions: &[f64], targets: &[f64]) -> Vec<f64> {
    let mut errors = Vec::with_capacity(targets.len());
    for (prediction, target) in predictions.iter().zip(targets) {
        if *target != 0.0 {
            errors.push(((prediction - target) / target).abs());
        }
    }
    errors
}
