//! GPT-2's `config.json`: every field that changes the arithmetic is honoured or refused by name.
//! Called by the loader and by the synthetic models.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::kernels::activation::Activation;

/// Shape and arithmetic of a GPT-2.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    pub vocab_size: usize,
    pub n_positions: usize,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_inner: usize,
    pub layer_norm_epsilon: f32,
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

/// Sizes beyond these are a damaged file, not a model.
const MOST_POSITIONS: u64 = 1 << 20;
const MOST_WIDTH: u64 = 1 << 20;
const MOST_LAYERS: u64 = 10_000;
const MOST_VOCABULARY: u64 = 1 << 26;

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

    /// Parses `config.json`; `path` is named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelError> {
        let damaged = |reason: String| ModelError::Damaged { path: path.to_owned(), reason };
        let value: Value = serde_json::from_str(text).map_err(|error| damaged(format!("not JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(damaged("not a JSON object".to_owned()));
        };
        Self::from_fields(path, &Fields { path, fields: &fields })
    }

    fn from_fields(path: &Path, fields: &Fields<'_>) -> Result<Self, ModelError> {
        let unsupported = |reason: String| ModelError::Unsupported { path: path.to_owned(), reason };
        match fields.text("model_type")? {
            Some("gpt2") => {}
            Some(other) => return Err(unsupported(format!("model_type `{other}` is not known; known: gpt2"))),
            None => return Err(unsupported("no model_type; known: gpt2".to_owned())),
        }
        for (name, why) in [
            ("add_cross_attention", "cross attention needs a second input"),
            ("reorder_and_upcast_attn", "it changes the order of attention's operations"),
        ] {
            if fields.flag(name, false)? {
                return Err(unsupported(format!("{name} is true: {why}")));
            }
        }
        let name = fields.text("activation_function")?.unwrap_or("gelu_new");
        let Some(activation) = activation_named(name) else {
            return Err(unsupported(format!(
                "activation_function `{name}` is not known; known: gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, \
                 quick_gelu, relu, silu, swish, tanh"
            )));
        };
        let n_embd = fields.size("n_embd", Some(768), MOST_WIDTH)?;
        let config = Self {
            vocab_size: fields.size("vocab_size", Some(50_257), MOST_VOCABULARY)?,
            n_positions: fields.size("n_positions", Some(1024), MOST_POSITIONS)?,
            n_embd,
            n_layer: fields.size("n_layer", Some(12), MOST_LAYERS)?,
            n_head: fields.size("n_head", Some(12), MOST_WIDTH)?,
            n_inner: fields.size("n_inner", Some(4 * n_embd), MOST_WIDTH)?,
            layer_norm_epsilon: fields.number("layer_norm_epsilon", 1e-5)? as f32,
            activation,
            scale_attn_weights: fields.flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: fields.flag("scale_attn_by_inverse_layer_idx", false)?,
        };
        if !config.n_embd.is_multiple_of(config.n_head) {
            return Err(unsupported(format!("n_embd {} is not a multiple of n_head {}", config.n_embd, config.n_head)));
        }
        if !(config.layer_norm_epsilon > 0.0 && config.layer_norm_epsilon.is_finite()) {
            return Err(unsupported(format!("layer_norm_epsilon {} is not positive", config.layer_norm_epsilon)));
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

    /// Numbers in the model.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>()).sum()
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

fn activation_named(name: &str) -> Option<Activation> {
    Some(match name {
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        _ => return None,
    })
}

/// Typed access to the JSON object, with the file and the field in every error.
struct Fields<'a> {
    path: &'a Path,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, value: &Value, wanted: &str) -> ModelError {
        ModelError::Damaged { path: self.path.to_owned(), reason: format!("{name} is {value}, not {wanted}") }
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, other, "a string")),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(name, value, "a number")),
        }
    }

    fn size(&self, name: &str, default: Option<usize>, most: u64) -> Result<usize, ModelError> {
        match (self.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => {
                Err(ModelError::Damaged { path: self.path.to_owned(), reason: format!("{name} is missing") })
            }
            (Some(value), _) => match value.as_u64() {
                Some(size) if (1..=most).contains(&size) => Ok(size as usize),
                _ => Err(self.wrong(name, value, &format!("a whole number from 1 to {most}"))),
            },
        }
    }
}
