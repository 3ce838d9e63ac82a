//! Evaluations made during training: the part of the state that `eval_every` adds.
//!
//! A row belongs to one micro-batch of held-out samples and is as long as a gradient row, so that every collective moves
//! it as it moves gradients; only its first [`ErrorSums::LEN`] floats are used.

use crate::bytes::{floats_from_le, le_bytes};
use crate::layout::Layout;

/// What one micro-batch's predictions add up to. Errors are in units of the value range, in which they do not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ErrorSums {
    squared: f64,
    absolute: f64,
    /// Questions whose answer is one of their numbers.
    questions: u32,
    /// Those of them whose nearest number to the prediction is the answer.
    right: u32,
}

impl ErrorSums {
    /// Floats of a row that are used; the smallest layout has more.
    pub const LEN: usize = 4;

    /// Adds one sample's error, as a share of the range; `right` where it is a question with its answer among its
    /// numbers.
    pub fn add(&mut self, error: f64, right: Option<bool>) {
        self.squared += error * error;
        self.absolute += error.abs();
        self.questions += u32::from(right.is_some());
        self.right += u32::from(right == Some(true));
    }

    /// `[row_len]` of `layout`: the sums, then zeros.
    pub fn to_row(self, layout: Layout) -> Vec<f32> {
        let mut row = vec![0.0; layout.row_len()];
        let sums = [self.squared as f32, self.absolute as f32, self.questions as f32, self.right as f32];
        row[..Self::LEN].copy_from_slice(&sums);
        row
    }
}

/// The projectors after `step` updates, on held-out samples; errors in value units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Updates before it.
    pub step: u64,
    /// Held-out samples.
    pub samples: u64,
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Stage mixed: questions whose answer is one of their numbers.
    pub questions: u64,
    /// Those of them that were answered nearest to it.
    pub right: u64,
}

impl Evaluation {
    /// From the reduced row of all micro-batches; none if an error is beyond all numbers.
    pub(crate) fn of(sums: &[f32], step: u64, samples: u64, range: f64) -> Option<Self> {
        let [squared, absolute, questions, right] = *sums.first_chunk::<{ ErrorSums::LEN }>()?;
        let count = samples.max(1) as f64;
        let evaluation = Self {
            step,
            samples,
            mse: f64::from(squared) * range * range / count,
            mae: f64::from(absolute) * range / count,
            questions: questions as u64,
            right: right as u64,
        };
        (evaluation.mse.is_finite() && evaluation.mae.is_finite()).then_some(evaluation)
    }

    /// Choice accuracy, in percent; `None` without such questions.
    pub fn right_percent(&self) -> Option<f64> {
        (self.questions > 0).then(|| 100.0 * self.right as f64 / self.questions as f64)
    }

    /// Bytes of one evaluation in a state.
    const BYTES: usize = 6 * 8;

    fn words(&self) -> [u64; 6] {
        [self.step, self.samples, self.mse.to_bits(), self.mae.to_bits(), self.questions, self.right]
    }

    fn from_words([step, samples, mse, mae, questions, right]: [u64; 6]) -> Self {
        Self { step, samples, mse: f64::from_bits(mse), mae: f64::from_bits(mae), questions, right }
    }
}

/// Every evaluation of a run so far, and the projectors of the best one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evaluations {
    /// In the order of their steps.
    list: Vec<Evaluation>,
    /// All trainable numbers as they were at [`Evaluations::best`]; empty before the first evaluation.
    best: Vec<f32>,
}

/// The first word of evaluations in a state's bytes, but for their number in its lower half: nothing else begins with it.
const TAG: u64 = 0x6576_616c << 32;

impl Evaluations {
    /// As a checkpoint stored them; none if `best` does not fit `list` or `layout`.
    pub fn restored(list: Vec<Evaluation>, best: Vec<f32>, layout: Layout) -> Option<Self> {
        let wanted = if list.is_empty() { 0 } else { layout.len() };
        (best.len() == wanted).then_some(Self { list, best })
    }

    /// All of them, in the order of their steps.
    pub fn list(&self) -> &[Evaluation] {
        &self.list
    }

    /// The one with the lowest mean absolute error, the first of equals.
    pub fn best(&self) -> Option<&Evaluation> {
        let mut best: Option<&Evaluation> = None;
        for evaluation in &self.list {
            if best.is_none_or(|best| evaluation.mae < best.mae) {
                best = Some(evaluation);
            }
        }
        best
    }

