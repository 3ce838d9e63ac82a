//! A frozen model with a recipe: hidden states, predictions, features and error sums of samples.
//!
//! A row belongs to one micro-batch. Samples of several micro-batches may pass through the model together, where that
//! changes no bit; sums over samples are always made here on the host, in sample order.

use numalign_config::{Pooling, Recipe, Stage, Tap};
use numalign_data::Sample;
use numalign_model::lm::{PASS_POSITIONS, positions};
use numalign_model::{FrozenLm, LmInput, Piece, PooledRead, ReadPositions};
use numalign_projector::{Encoding, ErrorSums, InputEncoder, Layout, LossFunction, MicroBatchGradients, State};

use crate::error::EngineError;
use crate::error_analysis::is_right_choice;
use crate::memory::keep_freed_memory;
use crate::prepare::Prepared;

/// A frozen model with a recipe.
pub struct Engine {
    pub(crate) lm: Box<dyn FrozenLm>,
    pub(crate) recipe: Recipe,
    /// By the number's place in an input; the last one holds for all that follow.
    pub(crate) inputs: Vec<InputEncoder>,
    /// Of targets and predictions.
    pub(crate) encoding: Encoding,
    pub(crate) loss: LossFunction,
    /// The recipe's places, as the model names them.
    reads: Vec<PooledRead>,
}

impl Engine {
    /// Positions of the largest pass that `recipe` needs, for the estimate of memory. Texts longer than that are rare
    /// and pass alone.
    pub fn most_positions(recipe: &Recipe) -> usize {
        match recipe.stage {
            Stage::Nn => {
                let whole_step = recipe.batch_size.saturating_mul(recipe.numeric_positions);
                whole_step.min(PASS_POSITIONS.max(recipe.numeric_positions))
            }
            Stage::Text | Stage::Mixed => PASS_POSITIONS,
        }
    }

    /// Puts `recipe` on top of `lm`.
    pub fn new(lm: Box<dyn FrozenLm>, recipe: Recipe) -> Self {
        keep_freed_memory();
        let places = recipe.input_ranges.len().max(1);
        let inputs = (0..places).map(|place| InputEncoder::at(&recipe, place)).collect();
        let encoding = Encoding::of(&recipe);
        let loss = LossFunction::of(&recipe);
        let reads = recipe.places().into_iter().map(read_at).collect();
        Self { lm, recipe, inputs, encoding, loss, reads }
    }

    /// The model.
    pub fn lm(&self) -> &dyn FrozenLm {
        &*self.lm
    }

    /// The model, taken out.
    pub fn into_lm(self) -> Box<dyn FrozenLm> {
        self.lm
    }

    /// The model, for a forward pass.
    pub fn lm_mut(&mut self) -> &mut dyn FrozenLm {
        &mut *self.lm
    }

    /// The encoding of targets and predictions.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// What the samples mean and what trains.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Fresh state for this model and recipe: new projectors, the model's own layer norms where they train.
    ///
    /// # Errors
    /// The model's layer norms cannot be read.
    pub fn initial_state(&self, seed: u64) -> Result<State, EngineError> {
        let mut state = State::initial(Layout::of(&self.recipe, self.lm.hidden_size(), 0), seed);
        if self.recipe.train_layer_norms {
            let norms = self.lm.norm_parameters()?;
            let values: Vec<f32> = norms.into_iter().flat_map(|norm| norm.values).collect();
            state.set_layer_norms(&values);
        }
        Ok(state)
    }

    /// Hex fingerprint of the model's tokenizer as the recipe uses it; none in stage `nn`, which reads no text.
    ///
    /// # Errors
    /// Its template of special tokens cannot be applied.
    pub fn tokenizer_fingerprint(&self) -> Result<Option<String>, EngineError> {
        if self.recipe.stage == Stage::Nn {
            return Ok(None);
        }
        let fingerprint = self.lm.tokenizer().fingerprint(self.recipe.add_special_tokens)?;
        Ok(Some(fingerprint.to_hex().to_string()))
    }

