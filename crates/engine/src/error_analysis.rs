//! Where the errors are: by decile of the target, the worst samples, and how often a question about listed numbers is
//! answered with the right one of them (choice accuracy).

use numalign_config::Recipe;
use numalign_data::{Input, Sample, SampleStream, Segment, grammar, median};
use serde::Serialize;

use crate::evaluation::Evaluation;
use crate::metrics::relative_errors;

/// How many of the worst samples are shown.
const WORST: usize = 10;

/// Errors of the samples whose targets lie between two deciles.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decile {
    /// Smallest target.
    pub from: f64,
    /// Largest target.
    pub to: f64,
    /// Number of samples.
    pub samples: usize,
    /// Mean absolute error, in value units.
    pub mae: f64,
    /// Mean of prediction − target, in value units.
    pub bias: f64,
    /// Median of `|error| / |target|` over the samples whose target is not 0.
    pub median_relative_error_percent: f64,
}

/// A sample with a large error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// In its stream.
    pub index: u64,
    /// As text.
    pub input: String,
    /// In value units.
    pub target: f64,
    /// In value units.
    pub prediction: f64,
    /// prediction − target
    pub error: f64,
}

/// How often predictions choose the right one of the numbers in a question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceAccuracy {
    /// Questions whose answer is one of their numbers.
    pub questions: usize,
    /// Share in which the listed number nearest to the prediction is the answer.
    pub right_percent: f64,
    /// The share in which the prediction also lies nearer than half the gap between the answer and the listed number next
    /// to it, on either side: a prediction below all numbers does not pass for the smallest.
    pub strict_percent: f64,
    /// `right_percent` of picking one of the numbers blindly.
    pub chance_percent: f64,
    /// `right_percent` of always answering the median target, as the constant predictor does.
    pub median_percent: f64,
    /// `right_percent` of always answering one end of the range, the better one: what an answer beyond all numbers gets.
    pub end_percent: f64,
}

/// Ten groups of nearly equal size, by ascending target; fewer where there are fewer samples.
pub fn deciles(predictions: &[f64], targets: &[f64]) -> Vec<Decile> {
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by(|a, b| targets[*a].total_cmp(&targets[*b]));
    let mut groups = Vec::new();
    for tenth in 0..10 {
        let members = &order[tenth * order.len() / 10..(tenth + 1) * order.len() / 10];
        let (Some(first), Some(last)) = (members.first(), members.last()) else {
            continue;
        };
        let of_group = |values: &[f64]| members.iter().map(|member| values[*member]).collect::<Vec<f64>>();
        let (predicted, wanted) = (of_group(predictions), of_group(targets));
        let (mut absolute, mut signed) = (0.0, 0.0);
        for (prediction, target) in predicted.iter().zip(&wanted) {
            absolute += (prediction - target).abs();
            signed += prediction - target;
        }
        let count = members.len() as f64;
        groups.push(Decile {
            from: targets[*first],
            to: targets[*last],
            samples: members.len(),
            mae: absolute / count,
            bias: signed / count,
            median_relative_error_percent: 100.0 * median(relative_errors(&predicted, &wanted)),
        });
    }
    groups
}

/// The samples with the largest absolute errors, worst first; `sample` gives the sample at a place of the lists.
pub fn worst(predictions: &[f64], targets: &[f64], sample: impl Fn(usize) -> Sample) -> Vec<Worst> {
    let error = |place: usize| (predictions[place] - targets[place]).abs();
    let mut order: Vec<usize> = (0..targets.len()).collect();
    // Equal errors in the order of the stream.
    order.sort_by(|a, b| error(*b).total_cmp(&error(*a)));
    order.truncate(WORST);
    let mut list = Vec::with_capacity(order.len());
    for place in order {
        let Sample { index, input, target } = sample(place);
        let input = match input {
            Input::Number(value) => value.to_string(),
            Input::Text(text) => text,
        };
        let prediction = predictions[place];
        list.push(Worst { index, input, target, prediction, error: prediction - target });
    }
    list
}

/// The numbers of a question, in order; empty for an input that is no text, or holds no marked numbers.
pub fn listed_numbers(sample: &Sample) -> Vec<f64> {
    let Input::Text(text) = &sample.input else {
        return Vec::new();
    };
    let mut numbers = Vec::new();
    for segment in grammar::parse(text).unwrap_or_default() {
        if let Segment::Number(value) = segment {
            numbers.push(value);
        }
    }
    numbers
}

/// The number of `listed` that is nearest to `prediction`, the first of equals.
pub fn nearest(listed: &[f64], prediction: f64) -> Option<f64> {
    let mut best: Option<f64> = None;
    for number in listed {
        if best.is_none_or(|best| (number - prediction).abs() < (best - prediction).abs()) {
            best = Some(*number);
        }
    }
    best
}

/// Whether the listed number nearest to `prediction` is the answer; `None` for a sample that is no question, or whose
/// answer is not listed.
pub fn is_right_choice(sample: &Sample, prediction: f64) -> Option<bool> {
    let listed = listed_numbers(sample);
    listed.contains(&sample.target).then(|| nearest(&listed, prediction) == Some(sample.target))
}

/// Distance from `answer` to the next listed number that is another one; infinite where there is none.
fn gap_beside(listed: &[f64], answer: f64) -> f64 {
    let mut gap = f64::INFINITY;
    for number in listed.iter().filter(|number| **number != answer) {
        gap = gap.min((number - answer).abs());
    }
    gap
}

