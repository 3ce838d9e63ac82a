//! What `eval` and `launch` report: one JSON object, or tables for people.

use numalign_config::Recipe;
use numalign_data::SampleStream;
use numalign_data::shown::fixed;
use numalign_engine::Evaluation;
use numalign_engine::error_analysis::{ChoiceAccuracy, Decile, Worst, choice_accuracy, deciles, worst};
use numalign_engine::metrics::{Metrics, measure};
use numalign_engine::zero_shot::ZeroShot;
use serde::Serialize;

use super::closing::headline;
use crate::error::CliError;
use crate::output::outln;

/// Everything that was measured; what was not asked for is left out.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub metrics: Metrics,
    pub deciles: Vec<Decile>,
    pub worst: Vec<Worst>,
    /// The numbers in the file, counted from 1, of the rows that it was measured on, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<u64>>,
    /// Of questions whose answer is one of the listed numbers.
    #[serde(rename = "right_numbers", skip_serializing_if = "Option::is_none")]
    pub choice_accuracy: Option<ChoiceAccuracy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ablation: Option<Ablation>,
    #[serde(rename = "verbal", skip_serializing_if = "Option::is_none")]
    pub zero_shot: Option<ZeroShot>,
}

/// The same projectors trained with the frozen stack bypassed.
#[derive(Debug, Clone, Serialize)]
pub struct Ablation {
    #[serde(flatten)]
    pub metrics: Metrics,
    #[serde(rename = "right_numbers", skip_serializing_if = "Option::is_none")]
    pub choice_accuracy: Option<ChoiceAccuracy>,
}

impl Report {
    /// The report on the first samples of `stream`.
    pub fn of(recipe: &Recipe, evaluation: &Evaluation, stream: &SampleStream) -> Self {
        let Evaluation { predictions, targets } = evaluation;
        Self {
            metrics: measure(recipe, predictions, targets),
            deciles: deciles(predictions, targets),
            worst: worst(predictions, targets, |place| stream.sample(place as u64)),
            rows: (0..predictions.len() as u64).map(|index| stream.row_number(index)).collect(),
            choice_accuracy: choice_accuracy(recipe, evaluation, stream),
            ablation: None,
            zero_shot: None,
        }
    }

    /// On standard output, for people with the headline last; `details` adds the deciles and the worst samples.
    pub fn print(&self, json: bool, details: bool) -> Result<(), CliError> {
        if json {
            let text = serde_json::to_string(self).map_err(|error| CliError::new(error.to_string()))?;
            outln!("{text}")?;
            return Ok(());
        }
        self.print_metrics()?;
        self.print_choice_accuracy()?;
        if details {
            self.print_deciles()?;
            self.print_worst()?;
        }
        outln!("{}", headline(self))
    }

    fn print_metrics(&self) -> Result<(), CliError> {
        let metrics = &self.metrics;
        outln!("stage {} on {} held-out samples", metrics.stage, metrics.samples)?;
        let without = if self.ablation.is_some() { "   no language model" } else { "" };
        outln!("                          projectors   constant predictor{without}")?;
        let row = |name: &str, of: fn(&Metrics) -> f64, constant: Option<f64>| {
            let constant = constant.map_or_else(String::new, |value| fixed(value, 6));
            let ablated = self.ablation.as_ref().map_or_else(String::new, |ablation| fixed(of(&ablation.metrics), 6));
            outln!("{}", format!("  {name:<21} {:>12} {constant:>20} {ablated:>19}", fixed(of(metrics), 6)).trim_end())
        };
        row("mean absolute error", |m| m.mae, Some(metrics.baseline_mae))?;
        row("in % of the range", |m| m.mae_percent_of_range, Some(metrics.baseline_mae_percent_of_range))?;
        row("mean squared error", |m| m.mse, None)?;
        row("relative error in %", |m| m.mean_relative_error_percent, None)?;
        row("its median in %", |m| m.median_relative_error_percent, None)?;
        row("R²", |m| m.r2, None)?;
        row("within 1 % in %", |m| m.within_1_percent, None)?;
        row("within 5 % in %", |m| m.within_5_percent, None)?;
        outln!("  (relative errors divide by the target; for the mean by at least 1 % of the range)")
    }

    fn print_choice_accuracy(&self) -> Result<(), CliError> {
        if let Some(choices) = &self.choice_accuracy {
            outln!(
                "choice accuracy {:.2} % of {} questions: the answer is the listed number nearest to the prediction \
                 (chance {:.2} %)",
                choices.right_percent,
                choices.questions,
                choices.chance_percent
            )?;
            outln!(
                "  strictly, with an error below half the gap to the next number, {:.2} %; constant predictors: the median \
                 answer {:.2} %, the better end of the range {:.2} %",
                choices.strict_percent,
                choices.median_percent,
                choices.end_percent
            )?;
        }
        if let Some(choices) = self.ablation.as_ref().and_then(|ablation| ablation.choice_accuracy.as_ref()) {
            outln!(
                "  without the language model {:.2} %, strictly {:.2} %",
                choices.right_percent,
                choices.strict_percent
            )?;
        }
        if let Some(zero_shot) = &self.zero_shot {
            outln!(
                "zero-shot, the frozen model writes the answer to {:.2} % of {} questions, and some number to {:.2} %",
                zero_shot.right_percent,
                zero_shot.questions,
                zero_shot.number_percent
            )?;
        }
        Ok(())
    }

    fn print_deciles(&self) -> Result<(), CliError> {
        outln!("by decile of the target")?;
        outln!("            from           to   mean error         bias   median relative error in %")?;
        for group in &self.deciles {
            outln!(
                "  {:>14} {:>12} {:>12} {:>12} {:>12.4}",
                short(group.from),
                short(group.to),
                short(group.mae),
                short(group.bias),
                group.median_relative_error_percent
            )?;
        }
        Ok(())
    }

    fn print_worst(&self) -> Result<(), CliError> {
        outln!("worst samples")?;
        outln!("          target   prediction        error   input")?;
        for sample in &self.worst {
            outln!(
                "  {:>14} {:>12} {:>12}   {}",
                short(sample.target),
                short(sample.prediction),
                short(sample.error),
                sample.input
            )?;
        }
        Ok(())
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
