//! The output projector as a least-squares solution: what is added up over a round, and how it is solved.
//!
//! Minimises `Σ (w·h + b − y)² + λ‖w‖²` over the round's samples, the bias unpenalised: with centred sums
//! `C = Σ (h−h̄)(h−h̄)ᵀ` and `c = Σ (h−h̄)(y−ȳ)`, `(C + λI) w = c` and `b = ȳ − w·h̄`. Every eighth sample is held out
//! while λ is chosen from a fixed grid, by the squared error of the very read-out that will be used, `f32` rounding
//! included: the largest λ whose error is nearly the least, since smaller weights lose less to rounding and to hidden
//! states that move on. The solution then takes all samples. Sums and residuals carry about 106 bits, factors 53 (Cholesky), and
//! iterative refinement makes up the difference.

use rayon::prelude::*;

use super::cholesky::Cholesky;
use super::double_double::{DoubleDouble, two_product};
use super::features::Features;
use super::gram::Gram;
use super::lanes::subtract_products;
use crate::linear::read_out;

/// One sample of these is held out: every 8th.
pub(super) const HELD_OUT_EVERY: u64 = 8;

/// Samples held out at most, which bounds the memory; later ones are fitted.
pub(super) const MOST_HELD_OUT: usize = 1024;

/// λ in units of the mean variance sum `trace(C)/d`: a grid of powers of ten, ascending.
const GRID: [f64; 14] = [1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// A larger λ is preferred while its squared error is at most this multiple of the least one.
const NEARLY_LEAST: f64 = 1.01;

/// Rounds of iterative refinement.
const REFINEMENTS: usize = 4;

/// Columns above which the ridges are tried one after another, from the largest down, for the sake of memory and time.
const WIDE: usize = 2048;

/// With many columns the search ends where the squared error is this multiple of the least one so far.
const CLEARLY_WORSE: f64 = 1.5;

/// Rows of a residual that are added up at once.
const ROWS: usize = 64;

/// Largest last correction, relative to the weights, of a solution that counts as found.
const CONVERGED: f64 = 1e-9;

/// What a round has added up so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    samples: u64,
    fitted: Gram,
    /// Samples that are held out of the fit, `[n, d+1]`.
    held_out: Features,
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
    /// Mean absolute error on the held-out samples while they were held out, in encoded units.
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
    /// A round that begins.
    pub fn new(hidden: usize) -> Self {
        let held_out = Features::empty(hidden);
        Self { samples: 0, fitted: Gram::new(hidden), held_out }
    }

    /// Sums read back from a checkpoint: the Gram parts and the held-out samples. None where they do not fit together.
    pub fn restored(samples: u64, high: Vec<f64>, low: Vec<f64>, held_out: Features) -> Option<Self> {
        let fitted = samples.checked_sub(held_out.len() as u64)?;
        let fitted = Gram::restored(held_out.hidden(), fitted, high, low)?;
        Some(Self { samples, fitted, held_out })
    }

    /// Bytes of the sums over `columns` columns as a checkpoint stores them, held-out samples not counted.
    pub fn stored_bytes(columns: usize) -> u64 {
        2 * 8 * Gram::entries(columns) as u64
    }

    /// Bytes of memory that adding up and solving take at most with `columns` columns: the sums twice, the centred matrix
    /// in two parts, the factors tried at once, and the held-out samples.
    pub fn memory_bytes(columns: usize) -> u64 {
        let square = 8 * (columns as u64).pow(2);
        let factors = if columns > WIDE { 1 } else { GRID.len() as u64 };
        2 * Self::stored_bytes(columns) + (2 + factors) * square + 4 * (MOST_HELD_OUT * (columns + 1)) as u64
    }

    /// Hidden size `d`.
    pub fn hidden(&self) -> usize {
        self.fitted.hidden()
    }

    /// Samples added.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The sums over the fitted samples.
    pub fn fitted(&self) -> &Gram {
        &self.fitted
    }

    /// The samples that are held out.
    pub fn held_out(&self) -> &Features {
        &self.held_out
    }

    /// Adds the next samples of the round.
    ///
    /// # Errors
    /// Features of another hidden size.
    pub fn add(&mut self, features: &Features) -> Result<(), FitError> {
        if features.hidden() != self.hidden() {
            return Err(FitError::WrongSize { got: features.hidden(), want: self.hidden() });
        }
        let mut fitted = Vec::with_capacity(features.len());
        for (hidden, target) in features.samples() {
            let held_out = self.samples % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 && self.held_out.len() < MOST_HELD_OUT;
            match held_out {
                true => self.held_out.push(hidden, target),
                false => fitted.push((hidden, target)),
            }
            self.samples += 1;
        }
        self.fitted.add(fitted.into_iter());
        Ok(())
    }

    /// Chooses λ and solves.
    ///
    /// # Errors
    /// Too few samples, or samples that determine no solution.
    pub fn solve(&self) -> Result<Fit, FitError> {
        let samples = self.samples;
        if self.held_out.is_empty() || self.fitted.samples() < 2 {
            return Err(FitError::TooFew { samples });
        }
        let problem = Centred::of(&self.fitted);
        let candidates = self.candidates(&problem);
        drop(problem);
        let Some((chosen, held_out_error)) = choose(&candidates) else {
            return Err(FitError::Singular { samples });
        };
        let mut all = self.fitted.clone();
        all.add_features(&self.held_out);
        let problem = Centred::of(&all);
        drop(all);
        // With more samples a ridge that did may just fail to factor; the next larger one does not.
        for factor in &GRID[chosen..] {
            if let Some(solution) = problem.solve(*factor) {
                let Solution { weight, bias, ridge } = solution;
                return Ok(Fit { weight, bias, ridge, held_out_error });
            }
        }
        Err(FitError::Singular { samples })
    }

    /// Errors with each ridge of the grid; none where there is no solution, or where a wide problem's search had ended.
    fn candidates(&self, problem: &Centred) -> Vec<Option<(f64, f64)>> {
        if self.hidden() <= WIDE {
            return GRID.par_iter().map(|factor| self.errors(&problem.solve(*factor)?)).collect();
        }
        let mut candidates = vec![None; GRID.len()];
        let mut least = f64::INFINITY;
        for (candidate, factor) in candidates.iter_mut().zip(GRID).rev() {
            *candidate = problem.solve(factor).and_then(|solution| self.errors(&solution));
            match candidate {
                Some((squared, _)) if *squared <= CLEARLY_WORSE * least => least = least.min(*squared),
                // A smaller ridge is harder still to factor.
                _ if least.is_finite() => break,
                _ => {}
            }
        }
        candidates
    }

    /// Mean squared and mean absolute error on the held-out samples; none if they are not finite.
    fn errors(&self, solution: &Solution) -> Option<(f64, f64)> {
        let (mut squared, mut absolute) = (0.0, 0.0);
        for (hidden, target) in self.held_out.samples() {
            let error = f64::from(read_out(&solution.weight, solution.bias, hidden)) - f64::from(target);
            squared += error * error;
            absolute += error.abs();
        }
        let count = self.held_out.len() as f64;
        (squared.is_finite()).then_some((squared / count, absolute / count))
    }
}

