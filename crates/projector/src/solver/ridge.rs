//! The choice of the ridge λ from a fixed grid, by the squared error on samples that were left out of the fit.
//!
//! Errors are those of the very read-out that will be used, `f32` rounding included. The largest λ whose error is nearly the
//! least is taken, since smaller weights lose less to rounding and to hidden states that move on.

use rayon::prelude::*;

use super::centred::{Centred, Solution};
use super::features::Features;
use crate::linear::read_out;

/// Columns above which the ridges are tried one after another, from the largest down, for the sake of memory and time.
const WIDE: usize = 2048;

/// With many columns the search ends where the squared error is this multiple of the least one so far.
const CLEARLY_WORSE: f64 = 1.5;

/// The ridges of one way to choose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// λ in units of the mean variance sum `trace(C)/d`, ascending.
    ridges: &'static [f64],
    /// A larger λ is preferred while its squared error is at most this multiple of the least one.
    nearly_least: f64,
}

/// Where an eighth of the samples is left out: powers of ten.
pub(super) const OF_AN_EIGHTH: Grid = Grid {
    ridges: &[1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1],
    nearly_least: 1.01,
};

/// Where each sample is left out in turn: finer and wider where noise asks for a large λ, since few samples have much noise
/// in proportion, and all of them judge.
pub(super) const OF_FOLDS: Grid = Grid {
    ridges: &[
        1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2,
        1e-1, 3e-1, 1e0, 3e0, 1e1, 3e1, 1e2, 3e2, 1e3,
    ],
    nearly_least: 1.001,
};

/// Mean squared and mean absolute error of one ridge; none where there is no solution, or where a wide problem's search had
/// ended.
pub(super) type Errors = Option<(f64, f64)>;

impl Grid {
    /// Ridges in it.
    pub(super) fn len(self) -> usize {
        self.ridges.len()
    }

    /// Factors of matrices with `columns` columns that are in memory at once.
    pub(super) fn factors_at_once(self, columns: usize) -> usize {
        if columns > WIDE { 1 } else { self.len() }
    }

    /// Errors of the problem's solutions on `judges`, ridge by ridge.
    pub(super) fn judge(self, problem: &Centred, judges: &Features) -> Vec<Errors> {
        if problem.hidden() <= WIDE {
            return self.ridges.par_iter().map(|factor| errors(&problem.solve(*factor)?, judges)).collect();
        }
        let mut all = vec![None; self.len()];
        let mut least = f64::INFINITY;
        for (found, factor) in all.iter_mut().zip(self.ridges).rev() {
            *found = problem.solve(*factor).and_then(|solution| errors(&solution, judges));
            match found {
                Some((squared, _)) if *squared <= CLEARLY_WORSE * least => least = least.min(*squared),
                // A smaller ridge is harder still to factor.
                _ if least.is_finite() => break,
                _ => {}
            }
        }
        all
    }

    /// Place and absolute error of the largest ridge whose squared error is nearly the least.
    pub(super) fn choose(self, errors: &[Errors]) -> Option<(usize, f64)> {
        let least = errors.iter().flatten().map(|(squared, _)| *squared).fold(f64::INFINITY, f64::min);
        for (place, errors) in errors.iter().enumerate().rev() {
            if let Some((squared, absolute)) = errors
                && *squared <= self.nearly_least * least
            {
                return Some((place, *absolute));
            }
        }
        None
    }

    /// The solution with the ridge at place `chosen`. With more samples a ridge that did may just fail to factor; the next
    /// larger one does not.
    pub(super) fn solve_from(self, chosen: usize, problem: &Centred) -> Option<Solution> {
        self.ridges[chosen..].iter().find_map(|factor| problem.solve(*factor))
    }
}

/// None if they are not finite.
fn errors(solution: &Solution, judges: &Features) -> Errors {
    let (mut squared, mut absolute) = (0.0, 0.0);
    for (hidden, target) in judges.samples() {
        let error = f64::from(read_out(&solution.weight, solution.bias, hidden)) - f64::from(target);
        squared += error * error;
        absolute += error.abs();
    }
    let count = judges.len() as f64;
    (squared.is_finite()).then_some((squared / count, absolute / count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_ridge_that_is_nearly_best_is_chosen() {
        let errors = |squared: f64| Some((squared, squared * 2.0));
        assert_eq!(OF_AN_EIGHTH.choose(&[errors(1.0), errors(1.005), None, errors(1.5)]), Some((1, 2.01)));
        assert_eq!(OF_AN_EIGHTH.choose(&[None, errors(0.0), errors(0.0), None]), Some((2, 0.0)));
        assert_eq!(OF_AN_EIGHTH.choose(&[None, None]), None);
    }
}
