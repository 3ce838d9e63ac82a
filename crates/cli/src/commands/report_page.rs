//! The page that `report` writes: one table of figures, then the pictures.

use std::fmt::Write;

use numalign_config::{Choice, Pooling, Recipe, Solver, ValueEncoding};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One configuration's place on the page.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: String,
    /// What the configuration says about itself.
    pub about: String,
    /// `None` if the configuration is not valid.
    pub recipe: Option<Recipe>,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a configuration.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done {
        figures: Box<Figures>,
        /// Measured now, not taken from an earlier report.
        again: bool,
    },
    /// Why there are none.
    Failed(String),
}

/// What was measured of a configuration, as it is stored beside the page.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// Of everything that decides the figures.
    pub digest: String,
    /// What `eval --json` printed.
    pub metrics: Value,
    /// File name of the picture, beside the page.
    pub picture: String,
    pub train_seconds: f64,
    pub eval_seconds: f64,
}

impl Row {
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }

    /// The row as one line for the terminal.
    pub fn line(&self) -> String {
        match &self.outcome {
            Outcome::Failed(why) => format!("{}: failed: {}", self.name, one_line(why)),
            Outcome::Done { figures, again } => {
                let metrics = &figures.metrics;
                let seconds = match again {
                    true => format!("{:.0} s", figures.train_seconds + figures.eval_seconds),
                    false => "unchanged".to_owned(),
                };
                format!(
                    "{}: error {} % of the range (constant {}, no language model {}), {seconds}",
                    self.name,
                    number(&metrics["mae_percent_of_range"]),
                    number(&metrics["baseline_mae_percent_of_range"]),
                    number(&metrics["ablation"]["mae_percent_of_range"]),
                )
            }
        }
    }
}

const HEAD: &str = "\
| configuration | stage | model | recipe | samples | error | median relative | constant | no language model | choice accuracy, strict, chance | time |
|---|---|---|---|---|---|---|---|---|---|---|
";

const LEGEND: &str = "\
Errors are mean absolute errors on held-out samples in % of the range; the *median relative* error divides by the target.
*Constant* always answers the median target. *No language model* is the same recipe, solver included, with the frozen stack
bypassed. *Right number*: the share of questions in which the listed number nearest to the answer is the right one;
*strictly*: and the error is below half the gap to the next number; *chance*: one of the numbers picked blindly. *Time* is training
and evaluation, ablation included.
";

/// The whole page, as Markdown.
pub fn page(rows: &[Row]) -> String {
    let mut page = format!("# Results\n\nWritten by `numalign report`, version {}.\n\n", env!("CARGO_PKG_VERSION"));
    page.push_str(HEAD);
    let mut seconds = 0.0;
    for row in rows {
        page.push_str(&table_row(row));
        if let Outcome::Done { figures, .. } = &row.outcome {
            seconds += figures.train_seconds + figures.eval_seconds;
        }
    }
    // Writing to a String cannot fail.
    let _ = write!(page, "\n{LEGEND}\nAll of it took {:.1} minutes.\n", seconds / 60.0);
    for row in rows {
        let _ = write!(page, "\n## {}\n\n", row.name);
        if !row.about.is_empty() {
            let _ = writeln!(page, "{}\n", row.about);
        }
        match &row.outcome {
            Outcome::Done { figures, .. } => {
                let _ = writeln!(page, "![{}]({})", row.name, figures.picture);
            }
            Outcome::Failed(why) => {
                let _ = writeln!(page, "```text\n{}\n```", why.trim());
            }
        }
    }
    page
}

fn table_row(row: &Row) -> String {
    let (stage, model, recipe, samples) = match &row.recipe {
        Some(recipe) => {
            let samples = recipe.total_steps() * recipe.batch_size as u64;
            (recipe.stage.to_string(), recipe.model_name.clone(), in_short(recipe), samples.to_string())
        }
        None => Default::default(),
    };
    let rest = match &row.outcome {
        Outcome::Failed(why) => format!("failed: {} | | | | | |", one_line(why).replace('|', "\\|")),
        Outcome::Done { figures, .. } => {
            let metrics = &figures.metrics;
            format!(
                "{} | {} | {} | {} | {} | {:.0} s |",
                number(&metrics["mae_percent_of_range"]),
                number(&metrics["median_relative_error_percent"]),
                number(&metrics["baseline_mae_percent_of_range"]),
                number(&metrics["ablation"]["mae_percent_of_range"]),
                choice_accuracy(&metrics["right_numbers"]),
                figures.train_seconds + figures.eval_seconds,
            )
        }
    };
    format!("| {} | {stage} | {model} | {recipe} | {samples} | {rest}\n", row.name)
}