/// Place and absolute error of the last candidate whose squared error is nearly the least; candidates are pairs of
/// squared and absolute error in the order of the grid.
fn choose(candidates: &[Option<(f64, f64)>]) -> Option<(usize, f64)> {
    let least = candidates.iter().flatten().map(|(squared, _)| *squared).fold(f64::INFINITY, f64::min);
    for (place, candidate) in candidates.iter().enumerate().rev() {
        if let Some((squared, absolute)) = candidate
            && *squared <= NEARLY_LEAST * least
        {
            return Some((place, *absolute));
        }
    }
    None
}

/// A solution as it will be used.
struct Solution {
    weight: Vec<f32>,
    bias: f32,
    ridge: f64,
}

/// The centred normal equations.
struct Centred {
    hidden: usize,
    /// `C`, `[d, d]`, high and low parts.
    high: Vec<f64>,
    low: Vec<f64>,
    /// `c`, `[d]`.
    right: Vec<DoubleDouble>,
    /// `h̄`, `[d]`.
    mean: Vec<DoubleDouble>,
    /// `ȳ`.
    target_mean: DoubleDouble,
    /// `trace(C)/d`.
    scale: f64,
}

impl Centred {
    fn of(gram: &Gram) -> Self {
        let d = gram.hidden();
        let (constant, target) = (d, d + 1);
        let count = gram.samples() as f64;
        let mean: Vec<DoubleDouble> = (0..d).map(|a| gram.product(a, constant).over(count)).collect();
        let target_mean = gram.product(target, constant).over(count);
        let centred = |a: usize, b: usize, mean_b: DoubleDouble| {
            gram.product(a, b).minus(gram.product(a, constant).times(mean_b))
        };
        let mut high = vec![0.0; d * d];
        let mut low = vec![0.0; d * d];
        high.par_chunks_mut(d).zip(low.par_chunks_mut(d)).enumerate().for_each(|(a, (high, low))| {
            for b in 0..d {
                // The smaller index first, so that the matrix is symmetric to the bit.
                let value = centred(a.min(b), a.max(b), mean[a.max(b)]);
                (high[b], low[b]) = (value.high, value.low);
            }
        });
        let right = (0..d).map(|a| centred(a, target, target_mean)).collect();
        let mut trace = 0.0;
        for a in 0..d {
            trace += high[a * d + a];
        }
        Self { hidden: d, high, low, right, mean, target_mean, scale: trace / d as f64 }
    }

