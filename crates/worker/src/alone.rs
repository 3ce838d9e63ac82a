//! Training in one process, without coordinator or network: the same rows, sum and update as [`crate::steps`].
//! Used by `bench step` and by the ablation of `eval`.

use numalign_config::Recipe;
use numalign_data::{MicroBatchId, SampleStream, samples_of};
use numalign_projector::{Rows, State};

use crate::engine::Engine;
use crate::error::WorkerError;

/// An engine with the state it trains.
pub struct Alone {
    pub engine: Engine,
    pub state: State,
    recipe: Recipe,
    stream: SampleStream,
}

impl Alone {
    /// Trains `engine`'s recipe from fresh projectors on `stream`.
    pub fn new(engine: Engine, stream: SampleStream) -> Result<Self, WorkerError> {
        let recipe = engine.recipe().clone();
        let state = engine.initial_state(recipe.seed)?;
        Ok(Self { engine, state, recipe, stream })
    }

    /// One update with the next global batch; answers with its loss.
    pub fn step(&mut self) -> Result<f32, WorkerError> {
        let mut work = Vec::with_capacity(self.recipe.micro_batches());
        for micro_batch in 0..self.recipe.micro_batches() {
            let indices = samples_of(self.state.step(), MicroBatchId(micro_batch), &self.recipe);
            work.push((micro_batch, indices.map(|index| self.stream.sample(index)).collect()));
        }
        let mut rows = Rows::new(self.recipe.micro_batches(), self.state.layout().row_len());
        for (micro_batch, row) in self.engine.rows(&self.state, &work)? {
            rows.insert(micro_batch, row).map_err(defect)?;
        }
        let sum = rows.sum().map_err(defect)?;
        self.state.update(&sum, &self.recipe)?;
        Ok(sum.last().copied().unwrap_or(f32::NAN))
    }

    /// All steps of the recipe.
    pub fn finish(&mut self) -> Result<(), WorkerError> {
        while self.state.step() < self.recipe.total_steps() {
            self.step()?;
        }
        Ok(())
    }
}

/// Rows that this process made itself always fit.
fn defect(error: numalign_projector::RowError) -> WorkerError {
    WorkerError::Device(format!("its rows do not fit: {error}"))
}
