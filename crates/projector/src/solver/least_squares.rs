//! The output projector as a least-squares solution: what is added up over a round, and how it is solved.
//!
//! Minimises `Σ (w·h + b − y)² + λ‖w‖²` over the round's samples, the bias unpenalised: with centred sums
//! `C = Σ (h−h̄)(h−h̄)ᵀ` and `c = Σ (h−h̄)(y−ȳ)`, `(C + λI) w = c` and `b = ȳ − w·h̄` ([`super::centred`]). λ is chosen from a
//! fixed grid ([`super::ridge`]) while every eighth sample is held out, or by cross-validation ([`super::folds`]). The
//! solution then takes all samples.

use std::borrow::Cow;

use super::centred::Centred;
use super::features::Features;
use super::folds::Folds;
use super::gram::Gram;
use super::ridge::{OF_AN_EIGHTH, OF_FOLDS};

/// One sample of these is held out: every 8th.
pub(super) const HELD_OUT_EVERY: u64 = 8;

/// Samples that judge at most, which bounds the memory.
pub(super) const MOST_HELD_OUT: usize = 1024;

/// What a round has added up so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    samples: u64,
    parts: Parts,
}

#[derive(Debug, Clone, PartialEq)]
enum Parts {
    /// Samples that are held out of the fit, `[n, d+1]`; those beyond the first [`MOST_HELD_OUT`] are fitted.
    Eighth {
        fitted: Gram,
        held_out: Features,
    },
    Folds(Folds),
}

/// A solved output projector.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// `[d]`
    pub weight: Vec<f32>,
    /// `b`
    pub bias: f32,
    /// λ.
    pub ridge: f64,
    /// Mean absolute error on the samples that judge, each while it was not fitted, in encoded units.
    pub held_out_error: f64,
}

/// Why a round has no solution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum FitError {
    #[error("{samples} samples are too few to fit and to hold out")]
    TooFew { samples: u64 },
    #[error("no ridge of the grid gives a solution of {samples} samples: their hidden states do not vary")]
    Singular { samples: u64 },
    #[error("features of hidden size {got} came to sums of {want}")]
    WrongSize { got: usize, want: usize },
}

impl Sums {
    /// A round that begins: with `folds` of the samples in cross-validation, or with 0 and an eighth held out.
    pub fn new(hidden: usize, folds: usize) -> Self {
        let parts = match folds {
            0 => Parts::Eighth { fitted: Gram::new(hidden), held_out: Features::empty(hidden) },
            _ => Parts::Folds(Folds::new(hidden, folds)),
        };
        Self { samples: 0, parts }
    }

    /// Sums read back from a checkpoint: the Gram parts, fold after fold, and the samples that judge. None where they do not
    /// fit together.
    pub fn restored(samples: u64, folds: usize, high: Vec<f64>, low: Vec<f64>, held_out: Features) -> Option<Self> {
        if folds > 0 {
            let parts = Parts::Folds(Folds::restored(folds, samples, &high, &low, &held_out)?);
            return Some(Self { samples, parts });
        }
        let fitted = samples.checked_sub(held_out.len() as u64)?;
        let fitted = Gram::restored(held_out.hidden(), fitted, high, low)?;
        Some(Self { samples, parts: Parts::Eighth { fitted, held_out } })
    }

    /// Bytes of the sums over `columns` columns as a checkpoint stores them, samples that judge not counted.
    pub fn stored_bytes(columns: usize, folds: usize) -> u64 {
        2 * 8 * (Gram::entries(columns) * folds.max(1)) as u64
    }

    /// Bytes of memory that adding up and solving take at most with `columns` columns: the sums, and once more those that
    /// are solved, the centred matrix in two parts, the factors tried at once, and the samples that judge.
    pub fn memory_bytes(columns: usize, folds: usize) -> u64 {
        let square = 8 * (columns as u64).pow(2);
        let grid = if folds > 0 { OF_FOLDS } else { OF_AN_EIGHTH };
        let factors = grid.factors_at_once(columns) as u64;
        let sums = Self::stored_bytes(columns, folds) + Self::stored_bytes(columns, 1);
        sums + (2 + factors) * square + 4 * (MOST_HELD_OUT * (columns + 1)) as u64
    }

    /// Hidden size `d`.
    pub fn hidden(&self) -> usize {
        match &self.parts {
            Parts::Eighth { fitted, .. } => fitted.hidden(),
            Parts::Folds(folds) => folds.hidden(),
        }
    }

    /// Samples added.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The sums over the fitted samples, or over those of each fold.
    pub fn grams(&self) -> &[Gram] {
        match &self.parts {
            Parts::Eighth { fitted, .. } => std::slice::from_ref(fitted),
            Parts::Folds(folds) => folds.sums(),
        }
    }

    /// The samples that judge.
    pub fn held_out(&self) -> Cow<'_, Features> {
        match &self.parts {
            Parts::Eighth { held_out, .. } => Cow::Borrowed(held_out),
            Parts::Folds(folds) => Cow::Owned(folds.judges()),
        }
    }

    /// Adds the next samples of the round.
    ///
    /// # Errors
    /// Features of another hidden size.
    pub fn add(&mut self, features: &Features) -> Result<(), FitError> {
        if features.hidden() != self.hidden() {
            return Err(FitError::WrongSize { got: features.hidden(), want: self.hidden() });
        }
        match &mut self.parts {
            Parts::Eighth { fitted, held_out } => add_but_an_eighth(self.samples, features, fitted, held_out),
            Parts::Folds(folds) => folds.add(features),
        }
        self.samples += features.len() as u64;
        Ok(())
    }

    /// Chooses λ and solves.
    ///
    /// # Errors
    /// Too few samples, or samples that determine no solution.
    pub fn solve(&self) -> Result<Fit, FitError> {
        match &self.parts {
            Parts::Eighth { fitted, held_out } => solve_with_an_eighth(self.samples, fitted, held_out),
            Parts::Folds(folds) => folds.solve(),
        }
    }
}

