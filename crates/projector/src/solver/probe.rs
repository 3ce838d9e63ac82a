//! Which places to read: the exact output projector of each place alone, then a greedy choice of places that are read
//! together.
//!
//! The choice works on the first samples in plain `f64`. A candidate's worth is how much of what is left it explains: some
//! steps of conjugate gradients on its columns, judged on held-out samples. The winner joins the chosen ones, and all of
//! them are solved together (normal equations, Cholesky). The result is then solved exactly, on all samples, like any
//! output projector. Every sum has a fixed order, so the same samples give the same choice on every machine.

use std::ops::Range;

use rayon::prelude::*;

use super::features::Features;
use super::lanes::dot;
use super::least_squares::{Cholesky, Fit, HELD_OUT_EVERY, MOST_HELD_OUT, Sums};

/// Most columns that are solved together: about 6 GiB of memory ([`Sums::memory_bytes`]).
pub const MOST_CHOSEN_COLUMNS: usize = 12_288;

/// Samples that the choice looks at, at most: as many as are held out for, eight times over.
const MOST_COMPARED: u64 = HELD_OUT_EVERY * MOST_HELD_OUT as u64;

/// Chunks that are read at once.
const CHUNKS: u64 = 16;

/// Steps of conjugate gradients by which candidates are compared.
const GRADIENT_STEPS: usize = 12;

/// Smallest ridge of a solution together, in units of a column's variance sum, and its growth where more helps.
const LEAST_RIDGE: f64 = 1e-9;
const RIDGE_GROWTH: f64 = 100.0;

/// A place joins only if the squared error falls below this multiple of what it was.
const WORTH_IT: f64 = 0.98;

/// What a probe gathered, chunk by chunk.
pub trait Gathered: Sync {
    /// Places of each sample.
    fn places(&self) -> usize;

    /// Hidden size `d` of a place.
    fn hidden(&self) -> usize;

    /// Chunks gathered.
    fn chunks(&self) -> u64;

    /// Samples of each chunk.
    fn chunk_samples(&self) -> u64;

    /// The samples of `chunks` with the hidden states of `places` side by side; without a place their targets alone.
    ///
    /// # Errors
    /// What was gathered cannot be read back.
    fn read(&self, places: &[usize], chunks: Range<u64>) -> Result<Features, String>;
}

/// What a probe finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Mean absolute error, in encoded units on the held-out samples, of the mean of the others.
    pub constant: f64,
    /// The exact solution of each place alone, or why there is none.
    pub alone: Vec<Result<Fit, String>>,
    /// The places that joined, in the order in which they did.
    pub steps: Vec<Step>,
    /// The chosen places, ascending.
    pub chosen: Vec<usize>,
    /// The exact solution of the chosen places, `[chosen · d]`.
    pub together: Fit,
}

/// A place that joined the chosen ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Its index.
    pub place: usize,
    /// Mean absolute error, in encoded units on the held-out samples of the comparison, of the chosen ones so far.
    pub held_out_error: f64,
}

/// Solves each place, chooses at most `most` of them and solves these together; `progress` hears what is done.
///
/// # Errors
/// Samples that cannot be read back, or of which no place has a solution.
pub fn find(gathered: &impl Gathered, most: usize, progress: impl Fn(&str)) -> Result<Found, String> {
    let constant = constant_error(gathered)?;
    let mut alone = Vec::with_capacity(gathered.places());
    for place in 0..gathered.places() {
        alone.push(solve(gathered, &[place])?);
        progress(&format!("place {} of {} solved", place + 1, gathered.places()));
    }
    let steps = choose(gathered, &alone, most, &progress)?;
    let mut chosen: Vec<usize> = steps.iter().map(|step| step.place).collect();
    chosen.sort_unstable();
    let together = solve(gathered, &chosen)??;
    Ok(Found { constant, alone, steps, chosen, together })
}

/// The exact solution of `places` side by side, on all samples; the inner error says why there is none.
fn solve(gathered: &impl Gathered, places: &[usize]) -> Result<Result<Fit, String>, String> {
    let mut sums = Sums::new(places.len() * gathered.hidden());
    for chunks in blocks(gathered.chunks()) {
        sums.add(&gathered.read(places, chunks)?).map_err(|error| error.to_string())?;
    }
    Ok(sums.solve().map_err(|error| error.to_string()))
}

fn blocks(chunks: u64) -> impl Iterator<Item = Range<u64>> {
    (0..chunks.div_ceil(CHUNKS)).map(move |block| block * CHUNKS..chunks.min((block + 1) * CHUNKS))
}

/// As the solver holds samples out.
fn is_held_out(sample: usize) -> bool {
    let every = HELD_OUT_EVERY as usize;
    sample % every == every - 1 && sample / every < MOST_HELD_OUT
}

fn constant_error(gathered: &impl Gathered) -> Result<f64, String> {
    let targets = targets(gathered, gathered.chunks())?;
    let parts = Parts::of(&targets);
    Ok(mean_absolute(&parts.held_out))
}

