//! The picture of an evaluation: predicted against true, error over value, and the course of the training.

use std::path::Path;

use numalign_config::{Recipe, TargetEncoding};
use numalign_engine::Evaluation;
use numalign_engine::metrics::{Metrics, measure};
use serde_json::Value;

use crate::plot::axis::{Axis, Scale};
use crate::plot::panel::{Panel, Titles};
use crate::plot::{Dash, Ink, Picture};

/// Points beyond this many are thinned out evenly.
const MOST_POINTS: usize = 2000;

/// The look of what is shown, and of what it is compared with.
const CURVE: (Ink, Dash) = (Ink::Blue, Dash::Solid);
const EXACT: (Ink, Dash) = (Ink::Black, Dash::Short);
const CONSTANT: (Ink, Dash) = (Ink::Vermilion, Dash::Long);
const WITHOUT_MODEL: (Ink, Dash) = (Ink::Green, Dash::Dotted);

/// The course of a training, from its `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Course {
    /// Step and mean loss of every epoch.
    pub losses: Vec<(f64, f64)>,
    /// Step and mean absolute error, in value units, of every evaluation.
    pub evaluations: Vec<(f64, f64)>,
}

impl Course {
    /// What the record that belongs to a checkpoint says; nothing where there is none.
    pub fn of(checkpoint: &Path) -> Self {
        // Beside a step's file, or in the run's folder beside the final one.
        let beside = checkpoint.with_file_name("metrics.jsonl");
        let inside = checkpoint.with_extension("").join("metrics.jsonl");
        let text = std::fs::read_to_string(&inside).or_else(|_| std::fs::read_to_string(&beside));
        Self::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut course = Self::default();
        for line in text.lines() {
            let Ok(record) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let (curve, value) = match record["kind"].as_str() {
                Some("evaluation") => (&mut course.evaluations, &record["mae"]),
                Some("epoch") => (&mut course.losses, &record["loss"]),
                _ => continue,
            };
            let (Some(step), Some(value)) = (record["step"].as_f64(), value.as_f64()) else {
                continue;
            };
            // A run that went on from an earlier step, or began again, replaces what it repeats.
            curve.retain(|(earlier, _)| *earlier < step);
            curve.push((step, value));
        }
        course
    }
}

/// What an evaluation is of, and beside what it stands.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The checkpoint that was evaluated; its name is the run's, or the step's.
    pub checkpoint: &'a Path,
    /// Mean absolute error without the language model, where that was trained.
    pub without_model: Option<f64>,
}

impl Subject<'_> {
    /// One line: the run, its model and stage, and its error beside the constant's.
    fn headline(&self, recipe: &Recipe, metrics: &Metrics) -> String {
        let name = self.checkpoint.with_extension("");
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        let without = self.without_model.map_or_else(String::new, |error| {
            format!(", without the model {} %", short(100.0 * error / recipe.range()))
        });
        format!(
            "{name} | model {} | stage {} | error {} % of the range, best constant {} %{without}",
            recipe.model_name,
            recipe.stage,
            short(metrics.mae_percent_of_range),
            short(metrics.baseline_mae_percent_of_range),
        )
    }
}

/// Three significant digits.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if (1e-3..1e5).contains(&value.abs()) {
        let decimals = (2 - value.abs().log10().floor() as i32).max(0) as usize;
        return format!("{value:.decimals$}");
    }
    format!("{value:.2e}")
}