    /// Whether training needs gradients from inside the model.
    pub fn needs_backward(recipe: &Recipe) -> bool {
        recipe.train_input_projection || recipe.train_layer_norms
    }

    /// Puts the state's layer norms, where it has some, in the place of the model's own.
    pub(crate) fn apply_layer_norms(&mut self, state: &State) -> Result<(), EngineError> {
        if !state.layer_norms().is_empty() {
            self.lm.set_norm_parameters(state.layer_norms())?;
        }
        Ok(())
    }

    /// What each micro-batch contributes to a chunk of the solver's round: `[samples, k·d+1]`, hidden states and encoded
    /// target of each sample ([`numalign_projector::Features`]).
    ///
    /// # Errors
    /// A sample that the model cannot take, or whose hidden state is not finite.
    pub fn features(
        &mut self,
        state: &State,
        micro_batches: &[(usize, Vec<Sample>)],
    ) -> Result<MicroBatchGradients, EngineError> {
        let width = state.layout().read_width();
        let mut all: Vec<&Sample> = Vec::new();
        for (_, samples) in micro_batches {
            all.extend(samples);
        }
        let hidden = self.hidden_of(state, &all)?;
        let mut hidden = hidden.chunks_exact(width);
        let mut rows = Vec::with_capacity(micro_batches.len());
        for (micro_batch, samples) in micro_batches {
            let mut row = Vec::with_capacity(samples.len() * (width + 1));
            for (sample, hidden) in samples.iter().zip(hidden.by_ref()) {
                if let Some(value) = hidden.iter().find(|value| !value.is_finite()) {
                    let reason = format!("its hidden state is not finite ({value})");
                    return Err(EngineError::BadSample { index: sample.index, reason });
                }
                row.extend_from_slice(hidden);
                row.push(self.encoding.encode(sample.target));
            }
            rows.push((*micro_batch, row));
        }
        Ok(rows)
    }

    /// What each micro-batch contributes to an evaluation: sums of its errors, in a row as long as a gradient's
    /// ([`ErrorSums`]).
    ///
    /// # Errors
    /// A sample that the model cannot take.
    pub fn errors(
        &mut self,
        state: &State,
        micro_batches: &[(usize, Vec<Sample>)],
    ) -> Result<MicroBatchGradients, EngineError> {
        let all: Vec<&Sample> = micro_batches.iter().flat_map(|(_, samples)| samples).collect();
        let mut predictions = self.predict_all(state, &all)?.into_iter();
        let mut rows = Vec::with_capacity(micro_batches.len());
        for (micro_batch, samples) in micro_batches {
            let mut sums = ErrorSums::default();
            for (sample, prediction) in samples.iter().zip(predictions.by_ref()) {
                let prediction = self.encoding.decode(prediction);
                let error = (prediction - sample.target) / self.recipe.range();
                sums.add(error, is_right_choice(sample, prediction).filter(|_| self.recipe.answer_is_listed()));
            }
            rows.push((*micro_batch, sums.to_row(state.layout())));
        }
        Ok(rows)
    }

    /// Whether the positions of projected numbers are read.
    pub(crate) fn reads_numbers(&self) -> bool {
        self.reads.iter().any(|read| read.positions == ReadPositions::Embeddings)
    }

