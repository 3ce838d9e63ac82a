//! What a `config.json` may say: fields that change the arithmetic are honoured, or refused by name.

use std::path::Path;

use numalign_model::arch::{Architecture, LlamaConfig, RopeScaling};
use serde_json::{Value, json};

fn parse(value: Value) -> Result<Architecture, String> {
    Architecture::parse(Path::new("config.json"), &value.to_string()).map_err(|error| error.to_string())
}

fn llama(value: Value) -> LlamaConfig {
    match parse(value).unwrap() {
        Architecture::Llama(config) => config,
        Architecture::Gpt2(_) => panic!("a GPT-2"),
    }
}

/// `base` with `change`'s fields on top.
fn with(base: &Value, change: Value) -> Value {
    let mut all = base.clone();
    for (key, value) in change.as_object().unwrap() {
        all[key] = value.clone();
    }
    all
}

#[test]
fn unknown_architectures_are_refused_with_the_known_ones() {
    let error = parse(json!({ "model_type": "gemma2" })).unwrap_err();
    assert!(error.contains("`gemma2`") && error.contains("gpt2, llama, mistral, qwen2, qwen3"), "{error}");
    let error = parse(json!({ "hidden_size": 12 })).unwrap_err();
    assert!(error.contains("no model_type") && error.contains("qwen3"), "{error}");
}

#[test]
fn what_changes_the_arithmetic_and_is_not_done_is_refused_by_name() {
    let base = json!({ "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4 });
    assert!(parse(base.clone()).is_ok());
    for (change, word) in [
        (json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }), "`dynamic`"),
        (json!({ "rope_parameters": { "rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4 } }), "`yarn`"),
        (json!({ "rope_scaling": { "rope_type": "longrope" } }), "`longrope`"),
        (json!({ "rope_scaling": { "rope_type": "linear" } }), "without factor"),
        (json!({ "rope_scaling": { "rope_type": "linear", "factor": 0.0 } }), "impossible numbers"),
        (json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0, "twist": 1 } }), "`twist`"),
        (json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }), "`full_attention`"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        (json!({ "quantization_config": { "bits": 4 } }), "quantization_config"),
        (json!({ "hidden_act": "gelu_10" }), "`gelu_10`"),
        (json!({ "num_key_value_heads": 3 }), "not a multiple"),
        (json!({ "head_dim": 9 }), "odd"),
        (json!({ "rms_norm_eps": 0.0 }), "rms_norm_eps"),
        (json!({ "num_hidden_layers": -1 }), "num_hidden_layers"),
        (json!({ "attention_bias": "yes" }), "attention_bias"),
        (json!({ "model_type": "qwen3", "use_sliding_window": true, "layer_types": ["chunked_attention"] }), "chunked"),
    ] {
        let error = parse(with(&base, change)).unwrap_err();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn families_have_their_own_defaults() {
    let config = llama(json!({ "model_type": "mistral" }));
    assert_eq!((config.kv_heads, config.head_size, config.inner, config.qkv_bias), (8, 128, 14_336, false));
    assert_eq!(config.positions, 4096, "the default window is shorter than max_position_embeddings");
    let config = llama(json!({ "model_type": "mistral", "sliding_window": null, "num_key_value_heads": null }));
    assert_eq!((config.positions, config.kv_heads), (131_072, 32));
    let config = llama(json!({ "model_type": "qwen2" }));
    assert!(config.qkv_bias && !config.output_bias && !config.mlp_bias && !config.head_norms);
    assert_eq!((config.positions, config.kv_heads), (32_768, 32));
    let config = llama(json!({ "model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 3 }));
    assert_eq!(config.positions, 4096);
    let config = llama(json!({ "model_type": "qwen3", "attention_bias": true, "mlp_bias": true, "hidden_size": 64 }));
    assert!(config.head_norms && config.qkv_bias && config.output_bias && !config.mlp_bias);
    assert_eq!(config.head_size, 128);
    let config =
        llama(json!({ "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "rope_theta": 5e5 }));
    assert_eq!((config.head_size, config.kv_heads, config.rope.theta), (8, 8, 5e5));
}

/// Llama 3.1's published numbers, computed by hand from the formula.
#[test]
fn llama_3_scaling() {
    let config = llama(json!({
        "model_type": "llama", "rope_theta": 500000.0, "head_dim": 128,
        "rope_scaling": { "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 8192, "rope_type": "llama3" }
    }));
    assert!(matches!(config.rope.scaling, RopeScaling::Llama3 { original_positions: 8192, .. }));
    let frequencies = config.rope.frequencies(128);
    let plain = |pair: i32| 500_000f64.powf(-f64::from(2 * pair) / 128.0);
    // Pair 0 turns once in 6.3 positions, pair 63 once in 2.6 million.
    assert_eq!(frequencies[0], 1.0);
    assert!((f64::from(frequencies[63]) / (plain(63) / 8.0) - 1.0).abs() < 1e-6);
    // Pair 32's wave is 2π·707 = 4443 positions, between 8192/4 and 8192/1.
    let smooth = (8192.0 / (std::f64::consts::TAU / plain(32)) - 1.0) / 3.0;
    let want = (1.0 - smooth) * plain(32) / 8.0 + smooth * plain(32);
    assert!((f64::from(frequencies[32]) / want - 1.0).abs() < 1e-6);
}
