//! GPT-2's `config.json`: every field that changes the arithmetic is honoured or refused by name.

use serde::Serialize;

use super::fields::{Fields, MOST_LAYERS, MOST_POSITIONS, MOST_VOCABULARY, MOST_WIDTH};
use crate::error::ModelError;
use crate::kernels::activation::Activation;

/// Shape and arithmetic of a GPT-2.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Hidden size.
    pub n_embd: usize,
    /// Blocks.
    pub n_layer: usize,
    /// Attention heads of a block.
    pub n_head: usize,
    /// Width of the feed-forward part.
    pub n_inner: usize,
    /// Added to the variance.
    pub layer_norm_epsilon: f32,
    /// Of the feed-forward part.
    pub activation: Activation,
    /// Divide scores by √head_size.
    pub scale_attn_weights: bool,
    /// Divide scores by (layer index + 1) too.
    pub scale_attn_by_inverse_layer_idx: bool,
}

/// What determines the arithmetic, as hashed into the base fingerprint.
#[derive(Serialize)]
struct Canonical<'a> {
    architecture: &'a str,
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: usize,
    layer_norm_epsilon: f64,
    activation: String,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
}

impl Gpt2Config {
    /// The published sizes: `small`, `medium`, `large`, `xl`.
    pub fn named(size: &str) -> Option<Self> {
        let (n_embd, n_layer, n_head) = match size {
            "small" => (768, 12, 12),
            "medium" => (1024, 24, 16),
            "large" => (1280, 36, 20),
            "xl" => (1600, 48, 25),
            _ => return None,
        };
        Some(Self {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd,
            n_layer,
            n_head,
            n_inner: 4 * n_embd,
            layer_norm_epsilon: 1e-5,
            activation: Activation::GeluTanh,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
        })
    }

    /// Reads the fields of a `config.json` whose `model_type` is `gpt2`.
    ///
    /// # Errors
    /// Fields of another type, or with a meaning that numalign does not compute.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self, ModelError> {
        for (name, why) in [
            ("add_cross_attention", "cross attention needs a second input"),
            ("reorder_and_upcast_attn", "it changes the order of attention's operations"),
        ] {
            if fields.flag(name, false)? {
                return Err(fields.unsupported(format!("{name} is true: {why}")));
            }
        }
        let activation = fields.activation("activation_function", "gelu_new")?;
        let n_embd = fields.size("n_embd", Some(768), MOST_WIDTH)?;
        let config = Self {
            vocab_size: fields.size("vocab_size", Some(50_257), MOST_VOCABULARY)?,
            n_positions: fields.size("n_positions", Some(1024), MOST_POSITIONS)?,
            n_embd,
            n_layer: fields.size("n_layer", Some(12), MOST_LAYERS)?,
            n_head: fields.size("n_head", Some(12), MOST_WIDTH)?,
            n_inner: fields.size("n_inner", Some(4 * n_embd), MOST_WIDTH)?,
            layer_norm_epsilon: fields.positive("layer_norm_epsilon", 1e-5)?,
            activation,
            scale_attn_weights: fields.flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: fields.flag("scale_attn_by_inverse_layer_idx", false)?,
        };
        if !config.n_embd.is_multiple_of(config.n_head) {
            return Err(
                fields.unsupported(format!("n_embd {} is not a multiple of n_head {}", config.n_embd, config.n_head))
            );
        }
        Ok(config)
    }

    /// Size of one attention head.
    pub fn head_size(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// Factor on the attention scores of block `layer`.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let mut scale = 1.0;
        if self.scale_attn_weights {
            scale /= (self.head_size() as f32).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f32;
        }
        scale
    }

    /// Every tensor the model needs, with its shape, in the order in which it is loaded.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.n_embd, self.n_inner);
        let mut list = vec![
            ("wte.weight".to_owned(), vec![self.vocab_size, d]),
            ("wpe.weight".to_owned(), vec![self.n_positions, d]),
        ];
        for layer in 0..self.n_layer {
            for (name, shape) in [
                ("ln_1.weight", vec![d]),
                ("ln_1.bias", vec![d]),
                ("attn.c_attn.weight", vec![d, 3 * d]),
                ("attn.c_attn.bias", vec![3 * d]),
                ("attn.c_proj.weight", vec![d, d]),
                ("attn.c_proj.bias", vec![d]),
                ("ln_2.weight", vec![d]),
                ("ln_2.bias", vec![d]),
                ("mlp.c_fc.weight", vec![d, f]),
                ("mlp.c_fc.bias", vec![f]),
                ("mlp.c_proj.weight", vec![f, d]),
                ("mlp.c_proj.bias", vec![d]),
            ] {
                list.push((format!("h.{layer}.{name}"), shape));
            }
        }
        list.push(("ln_f.weight".to_owned(), vec![d]));
        list.push(("ln_f.bias".to_owned(), vec![d]));
        list
    }

    /// Canonical text of what determines the arithmetic.
    pub fn canonical(&self) -> String {
        let canonical = Canonical {
            architecture: "gpt2",
            vocab_size: self.vocab_size,
            n_positions: self.n_positions,
            n_embd: self.n_embd,
            n_layer: self.n_layer,
            n_head: self.n_head,
            n_inner: self.n_inner,
            layer_norm_epsilon: f64::from(self.layer_norm_epsilon),
            activation: format!("{:?}", self.activation),
            scale_attn_weights: self.scale_attn_weights,
            scale_attn_by_inverse_layer_idx: self.scale_attn_by_inverse_layer_idx,
        };
        serde_json::to_string(&canonical).unwrap_or_default()
    }
}
