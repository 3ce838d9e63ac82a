//! From samples to gradient rows and predictions: the one place that knows what each stage does.
//! Called by the device thread, and by `eval`, `predict`, `hidden` and `bench`.
//!
//! A row belongs to one micro-batch. Samples of several micro-batches may pass through the model together, where that
//! changes no bit; sums over samples are always made here on the host, in sample order.

use numalign_collective::OwnRows;
use numalign_config::{Pooling, Recipe, Stage};
use numalign_data::{Input, Sample, Segment, grammar};
use numalign_model::{FrozenLm, LmInput, NormGradients, Piece, Read, ReadAt, lm::positions};
use numalign_projector::{Encoding, ErrorSums, InputEncoder, Layout, LossFunction, State};

use crate::breakdown::is_right_number;
use crate::error::WorkerError;
use crate::memory::keep_freed_memory;

/// Positions that pass through the model at once: enough for full speed, and a bound on the memory of activations.
const MOST_POSITIONS: usize = 2048;

/// A sample as the model takes it: pieces, and the encoded value of each external embedding in them.
struct Prepared {
    index: u64,
    /// Rows of external embeddings count from 0 within the sample.
    pieces: Vec<Piece>,
    /// What the input projector sees of each external embedding, `[w]` each.
    inputs: Vec<Vec<f32>>,
    /// Encoded.
    target: f32,
    /// Of its error in the loss.
    weight: f32,
}

/// A frozen model with a recipe.
pub struct Engine {
    lm: Box<dyn FrozenLm>,
    recipe: Recipe,
    inputs: InputEncoder,
    /// Of targets and predictions.
    encoding: Encoding,
    loss: LossFunction,
}

/// What the model read for a batch of samples.
struct Pass {
    /// `[samples, d]`
    hidden: Vec<f32>,
}

/// Gradient rows in the making.
struct Gradients {
    rows: OwnRows,
    /// Gradients of the layer norms, one list per row; empty lists where they do not train.
    layer_norms: Vec<Vec<f32>>,
}

impl Engine {
    /// Positions of the largest pass that `recipe` leads to, for the estimate of memory. Texts longer than that are rare
    /// and pass alone.
    pub fn most_positions(recipe: &Recipe) -> usize {
        match recipe.stage {
            Stage::Nn => {
                let whole_step = recipe.batch_size.saturating_mul(recipe.numeric_positions);
                whole_step.min(MOST_POSITIONS.max(recipe.numeric_positions))
            }
            Stage::Text | Stage::Mixed => MOST_POSITIONS,
        }
    }

    pub fn new(lm: Box<dyn FrozenLm>, recipe: Recipe) -> Self {
        keep_freed_memory();
        let (inputs, encoding) = (InputEncoder::of(&recipe), Encoding::of(&recipe));
        let loss = LossFunction::of(&recipe);
        Self { lm, recipe, inputs, encoding, loss }
    }

    pub fn lm(&self) -> &dyn FrozenLm {
        &*self.lm
    }

    /// The model alone.
    pub fn into_lm(self) -> Box<dyn FrozenLm> {
        self.lm
    }

    pub fn lm_mut(&mut self) -> &mut dyn FrozenLm {
        &mut *self.lm
    }

    /// The encoding of targets and predictions.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Fresh state for this model and recipe: new projectors, the model's own layer norms where they train.
    pub fn initial_state(&self, seed: u64) -> Result<State, WorkerError> {
        let mut state = State::initial(Layout::of(&self.recipe, self.lm.hidden_size(), 0), seed);
        if self.recipe.train_layer_norms {
            let norms = self.lm.norm_parameters()?;
            let values: Vec<f32> = norms.into_iter().flat_map(|norm| norm.values).collect();
            state.set_layer_norms(&values);
        }
        Ok(state)
    }

    /// Whether training needs gradients from inside the model.
    pub fn needs_backward(recipe: &Recipe) -> bool {
        recipe.train_input_projection || recipe.train_layer_norms
    }

