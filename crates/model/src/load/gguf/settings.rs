//! A GGUF file's metadata as the `config.json` of the same model, so that both are read by one parser.
//!
//! Every key of the architecture is honoured, known to leave the arithmetic alone, or refused by name.

use serde_json::{Map, Value as Json, json};

use super::container::Container;
use super::error::GgufError;
use super::names::GgufArchitecture;
use super::rope_factors::llama_3_scaling;
use super::value::Value;

/// The architecture, and the fields that its `config.json` has.
///
/// # Errors
/// A key that is needed is missing or of the wrong type, or the metadata ask for what numalign does not compute.
pub fn config(file: &Container<'_>) -> Result<(GgufArchitecture, Map<String, Json>), GgufError> {
    let general = Keys { file, prefix: "general" };
    model_file(&general)?;
    let name = general.text("architecture")?.ok_or(GgufError::Missing { key: "general.architecture".to_owned() })?;
    let Some(architecture) = GgufArchitecture::named(name) else {
        let reason = format!("general.architecture `{name}` is not known; known: {}", GgufArchitecture::NAMES);
        return Err(GgufError::Unsupported { reason });
    };
    let keys = Keys { file, prefix: name };
    refuse_unknown(&keys, architecture)?;
    let fields = match architecture {
        GgufArchitecture::Gpt2 => gpt2(&keys)?,
        _ => llama(&keys, architecture)?,
    };
    Ok((architecture, fields))
}

/// Refuses files that hold a part of a model, or no model.
fn model_file(general: &Keys<'_, '_>) -> Result<(), GgufError> {
    if let Some(kind) = general.text("type")?
        && kind != "model"
    {
        return Err(GgufError::Unsupported { reason: format!("general.type is `{kind}`, not a model") });
    }
    let parts = Keys { file: general.file, prefix: "split" }.whole("count")?.unwrap_or(1);
    if parts > 1 {
        let reason = format!("one of {parts} parts of a model; join them with llama-gguf-split --merge");
        return Err(GgufError::Unsupported { reason });
    }
    Ok(())
}

/// Keys that are honoured below, or that change nothing, whatever the architecture.
const KNOWN: [&str; 12] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "tensor_data_layout",
    "pooling_type",
    "expert_count",
    "expert_used_count",
    "use_parallel_residual",
    "attention.head_count",
    "attention.causal",
];

/// The same, for the Llama-style architectures alone. The scaling's original length and whether the model was trained with
/// it belong to kinds of scaling that are refused.
const KNOWN_LLAMA: [&str; 13] = [
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
];

fn refuse_unknown(keys: &Keys<'_, '_>, architecture: GgufArchitecture) -> Result<(), GgufError> {
    let unsupported = |reason: String| Err(GgufError::Unsupported { reason });
    let of_architecture: &[&str] = match architecture {
        GgufArchitecture::Gpt2 => &["attention.layer_norm_epsilon"],
        _ => &KNOWN_LLAMA,
    };
    for (key, value) in keys.all() {
        if !KNOWN.contains(&key) && !of_architecture.contains(&key) {
            return unsupported(format!("{}.{key} ({}) is not known", architecture.name(), value.describe()));
        }
    }
    for (key, neutral) in [
        ("expert_count", Value::Unsigned(0)),
        ("expert_used_count", Value::Unsigned(0)),
        ("use_parallel_residual", Value::Bool(false)),
        ("attention.causal", Value::Bool(true)),
        ("rope.scaling.attn_factor", Value::F32(1.0)),
    ] {
        if let Some(value) = keys.get(key)
            && value != neutral
        {
            let name = architecture.name();
            return unsupported(format!("{name}.{key} is {}; {} is computed", value.describe(), neutral.describe()));
        }
    }
    match keys.text("tensor_data_layout")? {
        None | Some("reference" | "Meta AI original pth") => Ok(()),
        Some(layout) => unsupported(format!("{}.tensor_data_layout is `{layout}`", architecture.name())),
    }
}

