//! What a file's content says about settings that nobody gave: the ranges, and how many rows there are.

use numalign_config::{Recipe, Span, Stage};

use super::{Dataset, Side, input_of};
use crate::error::DataError;
use crate::grammar::{self, Segment};
use crate::sample::{Input, Sample};
use crate::table::RowText;

/// What was found in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// Rows that are trained on.
    pub train_rows: u64,
    /// Rows that are held out.
    pub held_out_rows: u64,
    /// Of the training rows' targets.
    pub targets: Span,
    /// Of the numbers in the training rows' inputs: one for each place of a template, else one for all of them. Empty in
    /// stage `text`, and where there are none.
    pub inputs: Vec<Span>,
}

/// Looks through a dataset that was read as `recipe` says, whose ranges do not matter.
///
/// # Errors
/// A template that is none.
pub fn survey(dataset: &Dataset, recipe: &Recipe) -> Result<Survey, DataError> {
    let by_place = matches!(input_of(recipe)?, RowText::Template(_));
    let (mut targets, mut inputs) = (Extent::default(), Vec::new());
    for row in 0..dataset.len(Side::Train) {
        let sample = dataset.sample(Side::Train, row, row);
        targets.add(sample.target);
        for (place, value) in numbers_of(&sample, recipe.stage).into_iter().enumerate() {
            let place = if by_place { place } else { 0 };
            if inputs.len() <= place {
                inputs.resize_with(place + 1, Extent::default);
            }
            inputs[place].add(value);
        }
    }
    Ok(Survey {
        train_rows: dataset.len(Side::Train),
        held_out_rows: dataset.len(Side::HeldOut),
        targets: targets.span(),
        inputs: inputs.iter().map(Extent::span).collect(),
    })
}

/// The numbers that a sample's input projects.
pub fn numbers_of(sample: &Sample, stage: Stage) -> Vec<f64> {
    match (&sample.input, stage) {
        (Input::Number(value), _) => vec![*value],
        (Input::Text(text), Stage::Mixed) => {
            let segments = grammar::parse(text).unwrap_or_default();
            segments
                .into_iter()
                .filter_map(|segment| match segment {
                    Segment::Number(value) => Some(value),
                    Segment::Text(_) => None,
                })
                .collect()
        }
        (Input::Text(_), _) => Vec::new(),
    }
}

/// The least and the greatest of some values.
#[derive(Debug, Clone, Copy, Default)]
struct Extent(Option<(f64, f64)>);

impl Extent {
    fn add(&mut self, value: f64) {
        let (least, most) = self.0.unwrap_or((value, value));
        self.0 = Some((least.min(value), most.max(value)));
    }

    /// A range needs some width: where all values are one, half of it on either side, or a half.
    fn span(&self) -> Span {
        let (least, most) = self.0.unwrap_or((0.0, 1.0));
        let margin = if least == most { (least.abs() / 2.0).max(0.5) } else { 0.0 };
        Span { min: least - margin, max: most + margin }
    }
}

/// Values that leave their range.
#[derive(Debug, Clone, PartialEq)]
pub struct Outside {
    /// How many rows have one.
    pub rows: u64,
    /// The furthest value.
    pub furthest: f64,
    /// The range that it leaves.
    pub range: Span,
    /// How far it is away, in widths of its range.
    pub distance: f64,
}

/// Training rows whose target, or a number of whose input, lies outside the range that `recipe` has for it.
pub fn outside(dataset: &Dataset, recipe: &Recipe) -> Option<Outside> {
    let targets = Span { min: recipe.min_val, max: recipe.max_val };
    let mut found: Option<Outside> = None;
    for row in 0..dataset.len(Side::Train) {
        let sample = dataset.sample(Side::Train, row, row);
        let inputs = numbers_of(&sample, recipe.stage);
        let ranged = inputs.iter().enumerate().map(|(place, value)| (*value, recipe.input_range(place)));
        let mut worst: Option<(f64, Span, f64)> = None;
        for (value, range) in ranged.chain([(sample.target, targets)]) {
            let distance = (range.min - value).max(value - range.max) / (range.max - range.min);
            if distance > 0.0 && worst.is_none_or(|(.., furthest)| distance > furthest) {
                worst = Some((value, range, distance));
            }
        }
        let Some((value, range, distance)) = worst else { continue };
        let of_row = Outside { rows: 1, furthest: value, range, distance };
        found = Some(match found {
            None => of_row,
            Some(before) if before.distance >= distance => Outside { rows: before.rows + 1, ..before },
            Some(before) => Outside { rows: before.rows + 1, ..of_row },
        });
    }
    found
}
