//! The greedy choice of places that are read together, on the first samples in plain `f64`.
//!
//! A candidate's worth is how much of what is left it explains: some steps of conjugate gradients on its columns, judged on
//! held-out samples. The winner joins the chosen ones, and all of them are solved together (normal equations, Cholesky).

use rayon::prelude::*;

use super::columns::{DOTS, Parts, columns, mean_absolute, products, subtract, subtract_all};
use super::{Gathered, MOST_COMPARED, Step, most_chosen, targets};
use crate::solver::cholesky::Cholesky;
use crate::solver::lanes::dot;
use crate::solver::least_squares::Fit;

/// Steps of conjugate gradients by which candidates are compared.
const GRADIENT_STEPS: usize = 12;

/// Smallest ridge of a solution together, in units of a column's variance sum, and its growth where more helps.
const LEAST_RIDGE: f64 = 1e-9;
const RIDGE_GROWTH: f64 = 10.0;

/// A place joins only if the squared error falls below this multiple of what it was.
const WORTH_IT: f64 = 0.98;

/// Candidates that are solved together with the chosen places before there is said to be none.
const TRIES: usize = 3;

/// Greedy forward selection from the best place on.
pub(super) fn choose(
    gathered: &impl Gathered,
    alone: &[Result<Fit, String>],
    most: usize,
    progress: &impl Fn(&str),
) -> Result<Vec<Step>, String> {
    let by_error = by_error(alone);
    let Some(best) = by_error.first() else {
        return Err(match alone.first() {
            Some(Err(reason)) => reason.clone(),
            _ => "no place was gathered".to_owned(),
        });
    };
    let most = most_chosen(gathered.hidden(), most);
    let compared = (MOST_COMPARED / gathered.chunk_samples()).clamp(1, gathered.chunks());
    let mut together = Together::new(Parts::of(&targets(gathered, compared)?));
    let mut steps: Vec<Step> = Vec::new();
    let mut candidates = vec![*best];
    loop {
        let limit = if steps.is_empty() { f64::INFINITY } else { WORTH_IT * together.squared() };
        let mut joined: Option<(usize, Solved)> = None;
        for (place, candidate) in candidates.into_iter().enumerate() {
            // The third is looked at only where neither of the first two is worth it.
            if place > 1 && joined.is_some() {
                break;
            }
            let solved = together.with(columns(gathered, candidate, compared)?);
            let least = joined.as_ref().map_or(limit, |(_, best)| best.squared());
            if solved.squared() < least {
                joined = Some((candidate, solved));
            }
        }
        let Some((place, solved)) = joined else {
            return Ok(steps);
        };
        let held_out_error = mean_absolute(&solved.left.held_out);
        together.join(solved);
        steps.push(Step { place, held_out_error });
        progress(&format!("place {} of at most {most} chosen", steps.len()));
        if steps.len() >= most {
            return Ok(steps);
        }
        candidates = best_candidates(gathered, &steps, &by_error, &together.left, compared)?;
    }
}

/// The places that have a solution, the one with the least error first.
fn by_error(alone: &[Result<Fit, String>]) -> Vec<usize> {
    let error = |place: &usize| alone[*place].as_ref().map_or(f64::INFINITY, |fit| fit.held_out_error);
    let mut places: Vec<usize> = (0..alone.len()).filter(|place| alone[*place].is_ok()).collect();
    places.sort_by(|a, b| error(a).total_cmp(&error(b)));
    places
}

/// At most [`TRIES`] places: the one that explains most of what is left, the one that is best alone, and then those that
/// explain most after the first. What a place adds to the others shows only when it is solved with them.
fn best_candidates(
    gathered: &impl Gathered,
    steps: &[Step],
    by_error: &[usize],
    left: &Parts,
    compared: u64,
) -> Result<Vec<usize>, String> {
    let is_left = |place: &usize| steps.iter().all(|step| step.place != *place);
    let mut rest = Vec::new();
    for place in (0..gathered.places()).filter(is_left) {
        rest.push((unexplained(&columns(gathered, place, compared)?, left), place));
    }
    rest.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut ranked = rest.into_iter().map(|(_, place)| place);
    let mut candidates: Vec<usize> = ranked.next().into_iter().collect();
    for place in by_error.iter().copied().filter(is_left).take(1).chain(ranked) {
        if candidates.len() < TRIES && !candidates.contains(&place) {
            candidates.push(place);
        }
    }
    Ok(candidates)
}