/// The picture.
pub fn draw(recipe: &Recipe, evaluation: &Evaluation, course: &Course, subject: Subject<'_>) -> Picture {
    let metrics = measure(recipe, &evaluation.predictions, &evaluation.targets);
    let every = evaluation.targets.len().div_ceil(MOST_POINTS).max(1);
    let (mut pairs, mut errors) = (Vec::new(), Vec::new());
    for (prediction, target) in evaluation.predictions.iter().zip(&evaluation.targets).step_by(every) {
        pairs.push((*target, *prediction));
        errors.push((*target, (prediction - target).abs()));
    }
    let value_scale = match (recipe.target_encoding(), recipe.log_threshold) {
        (TargetEncoding::Signlog, Some(threshold)) => Scale::SignLog(threshold),
        _ => Scale::Linear,
    };
    let range = (recipe.min_val, recipe.max_val);
    let values =
        Axis::new(value_scale, pairs.iter().flat_map(|(target, prediction)| [*target, *prediction]), Some(range));
    let constant = metrics.baseline_mae;
    let levels = [Some(constant), subject.without_model];
    let known_levels = || levels.into_iter().flatten().filter(|level| *level > 0.0);
    let error_axis = Axis::new(Scale::Log, positive(&errors).chain(known_levels()), None).with_room_above().padded();
    let extra = [&course.losses, &course.evaluations].iter().filter(|curve| !curve.is_empty()).count();
    let mut picture = Picture::of_panels(2 + extra, &subject.headline(recipe, &metrics));

    let titles = Titles { panel: "predicted against true", x: "true value", y: "predicted value" };
    let mut panel = Panel::begin(&mut picture, 0, &titles, &values, &values);
    let (low, high) = values.ends();
    panel.points(&pairs);
    panel.guide((low, low), (high, high), EXACT, "exact");

    let titles = Titles { panel: "error over value", x: "true value", y: "absolute error, in value units" };
    let mut panel = Panel::begin(&mut picture, 1, &titles, &values, &error_axis);
    panel.points(&errors);
    compare(&mut panel, constant, subject.without_model);

    let loss = Titles { panel: "training loss", x: "step", y: "loss, encoded units" };
    let held_out = Titles { panel: "held out during training", x: "step", y: "mean absolute error, in value units" };
    let mut place = 2;
    for (titles, curve, is_error) in [(loss, &course.losses, false), (held_out, &course.evaluations, true)] {
        if curve.is_empty() {
            continue;
        }
        let steps = Axis::new(Scale::Linear, curve.iter().map(|(step, _)| *step).chain([0.0]), None);
        let compared = known_levels().filter(|_| is_error);
        let heights = Axis::new(Scale::Log, positive(curve).chain(compared), None).with_room_above().padded();
        let mut panel = Panel::begin(&mut picture, place, &titles, &steps, &heights);
        panel.line(curve, CURVE);
        if curve.len() <= 30 {
            panel.marked(curve, CURVE.0);
        }
        if is_error {
            compare(&mut panel, constant, subject.without_model);
        }
        place += 1;
    }
    picture
}

/// The mean absolute errors that an error is to be compared with.
fn compare(panel: &mut Panel<'_>, constant: f64, without_model: Option<f64>) {
    panel.level(constant, CONSTANT, "mean error of the best constant");
    if let Some(error) = without_model {
        panel.level(error, WITHOUT_MODEL, "mean error without the model");
    }
}