/// Adds samples to those that are fitted or held out; `before` came earlier in the round.
fn add_but_an_eighth(before: u64, features: &Features, fitted: &mut Gram, held_out: &mut Features) {
    let mut rest = Vec::with_capacity(features.len());
    for (place, (hidden, target)) in (before..).zip(features.samples()) {
        let is_held_out = place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 && held_out.len() < MOST_HELD_OUT;
        match is_held_out {
            true => held_out.push(hidden, target),
            false => rest.push((hidden, target)),
        }
    }
    fitted.add(rest.into_iter());
}

fn solve_with_an_eighth(samples: u64, fitted: &Gram, held_out: &Features) -> Result<Fit, FitError> {
    if held_out.is_empty() || fitted.samples() < 2 {
        return Err(FitError::TooFew { samples });
    }
    let problem = Centred::of(fitted);
    let errors = OF_AN_EIGHTH.judge(&problem, held_out);
    drop(problem);
    let (chosen, held_out_error) = OF_AN_EIGHTH.choose(&errors).ok_or(FitError::Singular { samples })?;
    let mut all = fitted.clone();
    all.add_features(held_out);
    let problem = Centred::of(&all);
    drop(all);
    let solution = OF_AN_EIGHTH.solve_from(chosen, &problem).ok_or(FitError::Singular { samples })?;
    Ok(Fit { weight: solution.weight, bias: solution.bias, ridge: solution.ridge, held_out_error })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Samples with a target that depends on the hidden state, and some noise.
    fn features(samples: usize, hidden: usize) -> Features {
        let mut seed = 1u32;
        let mut draw = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut values = Vec::new();
        for _ in 0..samples {
            let state: Vec<f32> = (0..hidden).map(|_| draw()).collect();
            let target = state.iter().sum::<f32>() + 3.0 + 0.01 * draw();
            values.extend(state);
            values.push(target);
        }
        Features::new(hidden, values).unwrap()
    }

    fn part(features: &Features, from: usize, to: usize) -> Features {
        let width = Features::width(features.hidden());
        Features::new(features.hidden(), features.values()[from * width..to * width].to_vec()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn the_solution_does_not_depend_on_how_the_pass_is_cut(
            cuts in prop::collection::vec(0usize..100, 3),
            folds in prop::sample::select(vec![0usize, 2, 10]),
        ) {
            let all = features(100, 5);
            let mut whole = Sums::new(5, folds);
            whole.add(&all).unwrap();
            let mut cuts = cuts;
            cuts.extend([0, 100]);
            cuts.sort_unstable();
            let mut parts = Sums::new(5, folds);
            for pair in cuts.windows(2) {
                parts.add(&part(&all, pair[0], pair[1])).unwrap();
            }
            prop_assert_eq!(&whole, &parts);
            prop_assert_eq!(whole.solve().unwrap(), parts.solve().unwrap());
        }
    }

    #[test]
    fn sums_go_on_after_they_were_stored() {
        let all = features(64, 3);
        for folds in [0, 4] {
            let mut whole = Sums::new(3, folds);
            whole.add(&all).unwrap();
            let mut half = Sums::new(3, folds);
            half.add(&part(&all, 0, 21)).unwrap();
            let high: Vec<f64> = half.grams().iter().flat_map(|gram| gram.high().to_vec()).collect();
            let low: Vec<f64> = half.grams().iter().flat_map(|gram| gram.low().to_vec()).collect();
            let held_out = half.held_out().into_owned();
            assert_eq!(Sums::restored(21, folds, high[1..].to_vec(), low.clone(), held_out.clone()), None);
            assert_eq!(Sums::restored(1, folds, high.clone(), low.clone(), held_out.clone()), None);
            let mut half = Sums::restored(21, folds, high, low, held_out).unwrap();
            half.add(&part(&all, 21, 64)).unwrap();
            assert_eq!(half, whole);
        }
    }

    #[test]
    fn what_cannot_be_solved_is_said() {
        for folds in [0, 5] {
            assert_eq!(Sums::new(2, folds).solve(), Err(FitError::TooFew { samples: 0 }));
        }
        let mut constant = Sums::new(2, 0);
        constant.add(&Features::new(2, [1.0, 2.0, 3.0].repeat(40)).unwrap()).unwrap();
        assert_eq!(constant.solve(), Err(FitError::Singular { samples: 40 }));
        let other = Features::new(1, vec![1.0, 1.0]).unwrap();
        assert_eq!(constant.add(&other), Err(FitError::WrongSize { got: 1, want: 2 }));
    }

    #[test]
    fn a_target_that_never_varies_is_answered_by_the_bias() {
        let varying = features(40, 2);
        let mut values = varying.values().to_vec();
        for sample in values.chunks_exact_mut(3) {
            sample[2] = 7.0;
        }
        for folds in [0, 5] {
            let mut sums = Sums::new(2, folds);
            sums.add(&Features::new(2, values.clone()).unwrap()).unwrap();
            let fit = sums.solve().unwrap();
            assert_eq!((fit.weight, fit.bias), (vec![0.0, 0.0], 7.0));
        }
    }
}
