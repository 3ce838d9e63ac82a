//! Cross-validation: the sums of each fold of the samples, so that every fold can be left out of the fit in turn.
//!
//! A sample's fold is a function of its floats alone, so that one which comes again, as the rows of a file do in every pass,
//! is never fitted and judged at once. The samples that judge are those of least digest, each once: with few samples all of
//! them, with many a fair choice, in whatever order they come.

use std::collections::BTreeMap;

use super::centred::Centred;
use super::features::Features;
use super::gram::Gram;
use super::least_squares::{Fit, FitError, MOST_HELD_OUT};
use super::ridge::{Errors, OF_FOLDS};
use crate::bytes::digest_of;

/// Which fold a sample belongs to, and whether it judges.
type Digest = [u8; 32];

/// What a round has added up so far, by fold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Folds {
    hidden: usize,
    sums: Vec<Gram>,
    /// The samples that judge, `[d+1]` each, by digest: at most [`MOST_HELD_OUT`].
    judges: BTreeMap<Digest, Vec<f32>>,
}

impl Folds {
    pub(super) fn new(hidden: usize, folds: usize) -> Self {
        Self { hidden, sums: vec![Gram::new(hidden); folds], judges: BTreeMap::new() }
    }

    /// Read back from a checkpoint: the folds' high and low parts one after another. None where they do not fit together.
    pub(super) fn restored(folds: usize, samples: u64, high: &[f64], low: &[f64], judges: &Features) -> Option<Self> {
        let hidden = judges.hidden();
        let entries = Gram::entries(hidden);
        if high.len() != folds * entries || low.len() != high.len() || judges.len() > MOST_HELD_OUT {
            return None;
        }
        let mut restored = Self::new(hidden, 0);
        let mut counted: u64 = 0;
        for (high, low) in high.chunks_exact(entries).zip(low.chunks_exact(entries)) {
            let count = Gram::counted(hidden, high)?;
            counted = counted.checked_add(count)?;
            restored.sums.push(Gram::restored(hidden, count, high.to_vec(), low.to_vec())?);
        }
        for sample in judges.values().chunks_exact(Features::width(hidden)) {
            restored.judges.insert(digest_of(sample), sample.to_vec());
        }
        (counted == samples).then_some(restored)
    }

    pub(super) fn hidden(&self) -> usize {
        self.hidden
    }

    pub(super) fn sums(&self) -> &[Gram] {
        &self.sums
    }

    /// The samples that judge, by digest.
    pub(super) fn judges(&self) -> Features {
        self.judges_of(|_| true)
    }

    fn judges_of(&self, is_meant: impl Fn(&Digest) -> bool) -> Features {
        let mut judges = Features::empty(self.hidden);
        for (digest, sample) in &self.judges {
            if is_meant(digest) {
                judges.push(&sample[..self.hidden], sample[self.hidden]);
            }
        }
        judges
    }

    /// Adds the next samples of the round, which have the hidden size of the others.
    pub(super) fn add(&mut self, features: &Features) {
        let mut by_fold = vec![Vec::new(); self.sums.len()];
        for sample in features.values().chunks_exact(Features::width(self.hidden)) {
            let digest = digest_of(sample);
            by_fold[fold_of(&digest, self.sums.len())].push((&sample[..self.hidden], sample[self.hidden]));
            let is_full = self.judges.len() >= MOST_HELD_OUT;
            if !is_full || self.judges.last_key_value().is_some_and(|(last, _)| digest < *last) {
                self.judges.entry(digest).or_insert_with(|| sample.to_vec());
            }
            if self.judges.len() > MOST_HELD_OUT {
                self.judges.pop_last();
            }
        }
        for (sums, samples) in self.sums.iter_mut().zip(by_fold) {
            sums.add(samples.into_iter());
        }
    }

    /// The sums over all folds but `left_out`.
    fn all_but(&self, left_out: Option<usize>) -> Gram {
        let mut all = Gram::new(self.hidden);
        for (fold, sums) in self.sums.iter().enumerate() {
            if Some(fold) != left_out {
                all.add_sums(sums);
            }
        }
        all
    }

    /// Chooses λ and solves.
    pub(super) fn solve(&self) -> Result<Fit, FitError> {
        let samples = self.sums.iter().map(Gram::samples).sum();
        let (errors, judges) = self.errors();
        if judges == 0 {
            return Err(FitError::TooFew { samples });
        }
        let singular = FitError::Singular { samples };
        let (chosen, held_out_error) = OF_FOLDS.choose(&errors).ok_or(singular.clone())?;
        let solution = OF_FOLDS.solve_from(chosen, &Centred::of(&self.all_but(None))).ok_or(singular)?;
        Ok(Fit { weight: solution.weight, bias: solution.bias, ridge: solution.ridge, held_out_error })
    }

