//! What `eval` and `launch` report: one JSON object, or tables for people.

use numalign_config::Recipe;
use numalign_data::SampleStream;
use numalign_worker::breakdown::{Decile, RightNumberCount, RightNumbers, Worst, deciles, worst};
use numalign_worker::evaluation::{Metrics, measure};
use serde::Serialize;

use super::eval::Evaluation;
use super::verbal::Verbal;
use crate::error::CliError;

/// Everything that was measured; what was not asked for is left out.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub metrics: Metrics,
    pub deciles: Vec<Decile>,
    pub worst: Vec<Worst>,
    /// Whether predictions mean the right one of the listed numbers, where the answer is one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right_numbers: Option<RightNumbers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ablation: Option<Ablation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbal: Option<Verbal>,
}

/// The same projectors trained with the frozen stack bypassed.
#[derive(Debug, Clone, Serialize)]
pub struct Ablation {
    #[serde(flatten)]
    pub metrics: Metrics,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right_numbers: Option<RightNumbers>,
}

/// Whether predictions mean the right one of the listed numbers, where the answer is one of them.
pub fn right_numbers(recipe: &Recipe, evaluation: &Evaluation, stream: &SampleStream) -> Option<RightNumbers> {
    if !recipe.names_a_number() {
        return None;
    }
    let mut count = RightNumberCount::new(recipe, &evaluation.targets);
    for (place, prediction) in evaluation.predictions.iter().enumerate() {
        count.add(&stream.sample(place as u64), *prediction);
    }
    count.share()
}

impl Report {
    /// The report on the first samples of `stream`.
    pub fn of(recipe: &Recipe, evaluation: &Evaluation, stream: &SampleStream) -> Self {
        let Evaluation { predictions, targets } = evaluation;
        Self {
            metrics: measure(recipe, predictions, targets),
            deciles: deciles(predictions, targets),
            worst: worst(predictions, targets, |place| stream.sample(place as u64)),
            right_numbers: right_numbers(recipe, evaluation, stream),
            ablation: None,
            verbal: None,
        }
    }

    /// On standard output.
    pub fn print(&self, json: bool) -> Result<(), CliError> {
        if json {
            let text = serde_json::to_string(self).map_err(|error| CliError::new(error.to_string()))?;
            println!("{text}");
            return Ok(());
        }
        self.print_metrics();
        self.print_right_numbers();
        self.print_deciles();
        self.print_worst();
        Ok(())
    }

    fn print_metrics(&self) {
        let metrics = &self.metrics;
        println!("stage {} on {} held-out samples", metrics.stage, metrics.samples);
        let without = if self.ablation.is_some() { "no language model" } else { "" };
        println!("                          projectors   constant predictor   {without:>17}");
        let row = |name: &str, of: fn(&Metrics) -> f64, constant: Option<f64>| {
            let constant = constant.map_or_else(String::new, |value| format!("{value:.6}"));
            let ablated =
                self.ablation.as_ref().map_or_else(String::new, |ablation| format!("{:.6}", of(&ablation.metrics)));
            println!("{}", format!("  {name:<21} {:>12.6} {constant:>20} {ablated:>19}", of(metrics)).trim_end());
        };
        row("mean absolute error", |m| m.mae, Some(metrics.baseline_mae));
        row("in % of the range", |m| m.mae_percent_of_range, Some(metrics.baseline_mae_percent_of_range));
        row("mean squared error", |m| m.mse, None);
        row("relative error in %", |m| m.mean_relative_error_percent, None);
        row("its median in %", |m| m.median_relative_error_percent, None);
        row("R²", |m| m.r2, None);
        row("within 1 % in %", |m| m.within_1_percent, None);
        row("within 5 % in %", |m| m.within_5_percent, None);
        println!("  (relative errors divide by the target; for the mean by at least 1 % of the range)");
    }

    fn print_right_numbers(&self) {
        if let Some(right) = &self.right_numbers {
            println!(
                "the right one of the listed numbers is the nearest in {:.2} % of {} questions (chance {:.2} %)",
                right.right_percent, right.questions, right.chance_percent
            );
            println!(
                "  and by less than half the gap to the next number in {:.2} %; a constant: the median answer {:.2} %, \
                 the better end of the range {:.2} %",
                right.strict_percent, right.median_percent, right.end_percent
            );
        }
        if let Some(right) = self.ablation.as_ref().and_then(|ablation| ablation.right_numbers.as_ref()) {
            println!(
                "  without the language model in {:.2} %, by less than half the gap in {:.2} %",
                right.right_percent, right.strict_percent
            );
        }
        if let Some(verbal) = &self.verbal {
            println!(
                "asked in words, the frozen model says the right number to {:.2} % of {} questions, and some number to {:.2} %",
                verbal.right_percent, verbal.questions, verbal.number_percent
            );
        }
    }

    fn print_deciles(&self) {
        println!("by decile of the target");
        println!("            from           to   mean error         bias   median relative error in %");
        for group in &self.deciles {
            println!(
                "  {:>14} {:>12} {:>12} {:>12} {:>12.4}",
                short(group.from),
                short(group.to),
                short(group.mae),
                short(group.bias),
                group.median_relative_error_percent
            );
        }
    }

    fn print_worst(&self) {
        println!("worst samples");
        println!("          target   prediction        error   input");
        for sample in &self.worst {
            println!(
                "  {:>14} {:>12} {:>12}   {}",
                short(sample.target),
                short(sample.prediction),
                short(sample.error),
                sample.input
            );
        }
    }
}

/// Six significant digits, in the notation that fits the size.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e7).contains(&magnitude) {
        return format!("{value:.4e}");
    }
    format!("{value:.4}")
}
