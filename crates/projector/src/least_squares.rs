//! The output projector as a least-squares solution: what is added up over a round, and how it is solved.
//! Called by the coordinator's solver thread.
//!
//! Minimises `Σ (w·h + b − y)² + λ‖w‖²` over the round's samples, the bias unpenalised: with centred sums
//! `C = Σ (h−h̄)(h−h̄)ᵀ` and `c = Σ (h−h̄)(y−ȳ)`, `(C + λI) w = c` and `b = ȳ − w·h̄`. Every eighth sample is held out
//! while λ is chosen from a fixed grid, by the squared error of the very read-out that will be used, `f32` rounding
//! included; the solution then takes all samples. Sums and residuals carry about 106 bits, factors 53 (Cholesky), and
//! iterative refinement makes up the difference.

use rayon::prelude::*;

use crate::double_double::{DoubleDouble, two_product};
use crate::features::Features;
use crate::gram::Gram;
use crate::state::read_out;

/// One sample of these is held out: every 8th.
const HELD_OUT_EVERY: u64 = 8;

/// Samples held out at most, which bounds the memory; later ones are fitted.
const MOST_HELD_OUT: usize = 1024;

/// λ in units of the mean variance sum `trace(C)/d`: a grid of powers of ten, ascending.
const GRID: [f64; 14] = [1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// Rounds of iterative refinement.
const REFINEMENTS: usize = 4;

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
    pub bias: f32,
    /// λ.
    pub ridge: f64,
    /// Mean absolute error on the held-out samples while they were held out, in encoded units.
    pub held_out_error: f64,
}

/// Why a round has no solution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    pub fn solve(&self) -> Result<Fit, FitError> {
        let samples = self.samples;
        if self.held_out.is_empty() || self.fitted.samples() < 2 {
            return Err(FitError::TooFew { samples });
        }
        let problem = Centred::of(&self.fitted);
        let candidates: Vec<Option<(f64, f64)>> =
            GRID.par_iter().map(|factor| self.errors(&problem.solve(*factor)?)).collect();
        let mut best: Option<(usize, f64, f64)> = None;
        for (place, candidate) in candidates.into_iter().enumerate() {
            // Of equals the larger ridge.
            if let Some((squared, absolute)) = candidate
                && best.is_none_or(|(_, least, _)| squared <= least)
            {
                best = Some((place, squared, absolute));
            }
        }
        let Some((chosen, _, held_out_error)) = best else {
            return Err(FitError::Singular { samples });
        };
        let mut all = self.fitted.clone();
        all.add_features(&self.held_out);
        let problem = Centred::of(&all);
        // With more samples a ridge that did may just fail to factor; the next larger one does not.
        for factor in &GRID[chosen..] {
            if let Some(solution) = problem.solve(*factor) {
                let Solution { weight, bias, ridge } = solution;
                return Ok(Fit { weight, bias, ridge, held_out_error });
            }
        }
        Err(FitError::Singular { samples })
    }

    /// Mean squared and mean absolute error on the held-out samples; none where they are not finite.
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

    /// The solution with `λ = factor · trace(C)/d`; none where it cannot be found in this precision.
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
        let mut residual = Vec::with_capacity(d);
        for a in 0..d {
            let mut sum = self.right[a];
            let (product, error) = two_product(ridge, weight[a]);
            sum = sum.minus(DoubleDouble { high: product, low: error });
            let row = a * d..(a + 1) * d;
            for ((high, low), w) in self.high[row.clone()].iter().zip(&self.low[row]).zip(weight) {
                let (product, error) = two_product(*high, *w);
                sum = sum.minus(DoubleDouble { high: product, low: error + low * w });
            }
            residual.push(sum.high + sum.low);
        }
        residual
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

/// The lower factor `L` of `C + λI = LLᵀ`, row by row.
struct Cholesky {
    size: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// None where the matrix is not positive definite in this precision.
    fn of(matrix: &[f64], size: usize, ridge: f64) -> Option<Self> {
        let mut lower = vec![0.0; size * size];
        for i in 0..size {
            let (done, rest) = lower.split_at_mut(i * size);
            let row = &mut rest[..size];
            for j in 0..i {
                let other = &done[j * size..j * size + j + 1];
                row[j] = (matrix[i * size + j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let square = matrix[i * size + i] + ridge - dot(&row[..i], &row[..i]);
            if !(square > 0.0 && square.is_finite()) {
                return None;
            }
            row[i] = square.sqrt();
        }
        Some(Self { size, lower })
    }

    /// `x` of `LLᵀ x = right`.
    fn solve(&self, right: &[f64]) -> Vec<f64> {
        let n = self.size;
        let mut x = right.to_vec();
        for i in 0..n {
            let row = &self.lower[i * n..i * n + i + 1];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        for i in (0..n).rev() {
            let row = &self.lower[i * n..i * n + i + 1];
            x[i] /= row[i];
            let value = x[i];
            for (x, l) in x[..i].iter_mut().zip(row) {
                *x -= l * value;
            }
        }
        x
    }
}

/// A dot product with eight running sums, added up in order: fast, and the same bits everywhere.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + tail
}
