//! Training steps in this process: a world of one, without a coordinator and without a network.
//! Called by `numalign replay`, `numalign bench step` and the ablation of `numalign eval`.

use numalign_collective::Local;
use numalign_data::{MicroBatchId, SampleStream, samples_of};
use numalign_projector::State;

use crate::engine::Engine;
use crate::error::WorkerError;

/// A run whose every micro-batch is computed here.
pub struct LocalRun {
    engine: Engine,
    stream: SampleStream,
    state: State,
}

impl LocalRun {
    /// Goes on from `state` with the engine's recipe and the samples of `stream`.
    pub fn new(engine: Engine, stream: SampleStream, state: State) -> Self {
        Self { engine, stream, state }
    }

    /// The state after the steps made so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Makes one update, as a distributed run would; answers with the loss over the global batch, in encoded units.
    ///
    /// # Errors
    /// A sample that the model cannot take, or a gradient that is not finite; the state stays as it was.
    pub fn step(&mut self) -> Result<f32, WorkerError> {
        let recipe = self.engine.recipe();
        let mut work = Vec::with_capacity(recipe.micro_batches());
        for micro_batch in 0..recipe.micro_batches() {
            let indices = samples_of(self.state.step(), MicroBatchId(micro_batch), recipe);
            work.push((micro_batch, indices.map(|index| self.stream.sample(index)).collect()));
        }
        let collective = Local { micro_batches: work.len(), row_len: self.state.layout().row_len() };
        let sum = collective.sum(self.engine.rows(&self.state, &work)?)?;
        self.state.update(&sum, self.engine.recipe())?;
        Ok(sum.last().copied().unwrap_or(f32::NAN))
    }

    /// All steps of the recipe; answers with what was trained.
    ///
    /// # Errors
    /// As [`LocalRun::step`].
    pub fn finish(mut self) -> Result<(Engine, State), WorkerError> {
        while self.state.step() < self.engine.recipe().total_steps() {
            self.step()?;
        }
        Ok((self.engine, self.state))
    }
}