fn targets(gathered: &impl Gathered, chunks: u64) -> Result<Vec<f64>, String> {
    let mut targets = Vec::new();
    for block in blocks(chunks) {
        targets.extend(gathered.read(&[], block)?.values().iter().map(|target| f64::from(*target)));
    }
    Ok(targets)
}

/// A column's values on the samples that are fitted and on those that are held out, less the mean of the former.
#[derive(Clone)]
struct Parts {
    fitted: Vec<f64>,
    held_out: Vec<f64>,
}

impl Parts {
    fn of(values: &[f64]) -> Self {
        let (mut fitted, mut held_out) = (Vec::with_capacity(values.len()), Vec::new());
        for (sample, value) in values.iter().enumerate() {
            if is_held_out(sample) { held_out.push(*value) } else { fitted.push(*value) }
        }
        let mean = fitted.iter().sum::<f64>() / fitted.len().max(1) as f64;
        for value in fitted.iter_mut().chain(&mut held_out) {
            *value -= mean;
        }
        Self { fitted, held_out }
    }

    /// Less the products of `columns` with `weights`, column by column.
    fn less(&self, columns: &[Parts], weights: &[f64]) -> Self {
        let mut left = self.clone();
        for (column, weight) in columns.iter().zip(weights) {
            subtract(&mut left.fitted, &column.fitted, *weight);
            subtract(&mut left.held_out, &column.held_out, *weight);
        }
        left
    }
}

/// The columns of one place, each of variance one; a column that never varies is zero.
fn columns(gathered: &impl Gathered, place: usize, chunks: u64) -> Result<Vec<Parts>, String> {
    let mut values = vec![Vec::new(); gathered.hidden()];
    for block in blocks(chunks) {
        for (hidden, _) in gathered.read(&[place], block)?.samples() {
            for (column, value) in values.iter_mut().zip(hidden) {
                column.push(f64::from(*value));
            }
        }
    }
    Ok(values.par_iter().map(|values| scaled(Parts::of(values))).collect())
}

fn scaled(mut column: Parts) -> Parts {
    let variance = dot(&column.fitted, &column.fitted) / column.fitted.len().max(1) as f64;
    let factor = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    for value in column.fitted.iter_mut().chain(&mut column.held_out) {
        *value *= factor;
    }
    column
}

/// Greedy forward selection from the best place on.
fn choose(
    gathered: &impl Gathered,
    alone: &[Result<Fit, String>],
    most: usize,
    progress: &impl Fn(&str),
) -> Result<Vec<Step>, String> {
    let best = best_alone(alone).ok_or_else(|| match alone.first() {
        Some(Err(reason)) => reason.clone(),
        _ => "no place was gathered".to_owned(),
    })?;
    let most = most.min(MOST_CHOSEN_COLUMNS / gathered.hidden().max(1)).max(1);
    let compared = (MOST_COMPARED / gathered.chunk_samples()).clamp(1, gathered.chunks());
    let target = Parts::of(&targets(gathered, compared)?);
    let mut together = Together::new(target);
    let mut steps = Vec::new();
    let mut next = best;
    loop {
        let before = together.squared();
        together.join(columns(gathered, next, compared)?);
        if !steps.is_empty() && together.squared() > WORTH_IT * before {
            return Ok(steps);
        }
        let step = Step { place: next, held_out_error: mean_absolute(&together.left.held_out) };
        steps.push(step);
        progress(&format!("place {} of at most {most} chosen", steps.len()));
        let Some(candidate) = best_candidate(gathered, &steps, most, &together.left, compared)? else {
            return Ok(steps);
        };
        next = candidate;
    }
}

fn best_alone(alone: &[Result<Fit, String>]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (place, fit) in alone.iter().enumerate() {
        if let Ok(fit) = fit
            && best.is_none_or(|(_, least)| fit.held_out_error < least)
        {
            best = Some((place, fit.held_out_error));
        }
    }
    best.map(|(place, _)| place)
}

/// The place that explains most of what is left, the first of equals; none where enough are chosen.
fn best_candidate(
    gathered: &impl Gathered,
    steps: &[Step],
    most: usize,
    left: &Parts,
    compared: u64,
) -> Result<Option<usize>, String> {
    let mut best: Option<(usize, f64)> = None;
    if steps.len() >= most {
        return Ok(None);
    }
    for place in 0..gathered.places() {
        if steps.iter().any(|step| step.place == place) {
            continue;
        }
        let rest = unexplained(&columns(gathered, place, compared)?, left);
        if best.is_none_or(|(_, least)| rest < least) {
            best = Some((place, rest));
        }
    }
    Ok(best.map(|(place, _)| place))
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
        let mut change = vec![0.0; left.len()];
        for (column, factor) in columns.iter().zip(&direction) {
            subtract(&mut change, &column.fitted, -factor);
        }
        let length = size / dot(&change, &change);
        if !length.is_finite() {
            break;
        }
        for (weight, step) in weights.iter_mut().zip(&direction) {
            *weight += length * step;
        }
        subtract(&mut left, &change, length);
        gradient = gradient_of(&left);
        let next = dot(&gradient, &gradient);
        for (step, slope) in direction.iter_mut().zip(&gradient) {
            *step = slope + next / size * *step;
        }
        size = next;
    }
    let mut held_out = target.held_out.clone();
    for (column, weight) in columns.iter().zip(&weights) {
        subtract(&mut held_out, &column.held_out, *weight);
    }
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

