//! `config.json` of Llama-style decoders (Llama 2 and 3, Mistral, Qwen2, Qwen2.5, Qwen3): every field that changes the
//! arithmetic is honoured or refused by name.
//!
//! Names and defaults are those of the families' configuration classes in `transformers`.

use serde_json::Value;

use super::fields::{Fields, MOST_LAYERS, MOST_POSITIONS, MOST_VOCABULARY, MOST_WIDTH};
use super::rope::{Rope, RopeScaling};
use super::{TensorList, numbers};
use crate::error::ModelError;
use crate::kernels::activation::Activation;

/// A `model_type`; the families differ in defaults, biases and the norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5: biased queries, keys and values.
    Qwen2,
    /// Qwen3: norms of query and key heads.
    Qwen3,
}

/// What `transformers` takes for a field that is absent.
struct Defaults {
    inner: usize,
    /// `None`: as many as query heads.
    kv_heads: Option<usize>,
    /// `None`: hidden size divided by heads.
    head_size: Option<usize>,
    vocabulary: usize,
    positions: usize,
}

impl Family {
    /// The family of a `model_type`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            _ => return None,
        })
    }

    fn defaults(self) -> Defaults {
        let (inner, kv_heads, vocabulary, positions) = match self {
            Self::Llama => (11_008, None, 32_000, 2048),
            Self::Mistral => (14_336, Some(8), 32_000, 131_072),
            Self::Qwen2 | Self::Qwen3 => (22_016, Some(32), 151_936, 32_768),
        };
        let head_size = (self == Self::Qwen3).then_some(128);
        Defaults { inner, kv_heads, head_size, vocabulary, positions }
    }
}

/// Shape and arithmetic of a Llama-style decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the token table.
    pub vocabulary: usize,
    /// Width of embeddings and hidden states.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub inner: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads of a block.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_size: usize,
    /// Longest sequence: where attention has a sliding window, its width, so that the window never cuts.
    pub positions: usize,
    /// Added to the mean square.
    pub rms_norm_eps: f32,
    /// Of the feed-forward part's gate.
    pub activation: Activation,
    /// Rotary positions.
    pub rope: Rope,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of attention's output projection.
    pub output_bias: bool,
    /// Biases of the feed-forward part.
    pub mlp_bias: bool,
    /// RMS norms of each query and key head (Qwen3).
    pub head_norms: bool,
    /// Whether the model's own head is its token table.
    pub tied_head: bool,
}

