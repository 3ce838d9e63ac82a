//! Text to token ids: by a model's own tokenizer, or by GPT-2's published vocabulary.

use std::path::Path;

use crate::error::ModelError;

/// GPT-2's vocabulary size, as published.
const GPT2_VOCABULARY: usize = 50_257;

/// One of the two ways to tokenise.
pub enum Tokenizer {
    /// A `tokenizer.json`.
    File(Box<tokenizers::Tokenizer>),
    /// GPT-2's byte-pair encoding (`r50k_base`), compiled in.
    Gpt2(Box<tiktoken_rs::CoreBPE>),
    /// None; the reason is given when a text comes.
    Missing(String),
}

impl Tokenizer {
    /// A `tokenizer.json` in memory; `path` is named in errors. The truncation and padding that `transformers` stores in
    /// it after one truncated or padded call are left out, as `transformers` leaves them out.
    ///
    /// # Errors
    /// Bytes that are no tokenizer.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self, ModelError> {
        let damaged = |error: tokenizers::Error| ModelError::Damaged {
            path: path.to_owned(),
            reason: format!("not a tokenizer: {error}"),
        };
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(damaged)?;
        tokenizer.with_truncation(None).map_err(damaged)?;
        tokenizer.with_padding(None);
        Ok(Self::File(Box::new(tokenizer)))
    }

    /// GPT-2's own vocabulary, if the model has room for it.
    pub fn gpt2(vocab_size: usize) -> Self {
        if vocab_size < GPT2_VOCABULARY {
            return Self::Missing(format!(
                "there is no tokenizer.json, and GPT-2's own vocabulary of {GPT2_VOCABULARY} does not fit a vocab_size of {vocab_size}"
            ));
        }
        match tiktoken_rs::r50k_base() {
            Ok(bpe) => Self::Gpt2(Box::new(bpe)),
            Err(error) => Self::Missing(format!("GPT-2's built-in vocabulary cannot be read: {error}")),
        }
    }

    /// Token ids of `text`, without special tokens.
    ///
    /// # Errors
    /// The model has no tokenizer, or it refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        match self {
            Tokenizer::File(tokenizer) => tokenizer
                .encode(text, false)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| ModelError::Tokenizer { reason: error.to_string() }),
            Tokenizer::Gpt2(bpe) => Ok(bpe.encode_ordinary(text)),
            Tokenizer::Missing(reason) => Err(ModelError::Tokenizer { reason: reason.clone() }),
        }
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// The model has no tokenizer, or it has no such token.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        match self {
            Tokenizer::File(tokenizer) => {
                tokenizer.decode(ids, false).map_err(|error| ModelError::Tokenizer { reason: error.to_string() })
            }
            Tokenizer::Gpt2(bpe) => {
                // A prefix of a text may end within a character.
                let bytes = bpe.decode_bytes(ids);
                let bytes = bytes.map_err(|error| ModelError::Tokenizer { reason: error.to_string() })?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Tokenizer::Missing(reason) => Err(ModelError::Tokenizer { reason: reason.clone() }),
        }
    }
}