    /// All trainable numbers as they were at [`Evaluations::best`]; empty before the first evaluation.
    pub fn best_parameters(&self) -> &[f32] {
        &self.best
    }

    /// Adds an evaluation of `parameters`.
    pub(crate) fn add(&mut self, evaluation: Evaluation, parameters: &[f32]) {
        if self.best().is_none_or(|best| evaluation.mae < best.mae) {
            self.best = parameters.to_vec();
        }
        self.list.push(evaluation);
    }

    /// Nothing where there are none; else tag and number, the evaluations, the best parameters, all little-endian.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.list.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&(TAG | self.list.len() as u64).to_le_bytes());
        for evaluation in &self.list {
            bytes.extend_from_slice(le_bytes(&evaluation.words()));
        }
        bytes.extend_from_slice(le_bytes(&self.best));
        bytes
    }

    /// Inverse of [`Evaluations::to_bytes`]: all of `bytes`, or none.
    pub(crate) fn from_bytes(bytes: &[u8], layout: Layout) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let (first, rest) = bytes.split_first_chunk::<8>()?;
        let count = u64::from_le_bytes(*first) ^ TAG;
        if count == 0 || count > u64::from(u32::MAX) {
            return None;
        }
        let (list, best) = rest.split_at_checked(count as usize * Evaluation::BYTES)?;
        if best.len() != 4 * layout.len() {
            return None;
        }
        let mut evaluations = Self::default();
        for entry in list.chunks_exact(Evaluation::BYTES) {
            let mut words = [0; 6];
            for (word, bytes) in words.iter_mut().zip(entry.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().ok()?);
            }
            evaluations.list.push(Evaluation::from_words(words));
        }
        evaluations.best = floats_from_le(best);
        Some(evaluations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(step: u64, mae: f64) -> Evaluation {
        Evaluation { step, samples: 7, mse: 2.0 * mae, mae, questions: 5, right: 3 }
    }

    #[test]
    fn the_first_of_the_lowest_errors_is_the_best() {
        let mut evaluations = Evaluations::default();
        assert_eq!(evaluations.best(), None);
        for (step, mae) in [(1, 3.0), (2, 1.0), (3, 1.0), (4, 2.0)] {
            evaluations.add(evaluation(step, mae), &[step as f32; 4]);
        }
        assert_eq!(evaluations.best().map(|best| best.step), Some(2));
        assert_eq!(evaluations.best_parameters(), [2.0; 4]);
        assert_eq!(evaluations.list()[3].right_percent(), Some(60.0));
    }

    #[test]
    fn bytes_round_trip_and_nothing_else_is_taken_for_them() {
        let layout = Layout::new(1);
        let mut evaluations = Evaluations::default();
        assert!(evaluations.to_bytes().is_empty());
        evaluations.add(evaluation(10, 0.1), &[1.0, -0.0, 2.0, 3.0]);
        evaluations.add(evaluation(20, 0.2), &[4.0; 4]);
        let bytes = evaluations.to_bytes();
        assert_eq!(Evaluations::from_bytes(&bytes, layout), Some(evaluations));
        for wrong in [&bytes[1..], &bytes[..bytes.len() - 4], &[0; 8], &TAG.to_le_bytes()] {
            assert_eq!(Evaluations::from_bytes(wrong, layout), None);
        }
        assert_eq!(Evaluations::from_bytes(&bytes, Layout::new(2)), None);
    }

    #[test]
    fn rows_add_up_to_means_in_value_units() {
        let (mut first, mut second) = (ErrorSums::default(), ErrorSums::default());
        first.add(0.5, Some(true));
        first.add(-0.25, Some(false));
        second.add(0.25, None);
        let (first, second) = (first.to_row(Layout::new(1)), second.to_row(Layout::new(1)));
        assert_eq!(first.len(), Layout::new(1).row_len());
        let sum: Vec<f32> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
        let made = Evaluation::of(&sum, 9, 3, 10.0);
        let (mse, mae) = (37.5 / 3.0, 10.0 / 3.0);
        assert_eq!(made, Some(Evaluation { step: 9, samples: 3, mse, mae, questions: 2, right: 1 }));
        assert_eq!(Evaluation::of(&[f32::INFINITY, 1.0, 0.0, 0.0], 9, 3, 10.0), None);
        assert_eq!(Evaluation::of(&[1.0], 9, 3, 10.0), None);
    }
}
