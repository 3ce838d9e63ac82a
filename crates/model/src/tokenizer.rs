//! Text to token ids: by a model's own tokenizer, or by GPT-2's published vocabulary.

use std::path::Path;

use tokenizers::{Encoding, ModelWrapper, PostProcessor, Token};

use crate::error::ModelError;

mod bound;
mod fingerprint;

/// GPT-2's vocabulary size, as published.
const GPT2_VOCABULARY: usize = 50_257;

/// One of the two ways to tokenise.
pub enum Tokenizer {
    /// A `tokenizer.json`.
    File(FileTokenizer),
    /// GPT-2's byte-pair encoding (`r50k_base`), compiled in.
    Gpt2(Box<tiktoken_rs::CoreBPE>),
    /// None; the reason is given when a text comes.
    Missing(String),
}

/// A `tokenizer.json`, read.
pub struct FileTokenizer {
    /// May have gained tokens that files beside it name.
    pub(crate) tokenizer: Box<tokenizers::Tokenizer>,
    /// What it was read from.
    document: Vec<u8>,
}

/// The special tokens that stand around a text where they are added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Around {
    /// Ids before the text.
    pub before: Vec<u32>,
    /// Ids behind it.
    pub after: Vec<u32>,
}

impl Tokenizer {
    /// A `tokenizer.json` in memory; `path` is named in errors. The truncation and padding that `transformers` stores in
    /// it after one truncated or padded call are left out, as `transformers` leaves them out; so is the dropout of
    /// merges, which is for training a model: ids must not depend on chance.
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
        if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            tokenizer.with_model(bpe);
        }
        Ok(Self::File(FileTokenizer { tokenizer: Box::new(tokenizer), document: json.to_vec() }))
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

    /// Token ids of `text`, without special tokens around it.
    ///
    /// # Errors
    /// The model has no tokenizer, or it refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        match self {
            Tokenizer::File(file) => file
                .tokenizer
                .encode(text, false)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| ModelError::Tokenizer { reason: error.to_string() }),
            Tokenizer::Gpt2(bpe) => Ok(bpe.encode_ordinary(text)),
            Tokenizer::Missing(reason) => Err(ModelError::Tokenizer { reason: reason.clone() }),
        }
    }

    /// The special tokens that the tokenizer's template puts around a text: what `transformers` adds with
    /// `add_special_tokens=True`.
    ///
    /// # Errors
    /// A template that cannot be applied.
    pub fn around(&self) -> Result<Around, ModelError> {
        let Tokenizer::File(file) = self else {
            return Ok(Around::default());
        };
        let Some(template) = file.tokenizer.get_post_processor() else {
            return Ok(Around::default());
        };
        let text = Encoding::from_tokens(vec![Token::new(0, String::new(), (0, 0))], 0);
        let whole = template
            .process(text, None, true)
            .map_err(|error| ModelError::Tokenizer { reason: format!("its template of special tokens: {error}") })?;
        let (ids, mask) = (whole.get_ids(), whole.get_special_tokens_mask());
        let Some(place) = mask.iter().position(|special| *special == 0) else {
            let reason = "its template of special tokens has no place for the text".to_owned();
            return Err(ModelError::Tokenizer { reason });
        };
        Ok(Around { before: ids[..place].to_vec(), after: ids[place + 1..].to_vec() })
    }

    /// Token ids of `text` with its special tokens around it: what `transformers` gives with `add_special_tokens=True`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`] and [`Tokenizer::around`].
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let Around { before, after } = self.around()?;
        Ok([before, self.encode(text)?, after].concat())
    }

    /// The longest text, in bytes, that has at most `tokens` tokens whatever it says; 0 where only tokenising tells.
    pub fn longest_text(&self, tokens: usize) -> usize {
        match self {
            Tokenizer::File(file) => bound::tokens_per_byte(&file.tokenizer).map_or(0, |each| tokens / each),
            Tokenizer::Gpt2(_) => tokens,
            Tokenizer::Missing(_) => 0,
        }
    }

    /// The largest id that a text can have; none without a tokenizer.
    pub fn largest_id(&self) -> Option<u32> {
        match self {
            Tokenizer::File(file) => file.tokenizer.get_vocab(true).into_values().max(),
            Tokenizer::Gpt2(_) => Some(GPT2_VOCABULARY as u32 - 1),
            Tokenizer::Missing(_) => None,
        }
    }

    /// BLAKE3 over what determines ids: vocabulary, merges, normaliser, pre-tokenizer, added tokens, and with
    /// `add_special_tokens` what stands around a text. The form is canonical: a file that was saved again and behaves the
    /// same has the same fingerprint. All that is missing is one kind.
    ///
    /// # Errors
    /// A template that cannot be applied.
    pub fn fingerprint(&self, add_special_tokens: bool) -> Result<blake3::Hash, ModelError> {
        match self {
            Tokenizer::File(file) => {
                let around = if add_special_tokens { Some(self.around()?) } else { None };
                fingerprint::of_file(&file.tokenizer, &file.document, around.as_ref())
                    .map_err(|error| ModelError::Tokenizer { reason: error.to_string() })
            }
            Tokenizer::Gpt2(_) => Ok(fingerprint::of_words("r50k_base")),
            Tokenizer::Missing(_) => Ok(fingerprint::of_words("none")),
        }
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// The model has no tokenizer, or it has no such token.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        match self {
            Tokenizer::File(file) => {
                file.tokenizer.decode(ids, false).map_err(|error| ModelError::Tokenizer { reason: error.to_string() })
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
