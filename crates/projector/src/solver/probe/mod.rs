//! Which places to read: the exact output projector of each place alone, then a greedy choice of places that are read
//! together.
//! The result of the choice (`choice`) is solved exactly, on all samples, like any output projector. Every sum has a fixed
//! order, so the same samples give the same choice on every machine.

use std::ops::Range;

use choice::choose;
use columns::{Parts, mean_absolute};

use super::features::Features;
use super::least_squares::{Fit, HELD_OUT_EVERY, MOST_HELD_OUT, Sums};

mod choice;
mod columns;

/// Most columns that are solved together: about 6 GiB of memory ([`Sums::memory_bytes`]).
pub const MOST_CHOSEN_COLUMNS: usize = 12_288;

/// Samples that the choice looks at, at most: as many as are held out for, eight times over.
const MOST_COMPARED: u64 = HELD_OUT_EVERY * MOST_HELD_OUT as u64;

/// Chunks that are read at once.
const CHUNKS: u64 = 16;

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

/// Places of hidden size `hidden` that are chosen together at most, where `most` are asked for.
fn most_chosen(hidden: usize, most: usize) -> usize {
    most.min(MOST_CHOSEN_COLUMNS / hidden.max(1)).max(1)
}

/// Bytes of memory that [`find`] takes at most on `samples` samples. The exact solutions and the choice come one after
/// another; the choice has its columns, a candidate's and these as they were read, half a matrix of products, the matrix
/// and its factor.
pub fn memory_bytes(hidden: usize, samples: u64, most: usize) -> u64 {
    let columns = hidden * most_chosen(hidden, most);
    let compared = samples.min(MOST_COMPARED);
    let choice = 8 * (compared * (columns + 3 * hidden) as u64 + 5 * (columns as u64).pow(2) / 2);
    choice.max(Sums::memory_bytes(columns, 0)).max(Sums::memory_bytes(hidden, 0))
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
    let mut sums = Sums::new(places.len() * gathered.hidden(), 0);
    for chunks in blocks(gathered.chunks()) {
        sums.add(&gathered.read(places, chunks)?).map_err(|error| error.to_string())?;
    }
    Ok(sums.solve().map_err(|error| error.to_string()))
}

fn blocks(chunks: u64) -> impl Iterator<Item = Range<u64>> {
    (0..chunks.div_ceil(CHUNKS)).map(move |block| block * CHUNKS..chunks.min((block + 1) * CHUNKS))
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
            let mut sums = Sums::new(2, 0);
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
