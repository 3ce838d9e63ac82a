//! `eval --plot`: predicted against true, error over value, and the loss curve, as one SVG.
//!
//! Written by hand: three panels of circles and lines need no plotting library, and no fonts on the host. Grey only, so
//! that it reads in print.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use numalign_config::{Recipe, TargetEncoding, signlog};

use super::eval::Evaluation;
use crate::failure::Failure;

/// Panel size and the margins around it, in pixels.
const SIDE: f64 = 300.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 34.0;
const PANEL: f64 = LEFT + SIDE + 16.0;
const HEIGHT: f64 = TOP + SIDE + 54.0;

/// Points beyond this many are thinned out evenly.
const MOST_POINTS: usize = 2000;

/// The file of `--plot`, which is written as SVG.
pub fn destination(name: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(name);
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("svg") => Ok(path),
        Some("png") => Err(Failure::usage("--plot writes SVG, not PNG")
            .with_hint("name the file .svg; browsers show it, and rsvg-convert or Inkscape turn it into PNG")),
        _ => Err(Failure::usage(format!("--plot {name} does not end in .svg")).with_hint("for example --plot run.svg")),
    }
}

/// Step and loss of every epoch, from the `metrics.jsonl` that belongs to a checkpoint; empty where there is none.
pub fn loss_curve(checkpoint: &Path) -> Vec<(f64, f64)> {
    // Beside a step's file, or in the run's folder beside the final one.
    let beside = checkpoint.with_file_name("metrics.jsonl");
    let inside = checkpoint.with_extension("").join("metrics.jsonl");
    let Ok(text) = std::fs::read_to_string(&inside).or_else(|_| std::fs::read_to_string(&beside)) else {
        return Vec::new();
    };
    let mut curve: Vec<(f64, f64)> = Vec::new();
    for line in text.lines() {
        let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let (Some(step), Some(loss)) = (record["step"].as_f64(), record["loss"].as_f64()) else {
            continue;
        };
        // A run that went on from an earlier step, or began again, replaces what it repeats.
        curve.retain(|(earlier, _)| *earlier < step);
        curve.push((step, loss));
    }
    curve
}

/// The picture.
pub fn draw(recipe: &Recipe, evaluation: &Evaluation, losses: &[(f64, f64)]) -> String {
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
    let small = errors.iter().map(|(_, error)| *error).filter(|error| *error > 0.0);
    let error_axis = Axis::new(Scale::Log, small, None);
    let panels = if losses.is_empty() { 2.0 } else { 3.0 };
    let mut svg = String::new();
    let width = panels * PANEL;
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" viewBox=\"0 0 {width} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut panel =
        Panel::begin(&mut svg, 0.0, "predicted against true", "true value", "predicted value", &values, &values);
    let (low, high) = values.ends();
    panel.line(&[(low, low), (high, high)], "#aaa");
    panel.points(&pairs);
    let mut panel =
        Panel::begin(&mut svg, PANEL, "error over value", "true value", "absolute error", &values, &error_axis);
    panel.points(&errors);
    if !losses.is_empty() {
        let steps = Axis::new(Scale::Linear, losses.iter().map(|(step, _)| *step), None);
        let loss = Axis::new(Scale::Log, losses.iter().map(|(_, loss)| *loss).filter(|loss| *loss > 0.0), None);
        let mut panel =
            Panel::begin(&mut svg, 2.0 * PANEL, "training loss", "step", "loss, encoded units", &steps, &loss);
        panel.line(losses, "#222");
    }
    svg.push_str("</svg>\n");
    svg
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    /// Decimal logarithm; positive values only.
    Log,
    /// [`signlog`] with this threshold.
    SignLog(f64),
}