    /// Each ridge's errors over the samples that judge, every one by a fit without its fold, and how many judge.
    fn errors(&self) -> (Vec<Errors>, usize) {
        let folds = self.sums.len();
        let mut all: Vec<Errors> = vec![Some((0.0, 0.0)); OF_FOLDS.len()];
        let mut judged = 0;
        for fold in 0..folds {
            let judges = self.judges_of(|digest| fold_of(digest, folds) == fold);
            let others = self.all_but(Some(fold));
            if judges.is_empty() || others.samples() < 2 {
                continue;
            }
            let count = judges.len() as f64;
            for (all, fold) in all.iter_mut().zip(OF_FOLDS.judge(&Centred::of(&others), &judges)) {
                *all = all.zip(fold).map(|(all, fold)| (all.0 + count * fold.0, all.1 + count * fold.1));
            }
            judged += judges.len();
        }
        let mean = |sum: f64| sum / judged as f64;
        (all.into_iter().map(|sums| sums.map(|(squared, absolute)| (mean(squared), mean(absolute)))).collect(), judged)
    }
}

/// From bytes that do not decide which samples judge.
fn fold_of(digest: &Digest, folds: usize) -> usize {
    let mut number = [0; 8];
    number.copy_from_slice(&digest[24..]);
    (u64::from_le_bytes(number) % folds as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: usize = 12;

    /// Noise with a little of the target in it, `[n, d+1]`.
    fn noisy(samples: usize) -> Vec<f32> {
        let mut seed = 5u32;
        let mut draw = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut values = Vec::new();
        for _ in 0..samples {
            let state: Vec<f32> = (0..HIDDEN).map(|_| draw()).collect();
            let target = 0.3 * state[0] + 3.0 * draw();
            values.extend(state);
            values.push(target);
        }
        values
    }

    fn folds_of(values: &[f32]) -> Folds {
        let mut folds = Folds::new(HIDDEN, 10);
        folds.add(&Features::new(HIDDEN, values.to_vec()).unwrap());
        folds
    }

    #[test]
    fn every_sample_is_judged_once_by_a_fit_without_its_fold() {
        let values = noisy(80);
        let folds = folds_of(&values);
        let (errors, judged) = folds.errors();
        assert_eq!(judged, 80);
        let mut squared = vec![0.0; OF_FOLDS.len()];
        for fold in 0..10 {
            let (mut others, mut judges) = (Gram::new(HIDDEN), Features::empty(HIDDEN));
            for sample in values.chunks_exact(HIDDEN + 1) {
                let (hidden, target) = (&sample[..HIDDEN], sample[HIDDEN]);
                match fold_of(&digest_of(sample), 10) == fold {
                    true => judges.push(hidden, target),
                    false => others.add(std::iter::once((hidden, target))),
                }
            }
            for (squared, found) in squared.iter_mut().zip(OF_FOLDS.judge(&Centred::of(&others), &judges)) {
                *squared += found.unwrap().0 * judges.len() as f64;
            }
        }
        for (found, expected) in errors.iter().zip(squared) {
            assert!((found.unwrap().0 * 80.0 / expected - 1.0).abs() < 1e-6, "{found:?} {expected}");
        }
    }

    #[test]
    fn samples_that_come_again_change_neither_the_choice_nor_the_solution() {
        let values = noisy(60);
        let (once, often) = (folds_of(&values).solve().unwrap(), folds_of(&values.repeat(7)).solve().unwrap());
        assert!((often.held_out_error / once.held_out_error - 1.0).abs() < 1e-6, "{once:?} {often:?}");
        assert!((often.ridge / once.ridge / 7.0 - 1.0).abs() < 1e-9, "{} {}", often.ridge, once.ridge);
        for (a, b) in once.weight.iter().zip(&often.weight) {
            assert!((a - b).abs() <= 1e-6 * a.abs(), "{a} {b}");
        }
    }

    #[test]
    fn the_samples_that_judge_do_not_depend_on_the_order() {
        let values = noisy(3 * MOST_HELD_OUT);
        let backwards: Vec<f32> = values.chunks_exact(HIDDEN + 1).rev().flatten().copied().collect();
        let (folds, other) = (folds_of(&values), folds_of(&backwards));
        assert_eq!(folds.judges().len(), MOST_HELD_OUT);
        assert_eq!(folds.judges(), other.judges());
        let sizes: Vec<usize> =
            (0..10).map(|fold| folds.judges_of(|digest| fold_of(digest, 10) == fold).len()).collect();
        assert!(sizes.iter().all(|size| (60..150).contains(size)), "{sizes:?}");
    }
}