/// Squared error on held-out samples after some steps of conjugate gradients (CGLS) on the fitted ones.
fn unexplained(columns: &[Parts], target: &Parts) -> f64 {
    let gradient_of = |left: &[f64]| -> Vec<f64> { columns.par_iter().map(|c| dot(&c.fitted, left)).collect() };
    let mut left = target.fitted.clone();
    let mut weights = vec![0.0; columns.len()];
    let mut gradient = gradient_of(&left);
    let mut direction = gradient.clone();
    let mut size = dot(&gradient, &gradient);
    for _ in 0..GRADIENT_STEPS {
        // Less than nothing: the change with its sign turned.
        let mut change = vec![0.0; left.len()];
        subtract_all(&mut change, columns, &direction, |column| &column.fitted);
        let length = size / dot(&change, &change);
        if !length.is_finite() {
            break;
        }
        for (weight, step) in weights.iter_mut().zip(&direction) {
            *weight += length * step;
        }
        subtract(&mut left, &change, -length);
        gradient = gradient_of(&left);
        let next = dot(&gradient, &gradient);
        for (step, slope) in direction.iter_mut().zip(&gradient) {
            *step = slope + next / size * *step;
        }
        size = next;
    }
    let mut held_out = target.held_out.clone();
    subtract_all(&mut held_out, columns, &weights, |column| &column.held_out);
    dot(&held_out, &held_out)
}

/// Chosen places, solved together.
struct Together {
    target: Parts,
    columns: Vec<Parts>,
    /// Lower triangle of the columns' products, row by row.
    products: Vec<Vec<f64>>,
    ridge: f64,
    /// What the solution leaves of the target.
    left: Parts,
}

/// Chosen places with one more.
struct Solved {
    /// The new place's.
    columns: Vec<Parts>,
    products: Vec<Vec<f64>>,
    ridge: f64,
    left: Parts,
}

impl Solved {
    /// Squared error on held-out samples.
    fn squared(&self) -> f64 {
        dot(&self.left.held_out, &self.left.held_out)
    }
}

impl Together {
    fn new(target: Parts) -> Self {
        let left = target.clone();
        Self { target, columns: Vec::new(), products: Vec::new(), ridge: LEAST_RIDGE, left }
    }

    /// Squared error on held-out samples.
    fn squared(&self) -> f64 {
        dot(&self.left.held_out, &self.left.held_out)
    }

    /// Solves with a place's columns besides; a larger ridge stays where it helps, since more columns need more.
    fn with(&mut self, columns: Vec<Parts>) -> Solved {
        let first = self.columns.len();
        self.columns.extend(columns);
        let all = &self.columns;
        let mut new = vec![Vec::new(); all.len() - first];
        new.par_chunks_mut(DOTS).enumerate().for_each(|(tile, rows)| {
            let first = first + tile * DOTS;
            products(&all[first..first + rows.len()], &all[..first + rows.len()], rows);
            for (offset, row) in rows.iter_mut().enumerate() {
                row.truncate(first + offset + 1);
            }
        });
        self.products.extend(new);
        let (ridge, left) = self.best_solution();
        Solved { columns: self.columns.split_off(first), products: self.products.split_off(first), ridge, left }
    }

    /// Keeps a place that was solved with the others.
    fn join(&mut self, solved: Solved) {
        self.columns.extend(solved.columns);
        self.products.extend(solved.products);
        (self.ridge, self.left) = (solved.ridge, solved.left);
    }

    /// The ridge, and what is left of the target, of the solution with the least squared error.
    fn best_solution(&self) -> (f64, Parts) {
        let mut best: Option<(f64, Parts)> = None;
        let mut ridge = self.ridge;
        loop {
            let left = self.solution(ridge).map(|weights| self.target.less(&self.columns, &weights));
            let squared = |parts: &Parts| dot(&parts.held_out, &parts.held_out);
            match (left, &best) {
                (Some(left), Some((_, least))) if squared(&left) >= squared(least) => break,
                (Some(left), _) => best = Some((ridge, left)),
                (None, Some(_)) => break,
                (None, None) => {}
            }
            ridge *= RIDGE_GROWTH;
            if ridge > 1.0 {
                break;
            }
        }
        best.unwrap_or_else(|| (self.ridge, self.target.clone()))
    }

    /// The weights of all columns with this ridge; none where they cannot be found.
    fn solution(&self, ridge: f64) -> Option<Vec<f64>> {
        let (size, samples) = (self.columns.len(), self.target.fitted.len() as f64);
        let mut matrix = vec![0.0; size * size];
        for (row, products) in matrix.chunks_exact_mut(size).zip(&self.products) {
            row[..products.len()].copy_from_slice(products);
        }
        let right: Vec<f64> = self.columns.par_iter().map(|c| dot(&c.fitted, &self.target.fitted)).collect();
        let weights = Cholesky::of(&matrix, size, ridge * samples)?.solve(&right);
        weights.iter().all(|weight| weight.is_finite()).then_some(weights)
    }
}