/// The positive ones of the second values.
fn positive(pairs: &[(f64, f64)]) -> impl Iterator<Item = f64> + '_ {
    pairs.iter().map(|(_, value)| *value).filter(|value| *value > 0.0)
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;

    use super::*;
    use crate::plot::Mark;

    /// Of no run in particular.
    fn subject() -> Subject<'static> {
        Subject { checkpoint: Path::new("chk/mine.safetensors"), without_model: None }
    }

    fn recipe(flags: &[(&str, &str)]) -> Recipe {
        match Config::with(flags) {
            Ok(config) => config.recipe,
            Err(error) => panic!("{error}"),
        }
    }

    fn labels(picture: &Picture) -> Vec<&str> {
        let texts = picture.marks.iter().filter_map(|mark| match mark {
            Mark::Text { text, .. } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    fn dots(picture: &Picture) -> usize {
        let dots = picture.marks.iter().map(|mark| match mark {
            Mark::Dots { points, .. } => points.len(),
            _ => 0,
        });
        dots.sum()
    }

    #[test]
    fn every_panel_has_its_points_and_labels() {
        let evaluation = Evaluation { predictions: vec![1.0, 51.0, 99.0], targets: vec![0.0, 50.0, 99.5] };
        let course = Course { losses: vec![(10.0, 0.5), (20.0, 0.01)], evaluations: vec![(20.0, 3.0)] };
        let picture = draw(&recipe(&[]), &evaluation, &course, subject());
        assert_eq!(dots(&picture), 3 + 3 + 2 + 1);
        let texts = labels(&picture);
        for label in [
            "predicted against true",
            "absolute error, in value units",
            "training loss",
            "held out during training",
            "100",
            "0.01",
        ] {
            assert!(texts.contains(&label), "{label} is missing in {texts:?}");
        }
        let bare = draw(&recipe(&[]), &evaluation, &Course::default(), subject());
        assert!(!labels(&bare).contains(&"training loss") && bare.width < picture.width);
    }

    #[test]
    fn the_headline_and_the_reference_lines_say_what_is_compared() {
        let evaluation = Evaluation { predictions: vec![1.0, 51.0, 99.0], targets: vec![0.0, 50.0, 100.0] };
        let course = Course { losses: Vec::new(), evaluations: vec![(20.0, 3.0)] };
        let picture = draw(&recipe(&[]), &evaluation, &course, Subject { without_model: Some(7.5), ..subject() });
        let texts = labels(&picture);
        let headline =
            "mine | model demo | stage nn | error 1.00 % of the range, best constant 33.3 %, without the model 7.50 %";
        assert_eq!(texts[0], headline);
        for (name, times) in [("exact", 1), ("mean error of the best constant", 2), ("mean error without the model", 2)]
        {
            assert_eq!(texts.iter().filter(|text| **text == name).count(), times, "{name} in {texts:?}");
        }
        let dashed =
            picture.marks.iter().filter(|mark| matches!(mark, Mark::Line { dash, .. } if *dash != Dash::Solid)).count();
        assert_eq!(dashed, 5);
    }

    #[test]
    fn names_of_lines_close_to_each_other_are_not_written_over_each_other() {
        let evaluation = Evaluation { predictions: vec![1.0, 51.0, 99.0], targets: vec![0.0, 50.0, 100.0] };
        // Where the constant's line is and where it nearly is.
        for without_model in [33.0, 30.0, 20.0] {
            let subject = Subject { without_model: Some(without_model), ..subject() };
            let picture = draw(&recipe(&[]), &evaluation, &Course::default(), subject);
            let mut heights = Vec::new();
            for mark in &picture.marks {
                if let Mark::Text { at, text, .. } = mark
                    && text.starts_with("mean error ")
                {
                    heights.push(at.1);
                }
            }
            assert_eq!(heights.len(), 2);
            assert!((heights[0] - heights[1]).abs() >= 11.0, "{without_model}: {heights:?}");
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 0.1758, 25.04, 100.0, 4512.3, 1.3e-5].map(short);
        assert_eq!(shown, ["0", "0.176", "25.0", "100", "4512", "1.30e-5"]);
    }

    #[test]
    fn wide_ranges_and_bad_predictions_are_drawn() {
        let recipe = recipe(&[("value_encoding", "signlog"), ("min_val", "-1e9"), ("max_val", "1e9")]);
        let evaluation = Evaluation { predictions: vec![f64::INFINITY, -1e3, 5.0], targets: vec![1.0, -1e3, f64::NAN] };
        let picture = draw(&recipe, &evaluation, &Course::default(), subject());
        let texts = labels(&picture);
        assert!(["-1e6", "-1e5", "-1e7"].iter().any(|tick| texts.contains(tick)), "{texts:?}");
        assert_eq!(dots(&picture), 1);
        let nothing = Evaluation { predictions: vec![], targets: vec![] };
        draw(&recipe, &nothing, &Course { losses: vec![(1.0, f64::NAN)], ..Course::default() }, subject());
    }

    #[test]
    fn a_course_keeps_the_latest_of_what_was_repeated() {
        let lines = [
            r#"{"kind":"epoch","step":10,"loss":0.5}"#,
            r#"{"kind":"evaluation","step":10,"mae":7.0}"#,
            r#"{"kind":"epoch","step":20,"loss":0.4}"#,
            "not a line of ours",
            r#"{"kind":"epoch","step":20,"loss":0.3}"#,
            r#"{"kind":"step","step":20,"loss":0.9}"#,
            r#"{"kind":"failure","step":21,"text":"x"}"#,
        ];
        let expected = Course { losses: vec![(10.0, 0.5), (20.0, 0.3)], evaluations: vec![(10.0, 7.0)] };
        assert_eq!(Course::parse(&lines.join("\n")), expected);
    }
}