    /// How many of the samples make one pass; at least one.
    pub(crate) fn fits<'a>(&self, samples: impl Iterator<Item = &'a Prepared>) -> usize {
        let (mut count, mut total, mut first) = (0, 0, 0);
        for sample in samples {
            let length = positions(&sample.pieces);
            total += length;
            if count == 0 {
                first = length;
            } else if total > self.lm.pass_positions() || (length != first && !self.lm.batches_freely()) {
                break;
            }
            count += 1;
        }
        count
    }

    /// Hidden states at the places that are read, `[samples, k·d]`; with `keep` the model remembers what its backward pass needs.
    pub(crate) fn pass<'a>(
        &mut self,
        state: &State,
        samples: impl Iterator<Item = &'a Prepared>,
        keep: bool,
    ) -> Result<Vec<f32>, EngineError> {
        let mut input = LmInput { reads: self.reads.clone(), ..LmInput::default() };
        let mut rows = 0;
        for sample in samples {
            let shifted = sample.pieces.iter().map(|piece| match piece {
                Piece::Tokens(ids) => Piece::Tokens(ids.clone()),
                Piece::Embedding { row, repeat } => Piece::Embedding { row: rows + row, repeat: *repeat },
            });
            input.sequences.push(shifted.collect());
            for value in &sample.inputs {
                input.embeddings.extend(state.embed(value));
            }
            rows += sample.inputs.len();
        }
        Ok(self.lm.forward(&input, keep)?)
    }

    /// Encoded predictions of samples, in order.
    ///
    /// # Errors
    /// A sample that the model cannot take.
    pub fn predict(&mut self, state: &State, samples: &[Sample]) -> Result<Vec<f32>, EngineError> {
        self.predict_all(state, &samples.iter().collect::<Vec<_>>())
    }

    fn predict_all(&mut self, state: &State, samples: &[&Sample]) -> Result<Vec<f32>, EngineError> {
        let hidden = self.hidden_of(state, samples)?;
        Ok(hidden.chunks_exact(state.layout().read_width()).map(|hidden| state.read_out(hidden)).collect())
    }

    /// A prediction in value units for each sample, in order, or why the model cannot take it.
    ///
    /// # Errors
    /// The model cannot compute at all.
    pub fn predict_each(
        &mut self,
        state: &State,
        samples: &[Sample],
    ) -> Result<Vec<Result<f64, EngineError>>, EngineError> {
        self.apply_layer_norms(state)?;
        let (mut answers, mut prepared) = (Vec::with_capacity(samples.len()), Vec::with_capacity(samples.len()));
        for sample in samples {
            // The place of a good sample's answer is filled below.
            answers.push(self.prepare(sample).map(|sample| {
                prepared.push(sample);
                f64::NAN
            }));
        }
        let hidden = self.hidden_of_prepared(state, &prepared)?;
        let places = answers.iter_mut().filter_map(|answer| answer.as_mut().ok());
        for (place, hidden) in places.zip(hidden.chunks_exact(state.layout().read_width())) {
            *place = self.encoding.decode(state.read_out(hidden));
        }
        Ok(answers)
    }

    /// Hidden states at the places that are read, `[samples, k·d]`.
    ///
    /// # Errors
    /// A sample that the model cannot take.
    pub fn hidden(&mut self, state: &State, samples: &[Sample]) -> Result<Vec<f32>, EngineError> {
        self.hidden_of(state, &samples.iter().collect::<Vec<_>>())
    }

    fn hidden_of(&mut self, state: &State, samples: &[&Sample]) -> Result<Vec<f32>, EngineError> {
        self.apply_layer_norms(state)?;
        let mut prepared = Vec::with_capacity(samples.len());
        for sample in samples {
            prepared.push(self.prepare(sample)?);
        }
        self.hidden_of_prepared(state, &prepared)
    }

    fn hidden_of_prepared(&mut self, state: &State, mut rest: &[Prepared]) -> Result<Vec<f32>, EngineError> {
        let mut hidden = Vec::new();
        while !rest.is_empty() {
            let count = self.fits(rest.iter());
            hidden.extend(self.pass(state, rest[..count].iter(), false)?);
            rest = &rest[count..];
        }
        Ok(hidden)
    }
}

/// A place as the model names it.
fn read_at(tap: Tap) -> PooledRead {
    let positions = match tap.pooling {
        Pooling::Last => ReadPositions::Last,
        Pooling::Mean => ReadPositions::Mean,
        Pooling::Numbers => ReadPositions::Embeddings,
    };
    PooledRead { positions, layer: tap.layer }
}