    /// Puts the state's layer norms, where it has some, in the place of the model's own.
    fn apply_layer_norms(&mut self, state: &State) -> Result<(), WorkerError> {
        if !state.layer_norms().is_empty() {
            self.lm.set_norm_parameters(state.layer_norms())?;
        }
        Ok(())
    }

    fn read(&self) -> Read {
        let at = match self.recipe.pooling {
            Pooling::Last => ReadAt::Last,
            Pooling::Mean => ReadAt::Mean,
            Pooling::Numbers => ReadAt::Embeddings,
        };
        Read { at, layer: self.recipe.layer }
    }

    /// Gradient rows of micro-batches, `[row_len]` each: gradient of the mean loss over the global batch
    /// with respect to every trainable number, then the micro-batch's share of the loss.
    pub fn rows(&mut self, state: &State, micro_batches: &[(usize, Vec<Sample>)]) -> Result<OwnRows, WorkerError> {
        self.apply_layer_norms(state)?;
        let layout = state.layout();
        let mut gradients = Gradients { rows: Vec::with_capacity(micro_batches.len()), layer_norms: Vec::new() };
        // Each entry: place in `gradients`, sample.
        let mut waiting: Vec<(usize, Prepared)> = Vec::new();
        for (micro_batch, samples) in micro_batches {
            let place = gradients.rows.len();
            gradients.rows.push((*micro_batch, vec![0.0f32; layout.row_len()]));
            gradients.layer_norms.push(vec![0.0f32; layout.layer_norms().len()]);
            for sample in samples {
                waiting.push((place, self.prepare(sample)?));
            }
            if !self.lm.batches_freely() {
                self.run_all(state, &mut waiting, &mut gradients)?;
            }
        }
        self.run_all(state, &mut waiting, &mut gradients)?;
        for ((_, row), norms) in gradients.rows.iter_mut().zip(gradients.layer_norms) {
            row[layout.layer_norms()].copy_from_slice(&norms);
        }
        Ok(gradients.rows)
    }