/// One axis: a scale and the ends of what it shows, in scaled units.
#[derive(Debug, Clone, Copy)]
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Axis {
    /// An axis that holds every finite one of `values`, and `range` too.
    fn new(scale: Scale, values: impl Iterator<Item = f64>, range: Option<(f64, f64)>) -> Self {
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
    fn place(&self, value: f64) -> Option<f64> {
        let place = (self.scaled(value) - self.low) / (self.high - self.low);
        (place.is_finite() && (-1e-9..=1.0 + 1e-9).contains(&place)).then_some(place)
    }

    /// Smallest and largest value shown.
    fn ends(&self) -> (f64, f64) {
        let unscaled = |scaled: f64| match self.scale {
            Scale::Linear => scaled,
            Scale::Log => 10f64.powf(scaled),
            Scale::SignLog(threshold) => numalign_config::signlog_inverse(scaled, threshold),
        };
        (unscaled(self.low), unscaled(self.high))
    }

    /// Round values to mark.
    fn ticks(&self) -> Vec<f64> {
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

/// One panel of the picture.
struct Panel<'a> {
    svg: &'a mut String,
    left: f64,
    x: &'a Axis,
    y: &'a Axis,
}

impl<'a> Panel<'a> {
    /// Frame, title, labels and ticks, with its left end at `offset`.
    fn begin(
        svg: &'a mut String,
        offset: f64,
        title: &str,
        x_label: &str,
        y_label: &str,
        x: &'a Axis,
        y: &'a Axis,
    ) -> Self {
        let left = offset + LEFT;
        let (middle, bottom) = (left + SIDE / 2.0, TOP + SIDE);
        let (label_x, label_y) = (offset + 13.0, TOP + SIDE / 2.0);
        let _ = write!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-size=\"13\">{title}</text>\n\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{x_label}</text>\n\
             <text transform=\"translate({label_x} {label_y}) rotate(-90)\" text-anchor=\"middle\">{y_label}</text>\n\
             <rect x=\"{left}\" y=\"{TOP}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"none\" stroke=\"#222\"/>\n",
            TOP - 12.0,
            bottom + 38.0,
        );
        for tick in x.ticks() {
            let place = left + SIDE * x.place(tick).unwrap_or(0.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{place:.1} {bottom}v5\" stroke=\"#222\"/>\
                 <text x=\"{place:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                label(tick)
            );
        }
        for tick in y.ticks() {
            let place = bottom - SIDE * y.place(tick).unwrap_or(0.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{left} {place:.1}h-5\" stroke=\"#222\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                place + 4.0,
                label(tick)
            );
        }
        Self { svg, left, x, y }
    }

    fn place(&self, point: (f64, f64)) -> Option<(f64, f64)> {
        let (x, y) = (self.x.place(point.0)?, self.y.place(point.1)?);
        Some((self.left + SIDE * x, TOP + SIDE * (1.0 - y)))
    }

    fn points(&mut self, points: &[(f64, f64)]) {
        self.svg.push_str("<g fill=\"#222\" fill-opacity=\"0.35\">\n");
        for point in points {
            if let Some((x, y)) = self.place(*point) {
                let _ = writeln!(self.svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.6\"/>");
            }
        }
        self.svg.push_str("</g>\n");
    }

    fn line(&mut self, points: &[(f64, f64)], stroke: &str) {
        let mut path = String::new();
        for point in points {
            if let Some((x, y)) = self.place(*point) {
                let command = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(path, "{command}{x:.1} {y:.1}");
            }
        }
        let _ = writeln!(self.svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\"/>");
    }
}

/// A tick's number, short.
fn label(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use numalign_config::{Layer, resolve};

    use super::*;

    fn recipe(flags: &[(&str, &str)]) -> Recipe {
        let flags = Layer::from_flags(flags.iter().map(|(name, value)| (*name, (*value).to_owned())));
        match resolve(None, Layer::from_env([]), flags) {
            Ok(config) => config.recipe,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn every_panel_has_its_points_and_labels() {
        let evaluation = Evaluation { predictions: vec![1.0, 51.0, 99.0], targets: vec![0.0, 50.0, 99.5] };
        let svg = draw(&recipe(&[]), &evaluation, &[(10.0, 0.5), (20.0, 0.01)]);
        assert_eq!(svg.matches("<circle").count(), 6);
        for label in ["predicted against true", "absolute error", "training loss", ">100<", ">0.01<"] {
            assert!(svg.contains(label), "{label} is missing in {svg}");
        }
        assert!(!draw(&recipe(&[]), &evaluation, &[]).contains("training loss"));
    }

    #[test]
    fn wide_ranges_and_bad_predictions_are_drawn() {
        let recipe = recipe(&[("value_encoding", "signlog"), ("min_val", "-1e9"), ("max_val", "1e9")]);
        let evaluation = Evaluation { predictions: vec![f64::INFINITY, -1e3, 5.0], targets: vec![1.0, -1e3, f64::NAN] };
        let svg = draw(&recipe, &evaluation, &[]);
        assert!(svg.contains(">-1e6<") || svg.contains(">-1e5<") || svg.contains(">-1e7<"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        draw(&recipe, &Evaluation { predictions: vec![], targets: vec![] }, &[(1.0, f64::NAN)]);
    }

    #[test]
    fn only_svg_is_written() {
        assert!(destination("a.svg").is_ok());
        assert!(destination("a.PNG").is_err() && destination("a").is_err());
    }
}
