//! The last lines of a report: the result in one line, what to try where it is no better than a constant, and the command
//! that comes next. Decides only.

use std::path::Path;

use numalign_config::{Recipe, Solver, Stage};
use numalign_data::Input;
use numalign_engine::metrics::Metrics;

use super::report::Report;

/// The share of the constant predictor's error up to which a result counts as no better.
const NO_BETTER: f64 = 0.95;
/// Longest input that is shown in a command.
const SHOWN_CHARS: usize = 100;

/// Error, constant, and what there is without the language model, in one line.
pub fn headline(report: &Report) -> String {
    let Metrics { samples, mae_percent_of_range, baseline_mae_percent_of_range, .. } = report.metrics;
    let plural = if samples == 1 { "" } else { "s" };
    let without = match &report.ablation {
        Some(ablation) => percent(ablation.metrics.mae_percent_of_range),
        None => "not measured (eval --ablation)".to_owned(),
    };
    format!(
        "result: error {} of the range on {samples} held-out sample{plural}; constant {}; without the language model {without}",
        percent(mae_percent_of_range),
        percent(baseline_mae_percent_of_range),
    )
}

/// Three significant digits.
fn percent(value: f64) -> String {
    if !value.is_finite() {
        return format!("{value} %");
    }
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if magnitude < -6 {
        return format!("{value:.2e} %");
    }
    let decimals = (2 - magnitude).max(0) as usize;
    format!("{value:.decimals$} %")
}

/// What to try where the error is no better than that of the best constant, in a model of `blocks` blocks.
pub fn advice(recipe: &Recipe, blocks: usize, metrics: &Metrics) -> Option<String> {
    if metrics.mae < NO_BETTER * metrics.baseline_mae {
        return None;
    }
    let mut tries = Vec::new();
    match (recipe.solver, recipe.train_input_projection && recipe.stage != Stage::Text) {
        (Solver::Adam, true) => tries.push("--solver alternate (the output projector is solved)".to_owned()),
        (Solver::Adam, false) => tries.push("--solver exact (least squares)".to_owned()),
        (Solver::Exact | Solver::Alternate, _) => {}
    }
    if recipe.stage != Stage::Nn {
        let quarter = blocks.div_ceil(4);
        if recipe.layer != Some(quarter) && blocks > 1 {
            tries.push(format!("--layer {quarter} (a quarter of the {blocks} blocks)"));
        }
        if recipe.pooling == numalign_config::Pooling::Last {
            tries.push("--pooling mean".to_owned());
        }
    }
    tries.push(format!("more steps (--num-epochs, now {})", recipe.num_epochs));
    tries.push(format!("a range that fits the targets (now {} to {})", recipe.min_val, recipe.max_val));
    let last = tries.pop().unwrap_or_default();
    let probe =
        format!("numalign probe {} --model {} shows where in the model the number is", recipe.stage, recipe.model_name);
    Some(format!("this is no better than the constant predictor; try {} or {last}; {probe}", tries.join(", ")))
}

/// A command that asks the result something: `input` where it is short.
pub fn next_command(checkpoint: &Path, input: &Input) -> String {
    let shown = match input {
        Input::Number(value) => value.to_string(),
        Input::Text(text) if text.chars().count() <= SHOWN_CHARS && !text.chars().any(char::is_control) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        Input::Text(_) => "TEXT".to_owned(),
    };
    format!("next: numalign predict --checkpoint {} {shown}", checkpoint.display())
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;
    use numalign_engine::metrics::measure;

    use super::*;

    fn recipe(settings: &[(&str, &str)]) -> Recipe {
        match Config::with(settings) {
            Ok(config) => config.recipe,
            Err(error) => panic!("{error}"),
        }
    }

    fn metrics(recipe: &Recipe, prediction: f64) -> Metrics {
        measure(recipe, &[prediction, prediction], &[10.0, 20.0])
    }

    #[test]
    fn percentages_have_three_digits() {
        let cases = [(25.04, "25.0 %"), (0.0637, "0.0637 %"), (580.3, "580 %"), (0.0, "0.00 %"), (4.1e-8, "4.10e-8 %")];
        for (value, text) in cases {
            assert_eq!(percent(value), text);
        }
    }

    #[test]
    fn a_good_result_needs_no_advice() {
        let recipe = recipe(&[]);
        assert_eq!(advice(&recipe, 4, &measure(&recipe, &[10.1, 19.9], &[10.0, 20.0])), None);
    }

    #[test]
    fn advice_names_what_is_not_set_yet() {
        let text = recipe(&[("stage", "text")]);
        let said = advice(&text, 30, &metrics(&text, 80.0)).unwrap_or_default();
        for part in ["--solver exact", "--layer 8 (a quarter of the 30 blocks)", "--pooling mean", "now 60", "0 to 100"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains('\n'));
        let tuned = recipe(&[("stage", "text"), ("solver", "exact"), ("layer", "2"), ("pooling", "mean")]);
        let said = advice(&tuned, 8, &metrics(&tuned, 80.0)).unwrap_or_default();
        assert!(!said.contains("--solver") && !said.contains("--layer") && !said.contains("--pooling"), "{said}");
        let nn = recipe(&[]);
        let said = advice(&nn, 4, &metrics(&nn, 80.0)).unwrap_or_default();
        assert!(said.contains("--solver alternate") && !said.contains("--layer"), "{said}");
    }

    #[test]
    fn the_next_command_can_be_pasted() {
        let file = Path::new("chk/mine.safetensors");
        let number = next_command(file, &Input::Number(12.5));
        assert_eq!(number, "next: numalign predict --checkpoint chk/mine.safetensors 12.5");
        let text = next_command(file, &Input::Text("it's $$5&&".to_owned()));
        assert_eq!(text, r"next: numalign predict --checkpoint chk/mine.safetensors 'it'\''s $$5&&'");
        let long = next_command(file, &Input::Text("x".repeat(500)));
        assert!(long.ends_with(" TEXT"));
    }
}