/// Counts questions as they come; [`ChoiceCounter::accuracy`] at the end.
#[derive(Debug, Clone)]
pub struct ChoiceCounter {
    /// The median target and both ends of the range, and how often each of them would be right.
    constants: [(f64, usize); 3],
    questions: usize,
    right: usize,
    strictly: usize,
    chance: f64,
}

impl ChoiceCounter {
    /// For questions with these targets.
    pub fn new(recipe: &Recipe, targets: &[f64]) -> Self {
        let constants = [median(targets.to_vec()), recipe.min_val, recipe.max_val].map(|constant| (constant, 0));
        Self { constants, questions: 0, right: 0, strictly: 0, chance: 0.0 }
    }

    /// Adds one question; it counts where its answer is one of its numbers.
    pub fn add(&mut self, sample: &Sample, prediction: f64) {
        let listed = listed_numbers(sample);
        let answers = listed.iter().filter(|number| **number == sample.target).count();
        if answers == 0 {
            return;
        }
        self.questions += 1;
        let is_right = nearest(&listed, prediction) == Some(sample.target);
        self.right += usize::from(is_right);
        let gap = gap_beside(&listed, sample.target);
        self.strictly += usize::from(is_right && (prediction - sample.target).abs() < gap / 2.0);
        for (constant, right) in &mut self.constants {
            *right += usize::from(nearest(&listed, *constant) == Some(sample.target));
        }
        self.chance += answers as f64 / listed.len() as f64;
    }

    /// `None` if no question counted, or none left a choice.
    pub fn accuracy(&self) -> Option<ChoiceAccuracy> {
        if self.chance >= self.questions as f64 {
            return None;
        }
        let percent = |share: f64| 100.0 * share / self.questions as f64;
        let [(_, median), (_, low), (_, high)] = self.constants;
        Some(ChoiceAccuracy {
            questions: self.questions,
            right_percent: percent(self.right as f64),
            strict_percent: percent(self.strictly as f64),
            chance_percent: percent(self.chance),
            median_percent: percent(median as f64),
            end_percent: percent(low.max(high) as f64),
        })
    }
}

/// Choice accuracy over the first samples of `stream`; `None` for recipes whose answers are not listed.
pub fn choice_accuracy(recipe: &Recipe, evaluation: &Evaluation, stream: &SampleStream) -> Option<ChoiceAccuracy> {
    if !recipe.answer_is_listed() {
        return None;
    }
    let mut count = ChoiceCounter::new(recipe, &evaluation.targets);
    for (place, prediction) in evaluation.predictions.iter().enumerate() {
        count.add(&stream.sample(place as u64), *prediction);
    }
    count.accuracy()
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;

    use super::*;

    fn question(text: &str, target: f64) -> Sample {
        Sample { index: 3, input: Input::Text(text.to_owned()), target }
    }

    #[test]
    fn deciles_cover_every_sample_once() {
        let targets: Vec<f64> = (0..25).map(|i| f64::from((i * 7) % 25)).collect();
        let predictions: Vec<f64> =
            targets.iter().map(|target| target + if *target < 10.0 { 1.0 } else { -2.0 }).collect();
        let groups = deciles(&predictions, &targets);
        assert_eq!(groups.len(), 10);
        assert_eq!(groups.iter().map(|group| group.samples).sum::<usize>(), 25);
        assert_eq!((groups[0].from, groups[9].to), (0.0, 24.0));
        assert_eq!((groups[0].mae, groups[0].bias), (1.0, 1.0));
        assert_eq!((groups[9].mae, groups[9].bias), (2.0, -2.0));
        assert_eq!(deciles(&[1.0], &[2.0]).len(), 1);
        assert!(deciles(&[], &[]).is_empty());
    }

    #[test]
    fn the_worst_come_first() {
        let predictions: Vec<f64> = (0..30).map(|i| f64::from((i * 11) % 30)).collect();
        let list = worst(&predictions, &[0.0; 30], |place| Sample {
            index: place as u64,
            input: Input::Number(0.5),
            target: 0.0,
        });
        assert_eq!(list.len(), 10);
        assert_eq!((list[0].prediction, list[0].index, list[0].input.as_str()), (29.0, 19, "0.5"));
        assert!(list.windows(2).all(|pair| pair[0].error >= pair[1].error));
    }

    #[test]
    fn the_right_choice_is_the_nearest_listed_number() {
        let recipe = Config::with(&[]).unwrap().recipe;
        let mut count = ChoiceCounter::new(&recipe, &[1.0, 1.0, 2.0]);
        assert_eq!(count.accuracy(), None);
        count.add(&question("$$1&& or $$5&&?", 1.0), 2.9);
        count.add(&question("$$1&& or $$5&&?", 1.0), 3.1);
        // Chance is 2 of 3 where the answer is listed twice.
        count.add(&question("$$2&&, $$2&&, $$8&&?", 2.0), -4.0);
        // The mean is not one of the numbers.
        count.add(&question("$$1&& and $$5&&: mean?", 3.0), 3.0);
        let share = count.accuracy().unwrap();
        assert_eq!(share.questions, 3);
        assert!((share.right_percent - 200.0 / 3.0).abs() < 1e-9);
        // −4 is nearest to 2, but further from it than half of the gap to 8.
        assert!((share.strict_percent - 100.0 / 3.0).abs() < 1e-9);
        assert!((share.median_percent - 100.0).abs() < 1e-9, "1 is nearest to the answer in all three");
        assert!((share.end_percent - 100.0).abs() < 1e-9, "and so is 0");
        assert!((share.chance_percent - 100.0 * (0.5 + 0.5 + 2.0 / 3.0) / 3.0).abs() < 1e-9);
    }
}
