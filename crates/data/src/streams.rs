//! Every sample of a run, by the unit that it belongs to. The coordinator hands them out; a run in one process draws them
//! itself. Held-out samples are drawn where they are needed: their stream is a function of the recipe alone.

use numalign_config::{Recipe, Solver};

use crate::error::DataError;
use crate::plan::{MicroBatchId, samples_of, samples_of_chunk};
use crate::random::Domain;
use crate::sample::Sample;
use crate::schedule::Unit;
use crate::stream::SampleStream;

/// The samples that are trained on, and those of the solver's rounds.
#[derive(Debug, Clone)]
pub struct Streams {
    pub train: SampleStream,
    /// The generated stream of [`Domain::Solve`]; a file has no second stream, so its lines serve both.
    pub solve: SampleStream,
}

impl Streams {
    /// `train` with the solver's stream beside it.
    ///
    /// # Errors
    /// As [`SampleStream::generated`].
    pub fn new(train: SampleStream, recipe: &Recipe) -> Result<Self, DataError> {
        let solve = match train.file_len() {
            Some(_) => train.clone(),
            None => SampleStream::generated(recipe, Domain::Solve)?,
        };
        Ok(Self { train, solve })
    }

    /// The samples of a micro-batch of `unit`; none where it is no worker's, or draws its own.
    pub fn samples(&self, recipe: &Recipe, unit: Unit, micro_batch: MicroBatchId) -> Vec<Sample> {
        let (stream, indices) = match unit {
            Unit::Step(step) => (&self.train, samples_of(step, micro_batch, recipe)),
            Unit::Chunk { round, chunk } => {
                let stream = if recipe.solver == Solver::Exact { &self.train } else { &self.solve };
                (stream, samples_of_chunk(round, chunk, micro_batch, recipe))
            }
            Unit::Solve | Unit::Evaluate | Unit::End => return Vec::new(),
        };
        indices.map(|index| stream.sample(index)).collect()
    }
}
