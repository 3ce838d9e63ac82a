//! The picture of an evaluation: predicted against true, error over value, and the course of the training.

use std::path::Path;

use numalign_config::{Recipe, TargetEncoding};
use numalign_engine::Evaluation;
use serde_json::Value;

use crate::plot::Picture;
use crate::plot::axis::{Axis, Scale};
use crate::plot::panel::{Panel, Titles};

/// Points beyond this many are thinned out evenly.
const MOST_POINTS: usize = 2000;

/// Greys of a line to compare with, and of a line that shows something.
const GUIDE: u8 = 0xaa;
const CURVE: u8 = 0x22;

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

/// The picture.
pub fn draw(recipe: &Recipe, evaluation: &Evaluation, course: &Course) -> Picture {
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
    let error_axis = Axis::new(Scale::Log, positive(&errors), None).padded();
    let extra = [&course.losses, &course.evaluations].iter().filter(|curve| !curve.is_empty()).count();
    let mut picture = Picture::of_panels(2 + extra);

    let titles = Titles { panel: "predicted against true", x: "true value", y: "predicted value" };
    let mut panel = Panel::begin(&mut picture, 0, &titles, &values, &values);
    let (low, high) = values.ends();
    panel.line(&[(low, low), (high, high)], GUIDE);
    panel.points(&pairs);

    let titles = Titles { panel: "error over value", x: "true value", y: "absolute error" };
    Panel::begin(&mut picture, 1, &titles, &values, &error_axis).points(&errors);

    let loss = Titles { panel: "training loss", x: "step", y: "loss, encoded units" };
    let held_out = Titles { panel: "held out during training", x: "step", y: "mean absolute error" };
    let mut place = 2;
    for (titles, curve) in [(loss, &course.losses), (held_out, &course.evaluations)] {
        if curve.is_empty() {
            continue;
        }
        let steps = Axis::new(Scale::Linear, curve.iter().map(|(step, _)| *step).chain([0.0]), None);
        let heights = Axis::new(Scale::Log, positive(curve), None).padded();
        let mut panel = Panel::begin(&mut picture, place, &titles, &steps, &heights);
        panel.line(curve, CURVE);
        if curve.len() <= 30 {
            panel.marked(curve);
        }
        place += 1;
    }
    picture
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
        let picture = draw(&recipe(&[]), &evaluation, &course);
        assert_eq!(dots(&picture), 3 + 3 + 2 + 1);
        let texts = labels(&picture);
        for label in
            ["predicted against true", "absolute error", "training loss", "held out during training", "100", "0.01"]
        {
            assert!(texts.contains(&label), "{label} is missing in {texts:?}");
        }
        let bare = draw(&recipe(&[]), &evaluation, &Course::default());
        assert!(!labels(&bare).contains(&"training loss") && bare.width < picture.width);
    }

    #[test]
    fn wide_ranges_and_bad_predictions_are_drawn() {
        let recipe = recipe(&[("value_encoding", "signlog"), ("min_val", "-1e9"), ("max_val", "1e9")]);
        let evaluation = Evaluation { predictions: vec![f64::INFINITY, -1e3, 5.0], targets: vec![1.0, -1e3, f64::NAN] };
        let picture = draw(&recipe, &evaluation, &Course::default());
        let texts = labels(&picture);
        assert!(["-1e6", "-1e5", "-1e7"].iter().any(|tick| texts.contains(tick)), "{texts:?}");
        assert_eq!(dots(&picture), 1);
        let nothing = Evaluation { predictions: vec![], targets: vec![] };
        draw(&recipe, &nothing, &Course { losses: vec![(1.0, f64::NAN)], ..Course::default() });
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
