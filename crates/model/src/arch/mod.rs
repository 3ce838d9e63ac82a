//! The model families that numalign computes, as their `config.json` describes them.

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
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// Llama-style decoders.
    Llama(LlamaConfig),
}

/// Every `model_type` that is known, as listed to the user.
const KNOWN: &str = "gpt2, llama, mistral, qwen2, qwen3";

impl Architecture {
    /// Parses `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// Text that is no configuration, or one that numalign does not compute.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelError> {
        let damaged = |reason: String| ModelError::Damaged { path: path.to_owned(), reason };
        let value: Value = crate::load::json::parse(text).map_err(|error| damaged(format!("not JSON: {error}")))?;
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

    /// Blocks of the stack.
    pub fn layers(&self) -> usize {
        match self {
            Self::Gpt2(config) => config.n_layer,
            Self::Llama(config) => config.layers,
        }
    }

    /// `d`
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Gpt2(config) => config.n_embd,
            Self::Llama(config) => config.hidden_size,
        }
    }

    /// What the model asks of memory.
    pub fn footprint(&self) -> Footprint {
        let tensors = self.tensors();
        let size = |(_, shape): &(String, Vec<usize>)| shape.iter().map(|n| *n as u64).product::<u64>();
        // Per position: what the norms keep, what attention keeps, what the feed-forward part keeps and its width.
        let (tables, d, attention, feed_forward, inner) = match self {
            Self::Gpt2(c) => (&["wte.weight", "wpe.weight"][..], c.n_embd, 3 * c.n_embd, c.n_inner, c.n_inner),
            Self::Llama(c) => {
                let projected = (c.heads + 2 * c.kv_heads) * c.head_size;
                let normed = if c.head_norms { (c.heads + c.kv_heads) * c.head_size } else { 0 };
                (&["embed_tokens.weight"][..], c.hidden_size, projected + normed, 2 * c.inner, c.inner)
            }
        };
        let in_tables = tensors.iter().filter(|(name, _)| tables.contains(&name.as_str())).map(size).sum();
        Footprint {
            in_tables,
            in_blocks: numbers(&tensors) - in_tables,
            largest_tensor: tensors.iter().map(size).max().unwrap_or(0),
            kept: self.layers() as u64 * (2 * d + attention + feed_forward) as u64,
            passing: (6 * d + attention + 3 * inner) as u64,
            heads: self.heads() as u64,
            max_positions: self.max_positions() as u64,
        }
    }

    fn heads(&self) -> usize {
        match self {
            Self::Gpt2(config) => config.n_head,
            Self::Llama(config) => config.heads,
        }
    }

    fn max_positions(&self) -> usize {
        match self {
            Self::Gpt2(config) => config.n_positions,
            Self::Llama(config) => config.positions,
        }
    }
}

/// What a model asks of memory, in numbers (not bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// In the tables of embeddings, held once.
    pub in_tables: u64,
    /// In the blocks, held for each direction.
    pub in_blocks: u64,
    /// In the largest tensor.
    pub largest_tensor: u64,
    /// Kept for the backward pass per position, over all blocks.
    pub kept: u64,
    /// In use at once per position within a block.
    pub passing: u64,
    /// Attention heads of a block.
    pub heads: u64,
    /// Longest sequence.
    pub max_positions: u64,
}

impl Footprint {
    /// Bytes of the activations of a forward pass over `positions` positions on the CPU.
    pub fn activation_bytes(&self, positions: usize) -> u64 {
        4 * self.passing * positions as u64
    }

    /// Of the largest share, if the blocks are spread over `devices`.
    pub fn share(self, devices: usize) -> Self {
        let devices = devices.max(1) as u64;
        Self { in_blocks: self.in_blocks.div_ceil(devices), kept: self.kept.div_ceil(devices), ..self }
    }
}

/// Numbers in all of `tensors`.
pub fn numbers(tensors: &TensorList) -> u64 {
    tensors.iter().map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>()).sum()
}