    /// The solution with `λ = factor · trace(C)/d`; none if it cannot be found in this precision.
    fn solve(&self, factor: f64) -> Option<Solution> {
        let d = self.hidden;
        let ridge = factor * self.scale;
        if !(ridge > 0.0 && ridge.is_finite()) {
            return None;
        }
        let cholesky = Cholesky::of(&self.high, d, ridge)?;
        let mut weight = vec![0.0; d];
        let mut last = f64::INFINITY;
        for _ in 0..=REFINEMENTS {
            let correction = cholesky.solve(&self.residual(&weight, ridge));
            for (w, c) in weight.iter_mut().zip(&correction) {
                *w += c;
            }
            last = largest(&correction) / largest(&weight).max(f64::MIN_POSITIVE);
        }
        // A target that never varies has the solution 0.
        if !(last <= CONVERGED || largest(&weight) == 0.0) {
            return None;
        }
        let weight: Vec<f32> = weight.iter().map(|w| *w as f32).collect();
        // The bias makes up for the rounding of the weights.
        let mut bias = self.target_mean;
        for (w, mean) in weight.iter().zip(&self.mean) {
            bias = bias.minus(mean.times(DoubleDouble::of(f64::from(*w), 0.0)));
        }
        let bias = (bias.high + bias.low) as f32;
        (bias.is_finite() && weight.iter().all(|w| w.is_finite())).then_some(Solution { weight, bias, ridge })
    }

    /// `c − (C + λI) w`, added in about 106 bits, rounded at the end.
    fn residual(&self, weight: &[f64], ridge: f64) -> Vec<f64> {
        let d = self.hidden;
        let mut residual = vec![0.0; d];
        residual.par_chunks_mut(ROWS).enumerate().for_each(|(block, residual)| {
            let (mut high, mut low) = ([0.0; ROWS], [0.0; ROWS]);
            let (high, low) = (&mut high[..residual.len()], &mut low[..residual.len()]);
            let first = block * ROWS;
            for (place, (high, low)) in high.iter_mut().zip(low.iter_mut()).enumerate() {
                let (product, error) = two_product(ridge, weight[first + place]);
                let sum = self.right[first + place].minus(DoubleDouble { high: product, low: error });
                (*high, *low) = (sum.high, sum.low);
            }
            // The matrix is symmetric: what the rows have in column b lies side by side in row b.
            for (b, w) in weight.iter().enumerate() {
                let entries = b * d + first..b * d + first + residual.len();
                subtract_products(*w, &self.high[entries.clone()], &self.low[entries], high, low);
            }
            for ((residual, high), low) in residual.iter_mut().zip(high).zip(low) {
                *residual = *high + *low;
            }
        });
        residual
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
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
        fn the_solution_does_not_depend_on_how_the_pass_is_cut(cuts in prop::collection::vec(0usize..100, 3)) {
            let all = features(100, 5);
            let mut whole = Sums::new(5);
            whole.add(&all).unwrap();
            let mut cuts = cuts;
            cuts.extend([0, 100]);
            cuts.sort_unstable();
            let mut parts = Sums::new(5);
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
        let mut whole = Sums::new(3);
        whole.add(&all).unwrap();
        let mut half = Sums::new(3);
        half.add(&part(&all, 0, 21)).unwrap();
        let gram = half.fitted();
        let (high, low, held_out) = (gram.high().to_vec(), gram.low().to_vec(), half.held_out().clone());
        assert_eq!(Sums::restored(21, high[1..].to_vec(), low.clone(), held_out.clone()), None);
        assert_eq!(Sums::restored(1, high.clone(), low.clone(), held_out.clone()), None);
        let mut half = Sums::restored(21, high, low, held_out).unwrap();
        half.add(&part(&all, 21, 64)).unwrap();
        assert_eq!(half, whole);
    }

    #[test]
    fn what_cannot_be_solved_is_said() {
        assert_eq!(Sums::new(2).solve(), Err(FitError::TooFew { samples: 0 }));
        let mut constant = Sums::new(2);
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
        let mut sums = Sums::new(2);
        sums.add(&Features::new(2, values).unwrap()).unwrap();
        let fit = sums.solve().unwrap();
        assert_eq!((fit.weight, fit.bias), (vec![0.0, 0.0], 7.0));
    }

    #[test]
    fn the_largest_ridge_that_is_nearly_best_is_chosen() {
        let candidate = |squared: f64| Some((squared, squared * 2.0));
        assert_eq!(choose(&[candidate(1.0), candidate(1.005), None, candidate(1.5)]), Some((1, 2.01)));
        assert_eq!(choose(&[None, candidate(0.0), candidate(0.0), None]), Some((2, 0.0)));
        assert_eq!(choose(&[None, None]), None);
    }
}