impl LlamaConfig {
    /// Reads the fields of a `config.json` of `family`.
    ///
    /// # Errors
    /// Fields of another type, or with a meaning that numalign does not compute.
    pub fn from_fields(fields: &Fields<'_>, family: Family) -> Result<Self, ModelError> {
        let defaults = family.defaults();
        // To `transformers` an absent field has its default, and a null one follows from the others.
        let absent = |name: &str| !fields.fields.contains_key(name);
        let width = |name: &str, default: usize| fields.size(name, Some(default), MOST_WIDTH);
        let hidden_size = width("hidden_size", 4096)?;
        let heads = width("num_attention_heads", 32)?;
        let kv_heads = defaults.kv_heads.filter(|_| absent("num_key_value_heads")).unwrap_or(heads);
        let head_size = defaults.head_size.filter(|_| absent("head_dim")).unwrap_or((hidden_size / heads).max(1));
        let attention_bias = match family {
            Family::Llama | Family::Qwen3 => fields.flag("attention_bias", false)?,
            Family::Mistral | Family::Qwen2 => false,
        };
        let layers = fields.size("num_hidden_layers", Some(32), MOST_LAYERS)?;
        let positions = fields.size("max_position_embeddings", Some(defaults.positions), MOST_POSITIONS)?;
        let window = sliding_window(fields, family, layers)?;
        let config = Self {
            vocabulary: fields.size("vocab_size", Some(defaults.vocabulary), MOST_VOCABULARY)?,
            hidden_size,
            inner: width("intermediate_size", defaults.inner)?,
            layers,
            heads,
            kv_heads: width("num_key_value_heads", kv_heads)?,
            head_size: width("head_dim", head_size)?,
            positions: window.map_or(positions, |window| window.min(positions)),
            rms_norm_eps: fields.positive("rms_norm_eps", 1e-6)?,
            activation: fields.activation("hidden_act", "silu")?,
            rope: Rope::from_fields(fields)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            output_bias: attention_bias,
            mlp_bias: family == Family::Llama && fields.flag("mlp_bias", false)?,
            head_norms: family == Family::Qwen3,
            tied_head: fields.flag("tie_word_embeddings", false)?,
        };
        let LlamaConfig { kv_heads, head_size, .. } = config;
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}");
            return Err(fields.unsupported(reason));
        }
        if !head_size.is_multiple_of(2) {
            return Err(fields.unsupported(format!("head_dim {head_size} is odd, and rotary positions turn pairs")));
        }
        Ok(config)
    }

    /// The shapes of Llama 2 with 7 billion parameters.
    pub fn seven_billion() -> Self {
        Self {
            vocabulary: 32_000,
            hidden_size: 4096,
            inner: 11_008,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            head_size: 128,
            positions: 4096,
            rms_norm_eps: 1e-5,
            activation: Activation::Silu,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            head_norms: false,
            tied_head: false,
        }
    }

    /// Every tensor the model needs, with its shape, in the order in which it is loaded.
    pub fn tensors(&self) -> TensorList {
        let (d, f, size) = (self.hidden_size, self.inner, self.head_size);
        let (q, kv) = (self.heads * size, self.kv_heads * size);
        let mut list = vec![("embed_tokens.weight".to_owned(), vec![self.vocabulary, d])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: Vec<usize>| list.push((format!("layers.{layer}.{name}"), shape));
            add("input_layernorm.weight", vec![d]);
            for (name, output) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(&format!("self_attn.{name}.weight"), vec![output, d]);
                if self.qkv_bias {
                    add(&format!("self_attn.{name}.bias"), vec![output]);
                }
            }
            if self.head_norms {
                add("self_attn.q_norm.weight", vec![size]);
                add("self_attn.k_norm.weight", vec![size]);
            }
            add("self_attn.o_proj.weight", vec![d, q]);
            if self.output_bias {
                add("self_attn.o_proj.bias", vec![d]);
            }
            add("post_attention_layernorm.weight", vec![d]);
            for (name, output, input) in [("gate_proj", f, d), ("up_proj", f, d), ("down_proj", d, f)] {
                add(&format!("mlp.{name}.weight"), vec![output, input]);
                if self.mlp_bias {
                    add(&format!("mlp.{name}.bias"), vec![output]);
                }
            }
        }
        list.push(("norm.weight".to_owned(), vec![d]));
        list
    }

    /// Numbers in the model, without a head.
    pub fn parameters(&self) -> u64 {
        numbers(&self.tensors())
    }

    /// Canonical text of what determines the arithmetic.
    pub fn canonical(&self) -> String {
        format!(
            "llama-style: vocabulary {} hidden {} inner {} layers {} heads {} kv_heads {} head_size {} eps {:?} \
             activation {:?} rope {:?} head_norms {}",
            self.vocabulary,
            self.hidden_size,
            self.inner,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_size,
            self.rms_norm_eps,
            self.activation,
            self.rope,
            self.head_norms
        )
    }
}

/// Width of the sliding window, if some block has one.
fn sliding_window(fields: &Fields<'_>, family: Family, layers: usize) -> Result<Option<usize>, ModelError> {
    let some_block = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => {
            fields.flag("use_sliding_window", false)? && some_block_slides(fields, layers)?
        }
    };
    if !some_block {
        return Ok(None);
    }
    if !fields.fields.contains_key("sliding_window") {
        return Ok(Some(4096));
    }
    match fields.get("sliding_window") {
        None => Ok(None),
        Some(_) => fields.size("sliding_window", None, MOST_POSITIONS).map(Some),
    }
}

/// Whether `layer_types`, or `max_window_layers` in its absence, gives some block of a Qwen model a window.
fn some_block_slides(fields: &Fields<'_>, layers: usize) -> Result<bool, ModelError> {
    match fields.get("layer_types") {
        None => Ok(fields.size("max_window_layers", Some(28), MOST_LAYERS)? < layers),
        Some(Value::Array(types)) => {
            for kind in types {
                if *kind != "full_attention" && *kind != "sliding_attention" {
                    return Err(fields.unsupported(format!("layer_types holds {kind}")));
                }
            }
            Ok(types.iter().any(|kind| *kind == "sliding_attention"))
        }
        Some(other) => Err(fields.wrong("layer_types", other, "a list")),
    }
}
