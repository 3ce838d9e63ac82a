//! What `probe` shows: the table of all places, the choice, and the picture.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::plot::axis::{Axis, Scale};
use crate::plot::panel::{Panel, Titles};
use crate::plot::{Dash, Ink, Picture};
use crate::table::table;

/// The coordinator's report on the pass, and what was measured beside it. Errors are mean absolute errors on held-out
/// samples in % of the range.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    pub stage: String,
    pub model: String,
    pub samples: u64,
    pub constant_percent_of_range: f64,
    /// Of the same solution without the language model.
    #[serde(default)]
    pub ablation_percent_of_range: Option<f64>,
    pub places: Vec<Place>,
    /// The places in the order in which they were chosen, each with the error of all so far.
    pub choice: Vec<Choice>,
    pub together: Together,
}

/// One place alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    pub tap: String,
    pub layer: i64,
    pub pooling: String,
    /// In encoded units, as a checkpoint's `solve` has it.
    #[serde(default)]
    pub held_out_error: Option<f64>,
    #[serde(default)]
    pub held_out_percent_of_range: Option<f64>,
    #[serde(default)]
    pub ridge: Option<f64>,
    /// Why there is no solution.
    #[serde(default)]
    pub failed: Option<String>,
}

/// A place that joined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Choice {
    pub tap: String,
    pub held_out_percent_of_range: f64,
}

/// The exact solution of the chosen places.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Together {
    pub taps: Vec<String>,
    pub held_out_error: f64,
    pub held_out_percent_of_range: f64,
    pub ridge: f64,
}

impl Page {
    /// Layers in the model's order, the final norm last, and poolings, as they come.
    fn axes(&self) -> (Vec<i64>, Vec<&str>) {
        let (mut layers, mut poolings) = (Vec::new(), Vec::new());
        for place in &self.places {
            if !layers.contains(&place.layer) {
                layers.push(place.layer);
            }
            if !poolings.contains(&place.pooling.as_str()) {
                poolings.push(place.pooling.as_str());
            }
        }
        layers.sort_by_key(|layer| if *layer < 0 { i64::MAX } else { *layer });
        (layers, poolings)
    }

    fn error_at(&self, layer: i64, pooling: &str) -> Option<f64> {
        let place = self.places.iter().find(|place| place.layer == layer && place.pooling == pooling)?;
        place.held_out_percent_of_range
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let (layers, poolings) = self.axes();
        let mut rows = vec![["layer".to_owned(), cells(poolings.iter().map(|name| (*name).to_owned()))]];
        for layer in layers {
            let name = if layer < 0 { "-1 (after the final norm)".to_owned() } else { layer.to_string() };
            let errors = poolings.iter().map(|pooling| figure(self.error_at(layer, pooling)));
            rows.push([name, cells(errors)]);
        }
        let mut text = format!(
            "stage {}, {}, {} samples; error on held-out samples in % of the range\n{}",
            self.stage,
            self.model,
            self.samples,
            table(&rows)
        );
        // Writing to a String cannot fail.
        let _ = write!(text, "  constant answer {}", figure(Some(self.constant_percent_of_range)));
        if let Some(ablation) = self.ablation_percent_of_range {
            let _ = write!(text, ", no language model {}", figure(Some(ablation)));
        }
        text.push_str("\nchosen, one by one (compared on the first samples)\n");
        let steps = self.choice.iter().map(|step| [step.tap.clone(), figure(Some(step.held_out_percent_of_range))]);
        text.push_str(&table(&steps.collect::<Vec<_>>()));
        let together = &self.together;
        let error = figure(Some(together.held_out_percent_of_range));
        let _ = writeln!(text, "together, solved exactly: {error} with taps: [{}]", together.taps.join(", "));
        text
    }