impl Together {
    fn new(target: Parts) -> Self {
        let left = target.clone();
        Self { target, columns: Vec::new(), products: Vec::new(), ridge: LEAST_RIDGE, left }
    }

    /// Squared error on held-out samples.
    fn squared(&self) -> f64 {
        dot(&self.left.held_out, &self.left.held_out)
    }

    /// Adds a place's columns and solves again; a larger ridge stays where it helps, since more columns need more.
    fn join(&mut self, columns: Vec<Parts>) {
        let first = self.columns.len();
        self.columns.extend(columns);
        let all = &self.columns;
        let new: Vec<Vec<f64>> = (first..all.len())
            .into_par_iter()
            .map(|a| all[..=a].iter().map(|b| dot(&all[a].fitted, &b.fitted)).collect())
            .collect();
        self.products.extend(new);
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
        if let Some((ridge, left)) = best {
            (self.ridge, self.left) = (ridge, left);
        }
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

/// `values −= factor · column`
fn subtract(values: &mut [f64], column: &[f64], factor: f64) {
    for (value, entry) in values.iter_mut().zip(column) {
        *value -= factor * entry;
    }
}

fn mean_absolute(errors: &[f64]) -> f64 {
    errors.iter().map(|error| error.abs()).sum::<f64>() / errors.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two samples per chunk, in memory.
    struct InMemory {
        places: usize,
        hidden: usize,
        /// `[samples, places · hidden + 1]`
        values: Vec<f32>,
    }

    impl Gathered for InMemory {
        fn places(&self) -> usize {
            self.places
        }

        fn hidden(&self) -> usize {
            self.hidden
        }

        fn chunks(&self) -> u64 {
            (self.values.len() / (self.places * self.hidden + 1)) as u64 / 2
        }

        fn chunk_samples(&self) -> u64 {
            2
        }

        fn read(&self, places: &[usize], chunks: Range<u64>) -> Result<Features, String> {
            let width = self.places * self.hidden + 1;
            let mut values = Vec::new();
            for sample in self.values.chunks_exact(width).take(2 * chunks.end as usize).skip(2 * chunks.start as usize)
            {
                for place in places {
                    values.extend_from_slice(&sample[place * self.hidden..(place + 1) * self.hidden]);
                }
                values.push(sample[width - 1]);
            }
            Features::new(places.len() * self.hidden, values).map_err(|error| error.to_string())
        }
    }

    /// Noise at place 0; places 1 and 3 know one half of the target each, place 2 the first half with noise.
    fn gathered(samples: usize) -> InMemory {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let mut values = Vec::new();
        for _ in 0..samples {
            let (a, b) = (random(), 0.6 * random());
            values.extend([random(), random()]);
            values.extend([a + 0.01 * random(), random()]);
            values.extend([a + 0.5 * random(), random()]);
            values.extend([random(), b + 0.01 * random()]);
            values.push(a + b);
        }
        InMemory { places: 4, hidden: 2, values }
    }

    #[test]
    fn each_place_has_the_solver_s_solution_and_the_choice_finds_what_belongs_together() {
        let gathered = gathered(800);
        let found = find(&gathered, 3, |_| {}).unwrap();
        for place in 0..4 {
            let mut sums = Sums::new(2);
            sums.add(&gathered.read(&[place], 0..400).unwrap()).unwrap();
            assert_eq!(found.alone[place].as_ref().unwrap(), &sums.solve().unwrap(), "place {place}");
        }
        assert_eq!(found.steps[0].place, 1);
        assert_eq!(found.chosen, [1, 3], "{:?}", found.steps);
        assert!(found.together.held_out_error < 0.05 * found.constant, "{found:?}");
        assert_eq!(found.together.weight.len(), 4);
        let errors: Vec<f64> = found.alone.iter().map(|fit| fit.as_ref().unwrap().held_out_error).collect();
        assert!(errors[1] < errors[2] && errors[2] < errors[0] && errors[0] < 1.1 * found.constant, "{errors:?}");
    }

    #[test]
    fn one_place_is_its_own_solution_and_nothing_is_no_answer() {
        let gathered = gathered(100);
        let found = find(&gathered, 1, |_| {}).unwrap();
        assert_eq!(found.chosen, [1]);
        assert_eq!(&found.together, found.alone[1].as_ref().unwrap());
        let silent = InMemory { places: 1, hidden: 2, values: vec![1.0; 3 * 40] };
        assert!(find(&silent, 2, |_| {}).unwrap_err().contains("do not vary"));
    }
}