    /// What each micro-batch contributes to a chunk of the solver's round: `[samples, d+1]`, hidden state and encoded
    /// target of each sample ([`numalign_projector::Features`]).
    pub fn features(&mut self, state: &State, micro_batches: &[(usize, Vec<Sample>)]) -> Result<OwnRows, WorkerError> {
        let d = state.layout().hidden();
        let mut all: Vec<&Sample> = Vec::new();
        let mut hidden = Vec::new();
        for (_, samples) in micro_batches {
            all.extend(samples);
            if !self.lm.batches_freely() {
                hidden.extend(self.hidden_of(state, &std::mem::take(&mut all))?);
            }
        }
        hidden.extend(self.hidden_of(state, &all)?);
        let mut hidden = hidden.chunks_exact(d);
        let mut rows = Vec::with_capacity(micro_batches.len());
        for (micro_batch, samples) in micro_batches {
            let mut row = Vec::with_capacity(samples.len() * (d + 1));
            for (sample, hidden) in samples.iter().zip(hidden.by_ref()) {
                if let Some(value) = hidden.iter().find(|value| !value.is_finite()) {
                    let reason = format!("its hidden state is not finite ({value})");
                    return Err(WorkerError::BadSample { index: sample.index, reason });
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
    pub fn errors(&mut self, state: &State, micro_batches: &[(usize, Vec<Sample>)]) -> Result<OwnRows, WorkerError> {
        let mut predictions = Vec::new();
        if self.lm.batches_freely() {
            let all: Vec<&Sample> = micro_batches.iter().flat_map(|(_, samples)| samples).collect();
            predictions.extend(self.predict_all(state, &all)?);
        } else {
            for (_, samples) in micro_batches {
                predictions.extend(self.predict(state, samples)?);
            }
        }
        let mut predictions = predictions.into_iter();
        let mut rows = Vec::with_capacity(micro_batches.len());
        for (micro_batch, samples) in micro_batches {
            let mut sums = ErrorSums::default();
            for (sample, prediction) in samples.iter().zip(predictions.by_ref()) {
                let prediction = self.encoding.decode(prediction);
                let error = (prediction - sample.target) / self.recipe.range();
                sums.add(error, is_right_number(sample, prediction).filter(|_| self.recipe.answer_is_listed()));
            }
            rows.push((*micro_batch, sums.to_row(state.layout())));
        }
        Ok(rows)
    }

    /// Passes all of `waiting` through the model, in order, in passes of bounded size.
    fn run_all(
        &mut self,
        state: &State,
        waiting: &mut Vec<(usize, Prepared)>,
        gradients: &mut Gradients,
    ) -> Result<(), WorkerError> {
        let mut rest = std::mem::take(waiting);
        while !rest.is_empty() {
            let count = self.fits(rest.iter().map(|(_, prepared)| prepared));
            let tail = rest.split_off(count);
            self.accumulate(state, &rest, gradients)?;
            rest = tail;
        }
        Ok(())
    }

    /// How many of the samples make one pass; at least one.
    fn fits<'a>(&self, samples: impl Iterator<Item = &'a Prepared>) -> usize {
        let (mut count, mut total, mut first) = (0, 0, 0);
        for sample in samples {
            let length = positions(&sample.pieces);
            total += length;
            if count == 0 {
                first = length;
            } else if total > MOST_POSITIONS || (length != first && !self.lm.batches_freely()) {
                break;
            }
            count += 1;
        }
        count
    }

    fn accumulate(
        &mut self,
        state: &State,
        samples: &[(usize, Prepared)],
        gradients: &mut Gradients,
    ) -> Result<(), WorkerError> {
        let layout = state.layout();
        let d = layout.hidden();
        let keep = Self::needs_backward(&self.recipe);
        let pass = self.pass(state, samples.iter().map(|(_, prepared)| prepared), keep)?;
        let inverse_batch = 1.0 / self.recipe.batch_size as f32;
        let mut slopes = Vec::with_capacity(samples.len());
        for ((place, prepared), hidden) in samples.iter().zip(pass.hidden.chunks_exact(d)) {
            let error = state.read_out(hidden) - prepared.target;
            let (loss, slope) = self.loss.value_and_slope(error, prepared.weight, inverse_batch);
            slopes.push(slope);
            let row = &mut gradients.rows[*place].1;
            row[layout.len()] += loss;
            if self.recipe.train_output_projection {
                for (g, h) in row[layout.output_weight()].iter_mut().zip(hidden) {
                    *g += slope * h;
                }
                row[layout.output_bias()] += slope;
            }
        }
        if !keep {
            return Ok(());
        }
        let weight = &state.parameters()[layout.output_weight()];
        let mut cotangent = Vec::with_capacity(samples.len() * d);
        for slope in &slopes {
            cotangent.extend(weight.iter().map(|w| slope * w));
        }
        let places: Vec<usize> = samples.iter().map(|(place, _)| *place).collect();
        let norms = NormGradients { group_of_sequence: &places, sums: &mut gradients.layer_norms };
        let grads = self.lm.backward(&cotangent, self.recipe.train_layer_norms.then_some(norms))?;
        if !self.recipe.train_input_projection {
            return Ok(());
        }
        let mut grads = grads.chunks_exact(d);
        for (place, prepared) in samples {
            let row = &mut gradients.rows[*place].1;
            for input in &prepared.inputs {
                let Some(grad) = grads.next() else {
                    return Err(WorkerError::Protocol("the model returned too few gradients".to_owned()));
                };
                let weights = row[layout.input_weight()].chunks_exact_mut(layout.input_width());
                for (of_unit, e) in weights.zip(grad) {
                    for (g, x) in of_unit.iter_mut().zip(input) {
                        *g += x * e;
                    }
                }
                for (g, e) in row[layout.input_bias()].iter_mut().zip(grad) {
                    *g += e;
                }
            }
        }
        Ok(())
    }

    fn pass<'a>(
        &mut self,
        state: &State,
        samples: impl Iterator<Item = &'a Prepared>,
        keep: bool,
    ) -> Result<Pass, WorkerError> {
        let mut input = LmInput { read: self.read(), ..LmInput::default() };
        let mut rows = 0;
        let mut indices = Vec::new();
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
            indices.push(sample.index);
        }
        let hidden = self.lm.forward(&input, keep)?;
        Ok(Pass { hidden })
    }

    /// Encoded predictions of samples, in order.
    pub fn predict(&mut self, state: &State, samples: &[Sample]) -> Result<Vec<f32>, WorkerError> {
        self.predict_all(state, &samples.iter().collect::<Vec<_>>())
    }

    fn predict_all(&mut self, state: &State, samples: &[&Sample]) -> Result<Vec<f32>, WorkerError> {
        let hidden = self.hidden_of(state, samples)?;
        Ok(hidden.chunks_exact(state.layout().hidden()).map(|hidden| state.read_out(hidden)).collect())
    }

    /// Hidden states at the read position, `[samples, d]`.
    pub fn hidden(&mut self, state: &State, samples: &[Sample]) -> Result<Vec<f32>, WorkerError> {
        self.hidden_of(state, &samples.iter().collect::<Vec<_>>())
    }

    fn hidden_of(&mut self, state: &State, samples: &[&Sample]) -> Result<Vec<f32>, WorkerError> {
        self.apply_layer_norms(state)?;
        let mut prepared = Vec::with_capacity(samples.len());
        for sample in samples {
            prepared.push(self.prepare(sample)?);
        }
        let mut hidden = Vec::new();
        let mut rest = prepared.as_slice();
        while !rest.is_empty() {
            let count = self.fits(rest.iter());
            hidden.extend(self.pass(state, rest[..count].iter(), false)?.hidden);
            rest = &rest[count..];
        }
        Ok(hidden)
    }

    /// Token ids of a sample's text pieces, in order; numbers have none.
    pub fn token_ids(&self, sample: &Sample) -> Result<Vec<u32>, WorkerError> {
        let mut ids = Vec::new();
        for piece in self.prepare(sample)?.pieces {
            if let Piece::Tokens(tokens) = piece {
                ids.extend(tokens);
            }
        }
        Ok(ids)
    }

    fn prepare(&self, sample: &Sample) -> Result<Prepared, WorkerError> {
        let index = sample.index;
        let (mut pieces, mut inputs) = (Vec::new(), Vec::new());
        match (&sample.input, self.recipe.stage) {
            (Input::Number(value), _) => {
                pieces.push(Piece::Embedding { row: 0, repeat: self.recipe.numeric_positions });
                inputs.push(self.inputs.encode(*value));
            }
            (Input::Text(text), Stage::Mixed) => {
                let segments = grammar::parse(text)
                    .map_err(|error| WorkerError::BadSample { index, reason: error.to_string() })?;
                for segment in segments {
                    match segment {
                        Segment::Text(text) => pieces.push(Piece::Tokens(self.tokenize(index, text)?)),
                        Segment::Number(value) => {
                            pieces.push(Piece::Embedding { row: inputs.len(), repeat: 1 });
                            inputs.push(self.inputs.encode(value));
                        }
                    }
                }
            }
            (Input::Text(text), _) => pieces.push(Piece::Tokens(self.tokenize(index, text)?)),
        }
        if self.recipe.pooling == Pooling::Numbers && inputs.is_empty() {
            let reason = "it has no marked number, and pooling numbers reads there".to_owned();
            return Err(WorkerError::BadSample { index, reason });
        }
        let length = positions(&pieces);
        if length == 0 {
            return Err(WorkerError::BadSample { index, reason: "its text has no tokens".to_owned() });
        }
        let most = self.lm.max_positions();
        if length > most {
            let source = numalign_model::ModelError::TooLong { positions: length, most };
            return Err(WorkerError::Sample { index, source });
        }
        let target = self.encoding.encode(sample.target);
        if !target.is_finite() || inputs.iter().flatten().any(|input| !input.is_finite()) {
            let reason = format!("its values overflow 32-bit floats when encoded (target {})", sample.target);
            return Err(WorkerError::BadSample { index, reason });
        }
        let weight = self.loss.weight(sample.target);
        Ok(Prepared { index, pieces, inputs, target, weight })
    }

    fn tokenize(&self, index: u64, text: &str) -> Result<Vec<u32>, WorkerError> {
        self.lm.tokenize(text).map_err(|source| WorkerError::Sample { index, source })
    }
}