fn gpt2(keys: &Keys<'_, '_>) -> Result<Map<String, Json>, GgufError> {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Json| fields.insert(name.to_owned(), value);
    put("model_type", json!("gpt2"));
    put("n_positions", json!(keys.size("context_length")?));
    put("n_embd", json!(keys.size("embedding_length")?));
    put("n_layer", json!(keys.blocks()?));
    put("n_head", json!(keys.size("attention.head_count")?));
    put("n_inner", json!(keys.size("feed_forward_length")?));
    put("layer_norm_epsilon", json!(keys.needed_number("attention.layer_norm_epsilon")?));
    put("vocab_size", json!(keys.vocabulary()?));
    Ok(fields)
}

fn llama(keys: &Keys<'_, '_>, architecture: GgufArchitecture) -> Result<Map<String, Json>, GgufError> {
    let heads = keys.size("attention.head_count")?;
    let hidden = keys.size("embedding_length")?;
    let positions = keys.size("context_length")?;
    let head_size = head_size(keys, hidden, heads)?;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Json| fields.insert(name.to_owned(), value);
    put("hidden_size", json!(hidden));
    put("num_attention_heads", json!(heads));
    put("num_key_value_heads", json!(keys.whole("attention.head_count_kv")?.unwrap_or(heads)));
    put("head_dim", json!(head_size));
    put("intermediate_size", json!(keys.size("feed_forward_length")?));
    put("num_hidden_layers", json!(keys.blocks()?));
    put("max_position_embeddings", json!(positions));
    put("rms_norm_eps", json!(keys.needed_number("attention.layer_norm_rms_epsilon")?));
    put("vocab_size", json!(keys.vocabulary()?));
    put("rope_parameters", rope(keys, head_size)?);
    put("tie_word_embeddings", json!(!keys.has_tensor("output.weight")));
    put("attention_bias", json!(keys.has_tensor("blk.0.attn_q.bias")));
    put("mlp_bias", json!(keys.has_tensor("blk.0.ffn_up.bias")));
    let window = keys.whole("attention.sliding_window")?.filter(|window| *window > 0);
    if let Some(window) = window {
        put("sliding_window", json!(window));
        put("use_sliding_window", json!(true));
        put("layer_types", json!(["sliding_attention"]));
    }
    put("model_type", json!(model_type(architecture, window.is_some())));
    Ok(fields)
}

/// `model_type` as `config.json` has it. Mistral's files say `llama`, whose folders have no window.
fn model_type(architecture: GgufArchitecture, window: bool) -> &'static str {
    match architecture {
        GgufArchitecture::Llama if window => "mistral",
        other => other.name(),
    }
}

fn head_size(keys: &Keys<'_, '_>, hidden: u64, heads: u64) -> Result<u64, GgufError> {
    let size = match keys.whole("attention.key_length")? {
        Some(size) => size,
        None => hidden / heads,
    };
    for (key, what) in
        [("attention.value_length", "values are as wide as keys"), ("rope.dimension_count", "heads are rotated whole")]
    {
        if let Some(other) = keys.whole(key)?
            && other != size
        {
            let reason = format!("{}.{key} is {other} and a head has {size} numbers: {what}", keys.prefix);
            return Err(GgufError::Unsupported { reason });
        }
    }
    Ok(size)
}

/// The rotary positions; as in llama.cpp, a factor without a type scales linearly, and a factor of 0 or 1 does not.
fn rope(keys: &Keys<'_, '_>, head_size: u64) -> Result<Json, GgufError> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    let scales = factor.is_some_and(|factor| factor != 0.0 && factor != 1.0);
    let factors = keys.has_tensor("rope_freqs.weight");
    match kind {
        "none" | "linear" if !scales || kind == "none" => match factors {
            true => llama_3_scaling(keys.file, theta, head_size),
            false => Ok(json!({ "rope_type": "default", "rope_theta": theta })),
        },
        "linear" if !factors => Ok(json!({ "rope_type": "linear", "rope_theta": theta, "factor": factor })),
        "linear" => Err(GgufError::Unsupported { reason: "rope_freqs.weight together with linear scaling".to_owned() }),
        other => {
            let reason = format!("{}.rope.scaling.type `{other}` is not known; known: none, linear", keys.prefix);
            Err(GgufError::Unsupported { reason })
        }
    }
}

