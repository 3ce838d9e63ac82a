//! A training run in this process: a world of one, without a coordinator and without a network.

use numalign_data::{DataError, MicroBatchId, Sample, SampleStream, Schedule, Streams, Unit, held_out_of};
use numalign_projector::{Features, MicroBatchGradients, State, Sums, canonical_sum};

use crate::engine::Engine;
use crate::error::EngineError;

/// A run whose every micro-batch is computed here.
pub struct LocalRun {
    engine: Engine,
    streams: Streams,
    state: State,
    units: Schedule,
    /// Of the solver's round in progress, where it began here.
    sums: Option<Sums>,
}

impl LocalRun {
    /// Goes on from `state` with the engine's recipe and the samples of `train`.
    ///
    /// # Errors
    /// Settings that no sample can satisfy.
    pub fn new(engine: Engine, train: SampleStream, state: State) -> Result<Self, DataError> {
        let streams = Streams::new(train, engine.recipe())?;
        let units = Schedule::of(engine.recipe());
        Ok(Self { engine, streams, state, units, sums: None })
    }

    /// The state after what was done so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Makes one update, as a distributed run would; answers with the loss over the global batch, in encoded units.
    ///
    /// # Errors
    /// A sample that the model cannot take, or a gradient that is not finite; the state stays as it was.
    pub fn step(&mut self) -> Result<f32, EngineError> {
        let work = self.work(Unit::Step(self.state.step()));
        let sum = self.sum(self.engine.recipe().micro_batches(), |engine, state| engine.gradients(state, &work))?;
        self.state.update(&sum, self.engine.recipe())?;
        Ok(sum.last().copied().unwrap_or(f32::NAN))
    }

    /// Adds an evaluation on the first `samples` held-out samples to the state's history, as a distributed run would.
    ///
    /// # Errors
    /// A sample that the model cannot take, or errors that are not finite; the state stays as it was.
    pub fn evaluate(&mut self, samples: u64) -> Result<(), EngineError> {
        let recipe = self.engine.recipe();
        let held_out = self.streams.held_out.as_ref().ok_or(EngineError::NothingHeldOut)?;
        let mut work = Vec::with_capacity(recipe.micro_batches());
        for micro_batch in 0..recipe.micro_batches() {
            let indices = held_out_of(samples, MicroBatchId(micro_batch), recipe);
            work.push((micro_batch, indices.map(|index| held_out.sample(index)).collect()));
        }
        let sum = self.sum(work.len(), |engine, state| engine.errors(state, &work))?;
        self.state = self.state.evaluated(self.engine.recipe(), &sum, samples)?;
        Ok(())
    }

    /// All units of the recipe: steps, chunks of the solver's rounds and their solutions. Answers with what was trained.
    ///
    /// # Errors
    /// As [`LocalRun::step`]; features that have no solution.
    pub fn finish(mut self) -> Result<(Engine, State), EngineError> {
        loop {
            match self.units.next(self.state.position()) {
                Unit::Step(_) => {
                    self.step()?;
                }
                unit @ Unit::Chunk { .. } => self.gather(unit)?,
                Unit::Solve => self.solve()?,
                // The recipe alone has no evaluations.
                Unit::Evaluate | Unit::End => return Ok((self.engine, self.state)),
            }
        }
    }

    /// Adds the features of one chunk to the round's sums.
    fn gather(&mut self, unit: Unit) -> Result<(), EngineError> {
        let work = self.work(unit);
        let mut values = Vec::new();
        for (_, row) in self.engine.features(&self.state, &work)? {
            values.extend(row);
        }
        let features = Features::new(self.state.layout().read_width(), values)?;
        let next = self.state.gathered(self.engine.recipe(), features.digest())?;
        let folds = self.engine.recipe().ridge_folds;
        let sums = match unit {
            Unit::Chunk { chunk: 0, .. } => self.sums.insert(Sums::new(features.hidden(), folds)),
            _ => self.sums.as_mut().ok_or_else(round_elsewhere)?,
        };
        sums.add(&features)?;
        self.state = next;
        Ok(())
    }

    fn solve(&mut self) -> Result<(), EngineError> {
        let sums = self.sums.take().ok_or_else(round_elsewhere)?;
        self.state = self.state.solved(&sums.solve()?);
        Ok(())
    }

    /// The micro-batches of a unit with their samples.
    fn work(&self, unit: Unit) -> Vec<(usize, Vec<Sample>)> {
        let recipe = self.engine.recipe();
        let mut work = Vec::with_capacity(recipe.micro_batches());
        for micro_batch in 0..recipe.micro_batches() {
            work.push((micro_batch, self.streams.samples(recipe, unit, MicroBatchId(micro_batch), 0)));
        }
        work
    }

    /// The canonical sum of rows that are as long as a gradient's.
    fn sum(
        &mut self,
        micro_batches: usize,
        rows: impl FnOnce(&mut Engine, &State) -> Result<MicroBatchGradients, EngineError>,
    ) -> Result<Vec<f32>, EngineError> {
        let rows = rows(&mut self.engine, &self.state)?;
        Ok(canonical_sum(rows, micro_batches, self.state.layout().row_len())?)
    }
}

fn round_elsewhere() -> EngineError {
    EngineError::Unsolvable("the sums of its round were made elsewhere".to_owned())
}
