//! A sample as the model takes it: pieces of tokens and embeddings, checked and encoded.

use numalign_config::Stage;
use numalign_data::{Input, Sample, Segment, grammar};
use numalign_model::tokenizer::Around;
use numalign_model::{ModelError, Piece, lm::positions};

use crate::engine::Engine;
use crate::error::EngineError;

/// A sample as the model takes it: pieces, and the encoded value of each external embedding in them.
pub(crate) struct Prepared {
    /// Rows of external embeddings count from 0 within the sample.
    pub pieces: Vec<Piece>,
    /// What the input projector sees of each external embedding, `[w]` each.
    pub inputs: Vec<Vec<f32>>,
    /// Encoded.
    pub target: f32,
    /// Of its error in the loss.
    pub weight: f32,
}

impl Engine {
    /// Token ids of a sample's text pieces and of the special tokens around them, in order; numbers have none.
    ///
    /// # Errors
    /// A sample that the model cannot take.
    pub fn token_ids(&self, sample: &Sample) -> Result<Vec<u32>, EngineError> {
        let mut ids = Vec::new();
        for piece in self.prepare(sample)?.pieces {
            if let Piece::Tokens(tokens) = piece {
                ids.extend(tokens);
            }
        }
        Ok(ids)
    }

    pub(crate) fn prepare(&self, sample: &Sample) -> Result<Prepared, EngineError> {
        let index = sample.index;
        let (mut pieces, mut inputs) = (Vec::new(), Vec::new());
        match (&sample.input, self.recipe.stage) {
            (Input::Number(value), _) => {
                pieces.push(Piece::Embedding { row: 0, repeat: self.recipe.numeric_positions });
                inputs.push(self.encoded(0, *value));
            }
            (Input::Text(text), Stage::Mixed) => {
                let segments = grammar::parse(text)
                    .map_err(|error| EngineError::BadSample { index, reason: error.to_string() })?;
                for segment in segments {
                    match segment {
                        Segment::Text(text) => pieces.push(Piece::Tokens(self.tokenize(index, text)?)),
                        Segment::Number(value) => {
                            pieces.push(Piece::Embedding { row: inputs.len(), repeat: 1 });
                            inputs.push(self.encoded(inputs.len(), value));
                        }
                    }
                }
            }
            (Input::Text(text), _) => pieces.push(Piece::Tokens(self.tokenize(index, text)?)),
        }
        if self.recipe.add_special_tokens && matches!(sample.input, Input::Text(_)) {
            let Around { before, after } =
                self.lm.tokenizer().around().map_err(|source| EngineError::Sample { index, source })?;
            pieces.insert(0, Piece::Tokens(before));
            pieces.push(Piece::Tokens(after));
        }
        if self.reads_numbers() && inputs.is_empty() {
            let reason = "it has no marked number, and pooling numbers reads there".to_owned();
            return Err(EngineError::BadSample { index, reason });
        }
        let length = positions(&pieces);
        if length == 0 {
            return Err(EngineError::BadSample { index, reason: "its text has no tokens".to_owned() });
        }
        let most = self.lm.max_positions();
        if length > most {
            let source = ModelError::TooLong { positions: length, most };
            return Err(EngineError::Sample { index, source });
        }
        let target = self.encoding.encode(sample.target);
        if !target.is_finite() || inputs.iter().flatten().any(|input| !input.is_finite()) {
            let reason = format!("its values overflow 32-bit floats when encoded (target {:?})", sample.target);
            return Err(EngineError::BadSample { index, reason });
        }
        let weight = self.loss.weight(sample.target);
        Ok(Prepared { pieces, inputs, target, weight })
    }

    /// What the input projector sees of the number at `place` in an input.
    fn encoded(&self, place: usize, value: f64) -> Vec<f32> {
        let encoder = self.inputs.get(place).or(self.inputs.last());
        encoder.map(|encoder| encoder.encode(value)).unwrap_or_default()
    }

    fn tokenize(&self, index: u64, text: &str) -> Result<Vec<u32>, EngineError> {
        self.lm.tokenize(text).map_err(|source| EngineError::Sample { index, source })
    }
}