/// Typed access to the metadata below one prefix.
struct Keys<'a, 'f> {
    file: &'f Container<'a>,
    prefix: &'f str,
}

impl<'a> Keys<'a, '_> {
    /// All keys without the prefix.
    fn all(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        let below = |key: &'a str| key.strip_prefix(self.prefix)?.strip_prefix('.');
        self.file.metadata.iter().filter_map(move |(key, value)| Some((below(key)?, *value)))
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.file.metadata.get(self.full(key).as_str()).copied()
    }

    fn wrong(&self, key: &str, value: Value<'_>, wanted: &'static str) -> GgufError {
        GgufError::Value { key: self.full(key), found: value.describe(), wanted }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }

    /// A whole number; where every block has its own, all must be equal.
    fn whole(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let wanted = "a whole number, the same for every block";
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(value)),
            Some(Value::Signed(value)) => match u64::try_from(value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(self.wrong(key, Value::Signed(value), wanted)),
            },
            Some(value @ Value::Array(array)) => {
                let wrong = || self.wrong(key, value, wanted);
                let mut values = array.integers().ok_or_else(wrong)?;
                let first = values.next().ok_or_else(wrong)?;
                match values.all(|value| value == first) {
                    true => u64::try_from(first).map(Some).map_err(|_| wrong()),
                    false => Err(wrong()),
                }
            }
            Some(other) => Err(self.wrong(key, other, wanted)),
        }
    }

    /// A positive whole number that has to be there.
    fn size(&self, key: &str) -> Result<u64, GgufError> {
        match self.whole(key)? {
            None => Err(GgufError::Missing { key: self.full(key) }),
            Some(0) => Err(self.wrong(key, Value::Unsigned(0), "a positive number")),
            Some(size) => Ok(size),
        }
    }

    /// `block_count`: no more than there are tensors, so that a small file cannot ask for a long list of names.
    fn blocks(&self) -> Result<u64, GgufError> {
        let (blocks, tensors) = (self.size("block_count")?, self.file.tensors.len());
        if blocks > tensors as u64 {
            let reason = format!("{}.block_count is {blocks}, and there are {tensors} tensors", self.prefix);
            return Err(GgufError::Contradiction { reason });
        }
        Ok(blocks)
    }

    /// A number. Single precision is taken by its shortest decimal, which is what `config.json` has.
    fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(value)) if value.is_finite() => {
                Ok(Some(value.to_string().parse().unwrap_or(f64::from(value))))
            }
            Some(Value::F64(value)) if value.is_finite() => Ok(Some(value)),
            Some(other) => Err(self.wrong(key, other, "a finite number")),
        }
    }

    fn needed_number(&self, key: &str) -> Result<f64, GgufError> {
        self.number(key)?.ok_or_else(|| GgufError::Missing { key: self.full(key) })
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.file.tensors.contains_key(name)
    }

    /// Rows of the token table, with which the metadata have to agree.
    fn vocabulary(&self) -> Result<u64, GgufError> {
        let Some(table) = self.file.tensors.get("token_embd.weight") else {
            return Err(GgufError::Missing { key: "tensor token_embd.weight".to_owned() });
        };
        let rows = table.shape[0] as u64;
        match self.whole("vocab_size")? {
            Some(size) if size != rows => {
                let reason = format!("{}.vocab_size is {size}, and token_embd.weight has {rows} rows", self.prefix);
                Err(GgufError::Contradiction { reason })
            }
            _ => Ok(rows),
        }
    }
}