/// What sets the recipe apart from the others of its stage.
fn in_short(recipe: &Recipe) -> String {
    let mut parts = vec![recipe.solver.name().to_owned()];
    match recipe.fourier_periods {
        Some(periods) => parts.push(format!("{} {periods}", recipe.value_encoding.name())),
        None if recipe.value_encoding == ValueEncoding::Standard => {}
        None => parts.push(recipe.value_encoding.name().to_owned()),
    }
    if recipe.pooling != Pooling::Last {
        parts.push(format!("pooling {}", recipe.pooling.name()));
    }
    if let Some(layer) = recipe.layer {
        parts.push(format!("layer {layer}"));
    }
    if !recipe.taps.is_empty() {
        let taps: Vec<String> = recipe.taps.iter().map(ToString::to_string).collect();
        parts.push(format!("taps {}", taps.join(" ")));
    }
    if recipe.train_layer_norms {
        parts.push("layer norms".to_owned());
    }
    if recipe.stage == numalign_config::Stage::Mixed {
        let tasks: Vec<&str> = recipe.mixed_tasks.iter().map(|task| task.name()).collect();
        parts.push(format!("{} of up to {}", tasks.join(", "), recipe.mixed_max_numbers));
    }
    if recipe.solver != Solver::Exact && recipe.loss != numalign_config::Loss::Mse {
        parts.push(format!("loss {}", recipe.loss.name()));
    }
    parts.join(", ")
}

fn choice_accuracy(shares: &Value) -> String {
    if shares.is_null() {
        return String::new();
    }
    let percent = |name: &str| shares[name].as_f64().map_or_else(|| "?".to_owned(), |share| format!("{share:.1}"));
    format!("{} %, {} %, {} %", percent("right_percent"), percent("strict_percent"), percent("chance_percent"))
}

/// Three significant digits, or a dash.
fn number(value: &Value) -> String {
    let Some(value) = value.as_f64() else {
        return "–".to_owned();
    };
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let magnitude = value.abs().log10().floor() as i32;
    match magnitude {
        -6..=4 => format!("{value:.*}", (2 - magnitude).max(0) as usize),
        _ => format!("{value:.2e}"),
    }
}

/// A failure's text in one line, without its hint.
fn one_line(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("hint: "));
    let parts: Vec<&str> = lines.map(|line| line.strip_prefix("error: ").unwrap_or(line).trim()).collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(name: &str, outcome: Outcome) -> Row {
        Row { name: name.to_owned(), about: "About it.".to_owned(), recipe: None, outcome }
    }

    #[test]
    fn the_page_has_a_row_and_a_picture_of_each_and_says_why_one_is_missing() {
        let metrics = json!({
            "mae_percent_of_range": 0.012_345, "median_relative_error_percent": 1.5, "baseline_mae_percent_of_range": 25.02,
            "ablation": { "mae_percent_of_range": 12.0 },
            "right_numbers": { "right_percent": 99.7, "strict_percent": 98.0, "chance_percent": 45.61 },
        });
        let figures = Figures {
            digest: String::new(),
            metrics,
            picture: "a.png".to_owned(),
            train_seconds: 100.0,
            eval_seconds: 20.0,
        };
        let done = row("a", Outcome::Done { figures: Box::new(figures), again: true });
        assert_eq!(done.line(), "a: error 0.0123 % of the range (constant 25.0, no language model 12.0), 120 s");
        let failed = row("b", Outcome::Failed("error: no | such\n  at all\nhint: look".to_owned()));
        let page = page(&[done, failed]);
        for part in [
            "| a |  |  |  |  | 0.0123 | 1.50 | 25.0 | 12.0 | 99.7 %, 98.0 %, 45.6 % | 120 s |\n",
            "| failed: no \\| such; at all |",
            "All of it took 2.0 minutes.",
            "## a\n\nAbout it.\n\n![a](a.png)\n",
            "hint: look",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = |value: f64| number(&json!(value));
        assert_eq!([0.000_012_345, 4.567, 123.4, 0.0].map(shown), ["0.0000123", "4.57", "123", "0"]);
        assert_eq!([1.234e-9, 1.234e7].map(shown), ["1.23e-9", "1.23e7"]);
        assert_eq!(number(&Value::Null), "–");
    }
}
