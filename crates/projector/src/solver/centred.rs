//! The centred normal equations of a least-squares problem, and their solution for one ridge.
//!
//! Sums and residuals carry about 106 bits, factors 53 (Cholesky), and iterative refinement makes up the difference.

use rayon::prelude::*;

use super::cholesky::Cholesky;
use super::double_double::{DoubleDouble, two_product};
use super::gram::Gram;
use super::lanes::subtract_products;

/// Rounds of iterative refinement.
const REFINEMENTS: usize = 4;

/// Rows of a residual that are added up at once.
const ROWS: usize = 64;

/// Largest last correction, relative to the weights, of a solution that counts as found.
const CONVERGED: f64 = 1e-9;

/// A solution as it will be used.
pub(super) struct Solution {
    /// `[d]`
    pub(super) weight: Vec<f32>,
    pub(super) bias: f32,
    /// λ.
    pub(super) ridge: f64,
}

/// The centred normal equations.
pub(super) struct Centred {
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
    pub(super) fn of(gram: &Gram) -> Self {
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

    /// Hidden size `d`.
    pub(super) fn hidden(&self) -> usize {
        self.hidden
    }

    /// The solution with `λ = factor · trace(C)/d`; none if it cannot be found in this precision.
    pub(super) fn solve(&self, factor: f64) -> Option<Solution> {
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
