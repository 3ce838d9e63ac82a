//! The no-LM ablation: the same projectors with the frozen stack bypassed, to answer "does the language model do anything
//! here?".
//!
//! The hidden state becomes the mean of the input embeddings over all positions: token embeddings and projected numbers,
//! without position embeddings, blocks or norms. What a read-out of this can learn, the model is not needed for.

use numalign_config::{Pooling, Recipe};
use numalign_data::SampleStream;
use numalign_model::tokenizer::Tokenizer;
use numalign_model::{FrozenLm, LmInput, ModelError, NormGradients, NormParameter, Piece, lm::positions};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::evaluation::{Evaluation, evaluate};
use crate::local::LocalRun;

/// The engine's recipe, its solver included, trained from the start on `training` with the frozen stack bypassed, and
/// evaluated on the first `count` samples of `stream`.
///
/// # Errors
/// As [`LocalRun::finish`].
pub fn train_and_evaluate(
    engine: Engine,
    training: SampleStream,
    stream: &SampleStream,
    count: u64,
) -> Result<(Recipe, Evaluation), EngineError> {
    let recipe = recipe_of(engine.recipe());
    let bypass = MeanOfEmbeddings::new(engine.into_lm());
    let engine = Engine::new(Box::new(bypass), recipe.clone());
    let state = engine.initial_state(recipe.seed)?.prepared(&recipe);
    let (mut engine, state) = LocalRun::new(engine, training, state)?.finish()?;
    let evaluation = evaluate(&mut engine, &state, stream, count, |_| {})?;
    Ok((recipe, evaluation))
}

/// Held-out error, in encoded units, of the exact output projector of `recipe` with the frozen stack of `lm` bypassed,
/// on the samples of `stream`; none where the recipe solves for none.
///
/// # Errors
/// As [`LocalRun::finish`].
pub fn solved_error(lm: Box<dyn FrozenLm>, recipe: &Recipe, stream: SampleStream) -> Result<Option<f64>, EngineError> {
    let engine = Engine::new(Box::new(MeanOfEmbeddings::new(lm)), recipe_of(recipe));
    let state = engine.initial_state(recipe.seed)?.prepared(recipe);
    let (_, state) = LocalRun::new(engine, stream, state)?.finish()?;
    Ok(state.solve().and_then(|solve| solve.solved).map(|solved| solved.held_out_error))
}

/// `recipe` for the bypass, which has neither blocks nor norms nor positions to choose from.
pub fn recipe_of(recipe: &Recipe) -> Recipe {
    Recipe {
        pooling: Pooling::Last,
        layer: None,
        taps: Vec::new(),
        probe: None,
        train_layer_norms: false,
        ..recipe.clone()
    }
}

/// A model's embeddings without the model.
pub struct MeanOfEmbeddings {
    inner: Box<dyn FrozenLm>,
    /// For each external embedding of the last kept forward: its sequence and its share in that sequence's mean.
    kept: Option<Vec<(usize, f32)>>,
}

impl MeanOfEmbeddings {
    /// Bypasses `inner`; its tokenizer and token table stay in use.
    pub fn new(inner: Box<dyn FrozenLm>) -> Self {
        Self { inner, kept: None }
    }
}

impl FrozenLm for MeanOfEmbeddings {
    fn hidden_size(&self) -> usize {
        self.inner.hidden_size()
    }

    fn layers(&self) -> usize {
        0
    }

    fn max_positions(&self) -> usize {
        self.inner.max_positions()
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.inner.tokenizer()
    }

    fn embed_tokens(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        self.inner.embed_tokens(ids)
    }

    fn forward(&mut self, input: &LmInput, keep: bool) -> Result<Vec<f32>, ModelError> {
        let d = self.hidden_size();
        let rows = input.embeddings.len() / d;
        let mut shares = vec![(0, 0.0f32); rows];
        let mut hidden = Vec::with_capacity(input.sequences.len() * d);
        for (index, sequence) in input.sequences.iter().enumerate() {
            let length = positions(sequence);
            if length == 0 {
                return Err(ModelError::Empty);
            }
            let mut mean = vec![0.0f32; d];
            for piece in sequence {
                match piece {
                    Piece::Tokens(ids) => {
                        for row in self.inner.embed_tokens(ids)?.chunks_exact(d) {
                            add(&mut mean, row, 1.0 / length as f32);
                        }
                    }
                    Piece::Embedding { row, repeat } => {
                        let Some(embedding) = input.embeddings.get(row * d..(row + 1) * d) else {
                            return Err(ModelError::NoSuchEmbedding { row: *row, rows });
                        };
                        let share = *repeat as f32 / length as f32;
                        add(&mut mean, embedding, share);
                        shares[*row] = (index, share);
                    }
                }
            }
            hidden.extend(mean);
        }
        self.kept = keep.then_some(shares);
        Ok(hidden)
    }

    fn backward(&mut self, grad_hidden: &[f32], _: Option<NormGradients<'_>>) -> Result<Vec<f32>, ModelError> {
        let d = self.hidden_size();
        let kept = self.kept.take().ok_or(ModelError::Empty)?;
        let mut grads = vec![0.0f32; kept.len() * d];
        for (grad, (sequence, share)) in grads.chunks_exact_mut(d).zip(kept) {
            let Some(of_sequence) = grad_hidden.get(sequence * d..(sequence + 1) * d) else {
                return Err(ModelError::Empty);
            };
            add(grad, of_sequence, share);
        }
        Ok(grads)
    }

    /// There are none.
    fn norm_parameters(&self) -> Result<Vec<NormParameter>, ModelError> {
        Ok(Vec::new())
    }

    fn set_norm_parameters(&mut self, values: &[f32]) -> Result<(), ModelError> {
        if values.is_empty() {
            return Ok(());
        }
        Err(ModelError::NormParameters { reason: format!("{} numbers were given for none", values.len()) })
    }

    /// Every sequence is computed alone.
    fn batches_freely(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> blake3::Hash {
        self.inner.fingerprint()
    }

    fn weight_bytes(&self) -> u64 {
        self.inner.weight_bytes()
    }

    fn parameters(&self) -> u64 {
        self.inner.parameters()
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.inner.logits(hidden)
    }
}

fn add(sum: &mut [f32], row: &[f32], share: f32) {
    for (s, value) in sum.iter_mut().zip(row) {
        *s += share * value;
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::DeviceChoice;

    use super::*;

    #[test]
    fn the_hidden_state_is_the_mean_and_its_gradient_the_share() {
        let lm = numalign_model::load("demo", DeviceChoice::Cpu, false).unwrap().lm;
        let d = lm.hidden_size();
        let tokens = lm.embed_tokens(&[5, 7]).unwrap();
        let mut bypass = MeanOfEmbeddings::new(lm);
        let number: Vec<f32> = (0..d).map(|i| i as f32).collect();
        let sequence = vec![Piece::Tokens(vec![5, 7]), Piece::Embedding { row: 0, repeat: 2 }];
        let input = LmInput { sequences: vec![sequence], embeddings: number.clone(), ..LmInput::default() };
        let hidden = bypass.forward(&input, true).unwrap();
        for i in 0..d {
            let mean = (tokens[i] + tokens[d + i] + 2.0 * number[i]) / 4.0;
            assert!((hidden[i] - mean).abs() < 1e-4, "{} and {mean}", hidden[i]);
        }
        let grads = bypass.backward_to_embeddings(&vec![3.0; d]).unwrap();
        assert_eq!(grads, vec![1.5; d]);
    }
}