    /// Error over layers, a line for each pooling. The state after the final norm stands behind the last block.
    pub fn picture(&self) -> Picture {
        let (layers, poolings) = self.axes();
        let last = layers.iter().copied().max().unwrap_or(0);
        let place = |layer: i64| (if layer < 0 { last + 1 } else { layer }) as f64;
        let mut curves = Vec::new();
        for pooling in &poolings {
            let curve = layers.iter().filter_map(|layer| Some((place(*layer), self.error_at(*layer, pooling)?)));
            curves.push((*pooling, curve.collect::<Vec<_>>()));
        }
        let together = self.together.held_out_percent_of_range;
        let errors = curves.iter().flat_map(|(_, curve)| curve.iter().map(|(_, error)| *error));
        let compared = [Some(together), Some(self.constant_percent_of_range), self.ablation_percent_of_range];
        let errors = errors.chain(compared.into_iter().flatten()).filter(|error| *error > 0.0);
        let x = Axis::new(Scale::Linear, layers.iter().map(|layer| place(*layer)).chain([0.0]), None);
        let y = Axis::new(Scale::Log, errors, None).padded();
        let titles = Titles {
            panel: "where the number is",
            x: "layer; at the right end after the final norm",
            y: "held-out error, % of the range",
        };
        let headline = format!("probe of {}, stage {}, {} samples", self.model, self.stage, self.samples);
        let mut picture = Picture::of_panels(1, &headline);
        let mut panel = Panel::begin(&mut picture, 0, &titles, &x, &y);
        panel.level(self.constant_percent_of_range, (Ink::Vermilion, Dash::Long), "constant");
        panel.level(together, (Ink::Black, Dash::Short), "chosen, together");
        if let Some(error) = self.ablation_percent_of_range.filter(|error| *error > 0.0) {
            panel.level(error, (Ink::Green, Dash::Dotted), "without the model");
        }
        for (index, (name, curve)) in curves.iter().enumerate() {
            let look = LOOKS[index % LOOKS.len()];
            panel.line(curve, look);
            panel.marked(curve, look.0);
            if let Some(point) = curve.get(curve.len() * (index + 1) / (curves.len() + 1)) {
                panel.named(*point, name);
            }
        }
        picture
    }
}

/// Of the poolings' lines, each with its name beside it.
const LOOKS: [(Ink, Dash); 3] = [(Ink::Blue, Dash::Solid), (Ink::Black, Dash::Long), (Ink::Green, Dash::Short)];

/// Figures side by side, in columns of one width.
fn cells(figures: impl Iterator<Item = String>) -> String {
    figures.map(|figure| format!("{figure:>9}")).collect::<Vec<_>>().join(" ")
}

fn figure(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) if value >= 0.1 => format!("{value:.3}"),
        Some(value) => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Mark;

    fn page() -> Page {
        let place = |layer: i64, pooling: &str, error: Option<f64>| Place {
            tap: format!("{layer}:{pooling}"),
            layer,
            pooling: pooling.to_owned(),
            held_out_error: error,
            held_out_percent_of_range: error,
            ridge: error,
            failed: None,
        };
        let places = vec![
            place(-1, "last", Some(2.5)),
            place(-1, "mean", None),
            place(0, "last", Some(24.0)),
            place(0, "mean", Some(11.0)),
        ];
        Page {
            stage: "text".to_owned(),
            model: "demo".to_owned(),
            samples: 4000,
            constant_percent_of_range: 25.0,
            ablation_percent_of_range: Some(12.0),
            places,
            choice: vec![Choice { tap: "-1:last".to_owned(), held_out_percent_of_range: 2.5 }],
            together: Together {
                taps: vec!["-1:last".to_owned()],
                held_out_error: 0.1,
                held_out_percent_of_range: 2.5,
                ridge: 1e-9,
            },
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_layer_and_a_column_for_each_pooling() {
        let text = page().text();
        for part in [
            "stage text, demo, 4000 samples",
            "  0                               24.0      11.0\n  -1 (after the final norm)      2.500         –\n",
            "constant answer 25.0, no language model 12.0",
            "2.500 with taps: [-1:last]",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn the_picture_has_a_line_for_each_pooling() {
        let picture = page().picture();
        let has = |name: &str| picture.marks.iter().any(|mark| matches!(mark, Mark::Text { text, .. } if text == name));
        for name in ["last", "mean", "constant", "without the model", "chosen, together"] {
            assert!(has(name), "{name}");
        }
    }
}
