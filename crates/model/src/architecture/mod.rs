//! The model families that numalign computes, as their `config.json` describes them. Called by the loader.

use std::path::Path;

use serde_json::Value;

use crate::error::ModelError;

mod fields;
mod gpt2;
mod llama;
mod rope;

use fields::Fields;
pub use gpt2::Gpt2Config;
pub use llama::{Family, LlamaConfig};
pub use rope::{Rope, RopeScaling};

/// Names and shapes of tensors, in the order in which they are loaded.
pub type TensorList = Vec<(String, Vec<usize>)>;

/// Shape and arithmetic of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Architecture {
    Gpt2(Gpt2Config),
    Llama(LlamaConfig),
}

/// Every `model_type` that is known, as listed to the user.
const KNOWN: &str = "gpt2, llama, mistral, qwen2, qwen3";

impl Architecture {
    /// Parses `config.json`; `path` is named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelError> {
        let damaged = |reason: String| ModelError::Damaged { path: path.to_owned(), reason };
        let value: Value = serde_json::from_str(text).map_err(|error| damaged(format!("not JSON: {error}")))?;
        let Value::Object(map) = value else {
            return Err(damaged("not a JSON object".to_owned()));
        };
        let fields = Fields { path, fields: &map };
        if fields.get("quantization_config").is_some() {
            let reason = "quantization_config: quantised weights are not read; f32, f16 and bf16 are";
            return Err(fields.unsupported(reason.to_owned()));
        }
        match fields.text("model_type")? {
            Some("gpt2") => Gpt2Config::from_fields(&fields).map(Self::Gpt2),
            Some(name) => match Family::named(name) {
                Some(family) => LlamaConfig::from_fields(&fields, family).map(Self::Llama),
                None => Err(fields.unsupported(format!("model_type `{name}` is not known; known: {KNOWN}"))),
            },
            None => Err(fields.unsupported(format!("no model_type; known: {KNOWN}"))),
        }
    }

    /// Every tensor the model needs.
    pub fn tensors(&self) -> TensorList {
        match self {
            Self::Gpt2(config) => config.tensors(),
            Self::Llama(config) => config.tensors(),
        }
    }

    /// Size of the token table.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Gpt2(config) => config.vocab_size,
            Self::Llama(config) => config.vocabulary,
        }
    }
}

/// Numbers in all of `tensors`.
pub fn numbers(tensors: &TensorList) -> u64 {
    tensors.iter().map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>()).sum()
}
