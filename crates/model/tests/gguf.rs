//! GGUF files as models: numbers against the `gguf` package, hidden states against `transformers`, token ids against
//! `tokenizers`, fingerprints against the same model's folder. The data are from `tools/fixtures/make_gguf.py`.

mod common_gguf;

use std::path::{Path, PathBuf};

use common_gguf::{File, f32, flag, testdata, text, texts, u32};
use numalign_config::DeviceChoice;
use numalign_model::load::gguf::{self, container::Container, dequantise::dequantise, kind::Kind, settings};
use numalign_model::load::name::ModelName;
use numalign_model::load::weights::TensorSource;
use numalign_model::{FrozenModel, LmInput, Piece, load};
use serde_json::Value;

/// Of the largest number of a hidden state.
const TOLERANCE: f32 = 2e-5;

fn open(path: &Path) -> FrozenModel {
    load(path.to_str().unwrap(), DeviceChoice::Cpu, false).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check_cases(label: &str, model: &mut FrozenModel, cases: &Value) {
    for case in cases.as_array().unwrap() {
        let sequences = vec![vec![Piece::Tokens(ids(&case["ids"]))]];
        let got = model.lm.forward(&LmInput { sequences, ..LmInput::default() }, false).unwrap();
        let want = case["hidden_last"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32);
        let want: Vec<f32> = want.collect();
        assert_eq!(got.len(), want.len(), "{label}");
        let largest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let apart = got.iter().zip(&want).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart / largest < TOLERANCE, "{label}: relative difference {}", apart / largest);
    }
}

#[test]
fn blocks_are_dequantised_as_the_gguf_package_does_to_the_bit() {
    let bytes = std::fs::read(testdata().join("blocks.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for kind in Kind::all() {
        let blocks = file.tensor(&format!("{kind:?}.blocks")).unwrap();
        let values = file.tensor(&format!("{kind:?}.values")).unwrap();
        let want: Vec<u32> =
            values.data().as_chunks().0.iter().map(|number: &[u8; 4]| u32::from_le_bytes(*number)).collect();
        let mut got = Vec::new();
        dequantise(kind, blocks.data(), &mut got);
        let got: Vec<u32> = got.iter().map(|value| value.to_bits()).collect();
        assert!(got.len() >= 120 && got.iter().any(|bits| *bits != 0), "{kind:?}");
        assert_eq!(got, want, "{kind:?}");
        let (numbers, size) = kind.block();
        assert_eq!(blocks.data().len() as u64 * numbers, want.len() as u64 * size, "{kind:?}");
    }
}

/// Five families, three types of numbers: names, layouts, shapes, the configuration and the order of the fingerprint.
#[test]
fn a_folder_s_numbers_in_a_gguf_file_give_the_folder_s_fingerprint() {
    for name in ["small-f32", "llama-3-scaled", "qwen2-biased", "qwen3-head-norms"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name);
        let mut file = open(&testdata().join(format!("{name}.gguf")));
        assert_eq!(file.lm.fingerprint(), open(&folder).lm.fingerprint(), "{name}");
        let reference = json(&folder.join("reference.json"));
        let plain = reference["entries"].as_array().unwrap().iter();
        for entry in plain.filter(|entry| entry["config_overrides"].as_object().is_none_or(|map| map.is_empty())) {
            check_cases(name, &mut file, &entry["cases"]);
        }
    }
}

#[test]
fn quantised_models_have_the_hidden_states_of_transformers() {
    let expected = json(&testdata().join("expected.json"));
    for (name, entry) in expected.as_object().unwrap() {
        let mut model = open(&testdata().join(format!("{name}.gguf")));
        assert_eq!(model.description.weights, "trained");
        check_cases(name, &mut model, &entry["cases"]);
    }
}

#[test]
fn heads_are_known_to_be_tied_or_not() {
    let first = LmInput { sequences: vec![vec![Piece::Tokens(vec![1])]], ..LmInput::default() };
    for (name, tied) in [("quantised-gpt2", true), ("quantised-llama", true), ("quantised-qwen2", false)] {
        let mut model = open(&testdata().join(format!("{name}.gguf")));
        let hidden = model.lm.forward(&first, false).unwrap();
        assert_eq!(model.lm.logits(&hidden).is_ok(), tied, "{name}");
    }
}

#[test]
fn every_kind_of_tokenizer_gives_the_ids_of_its_tokenizer_json() {
    let expected = json(&testdata().join("tokenizers.json"));
    let strings: Vec<&str> = expected["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(expected["ids"].as_object().unwrap().len(), 6);
    for (pre, lists) in expected["ids"].as_object().unwrap() {
        let path = testdata().join(format!("tokenizer-{pre}.gguf"));
        let bytes = std::fs::read(&path).unwrap();
        let file = Container::parse(&bytes).unwrap();
        let tokenizer = gguf::tokenizer::tokenizer(&file, gguf::names::GgufArchitecture::Llama, &path).unwrap();
        for (string, want) in strings.iter().zip(lists.as_array().unwrap()) {
            let got = tokenizer.encode(string).unwrap();
            assert_eq!(got, ids(want), "{pre}: {string:?}");
            if pre != "qwen2" {
                assert_eq!(tokenizer.decode(&got).unwrap(), *string, "{pre}");
            }
        }
    }
}

fn scratch(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_tokenizer_json_beside_the_file_wins() {
    let mut file = File::llama();
    let (folder, path) = scratch("model.gguf", &file.bytes());
    let error = open(&path).lm.tokenize("ab").unwrap_err().to_string();
    assert!(error.contains("holds none") && error.contains("tokenizer.json"), "{error}");
    std::fs::write(&path, file.tokenizer().bytes()).unwrap();
    let model = open(&path);
    assert_eq!(model.lm.tokenize("ab<|end|>").unwrap(), [257, 0]);
    assert_eq!(model.lm.detokenize(&[257, 0]).unwrap(), "ab<|end|>");
    for (key, value, word) in [
        ("model", text("llama"), "tokenizer.ggml.model `llama`"),
        ("model", text("bert"), "`bert`"),
        ("pre", text("deepseek-coder"), "tokenizer.ggml.pre `deepseek-coder`"),
        ("add_space_prefix", flag(true), "add_space_prefix"),
    ] {
        let mut other = file.clone();
        std::fs::write(&path, other.set(&format!("tokenizer.ggml.{key}"), value).bytes()).unwrap();
        let error = open(&path).lm.tokenize("ab").unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("tokenizer.json"), "{error}");
    }
    let json = r#"{"model":{"type":"WordLevel","vocab":{"ab":3,"?":4},"unk_token":"?"}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
    assert_eq!(open(&path).lm.tokenize("ab").unwrap(), [3]);
}

#[test]
fn damaged_tokenizers_are_refused() {
    let mut file = File::llama();
    file.tokenizer();
    for (key, value, word) in [
        ("tokens", texts(&["a", "b", "a"]), "token \"a\" of tokenizer.ggml.tokens occurs twice"),
        ("tokens", text("a"), "tokenizer.ggml.tokens is `a`, not an array"),
        ("tokens", common_gguf::integers(&[1]), "not an array of texts"),
        ("token_type", common_gguf::integers(&[1, 1]), "one for each token"),
        ("token_type", texts(&["a"; 258]), "whole numbers"),
        ("merges", texts(&["ab"]), "\"ab\", not a pair"),
        ("merges", texts(&["a q\u{120}z"]), "not a tokenizer"),
        ("pre", u32(1), "tokenizer.ggml.pre is 1"),
        ("add_bos_token", u32(1), "not true or false"),
    ] {
        let mut other = file.clone();
        let bytes = other.set(&format!("tokenizer.ggml.{key}"), value).bytes();
        let error = gguf::from_bytes("x.gguf", bytes).err().expect(key).to_string();
        assert!(error.contains(word), "{key}: {error}");
    }
    let mut other = file.clone();
    other.set("tokenizer.ggml.add_bos_token", flag(true)).set("tokenizer.ggml.bos_token_id", u32(9999));
    let error = gguf::from_bytes("x.gguf", other.bytes()).err().unwrap().to_string();
    assert!(error.contains("bos_token_id is 9999, not the id of a token"), "{error}");
    other.remove("tokenizer.ggml.merges");
    let error = gguf::from_bytes("x.gguf", other.bytes()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.merges is missing"), "{error}");
}

#[test]
fn names_of_models_may_be_gguf_files_and_their_folders() {
    let (folder, path) = scratch("model.gguf", &File::llama().bytes());
    let name = |path: &Path| ModelName::parse(path.to_str().unwrap());
    assert_eq!(name(&path).unwrap(), ModelName::Gguf(path.clone()));
    assert_eq!(name(folder.path()).unwrap(), ModelName::Gguf(path.clone()));
    assert!(name(&path).unwrap().is_at_hand());
    let fingerprint = open(&path).lm.fingerprint();
    assert_eq!(open(folder.path()).lm.fingerprint(), fingerprint);
    std::fs::write(folder.path().join("other.gguf"), b"").unwrap();
    let error = name(folder.path()).unwrap_err().to_string();
    assert!(error.contains("2 GGUF files (model.gguf, other.gguf)"), "{error}");
    std::fs::write(folder.path().join("model.safetensors"), b"").unwrap();
    assert_eq!(name(folder.path()).unwrap(), ModelName::Folder(folder.path().to_owned()));
    let error = name(&folder.path().join("none.gguf")).unwrap_err().to_string();
    assert!(error.contains("there is no such file"), "{error}");
    assert!(ModelName::parse("none.gguf").unwrap_err().to_string().contains("there is no such file"));
}

/// The configuration that a file's metadata amount to.
fn config(file: &File) -> Result<Value, String> {
    let bytes = file.bytes();
    let container = Container::parse(&bytes).map_err(|error| error.to_string())?;
    settings::config(&container).map(|(_, fields)| Value::Object(fields)).map_err(|error| error.to_string())
}

#[test]
fn metadata_become_the_fields_of_config_json() {
    let mut file = File::llama();
    let fields = config(&file).unwrap();
    assert_eq!((&fields["model_type"], &fields["head_dim"]), (&"llama".into(), &4.into()));
    assert_eq!((&fields["rms_norm_eps"], &fields["vocab_size"]), (&1e-5.into(), &5.into()));
    assert_eq!(fields["rope_parameters"]["rope_theta"], 1000.0);
    assert_eq!(fields["tie_word_embeddings"], true);
    file.set("llama.attention.sliding_window", u32(7)).set("llama.rope.scaling.factor", f32(2.5));
    file.tensor("output.weight", &[8, 5]);
    let fields = config(&file).unwrap();
    assert_eq!((&fields["model_type"], &fields["sliding_window"]), (&"mistral".into(), &7.into()));
    assert_eq!(
        (&fields["rope_parameters"]["rope_type"], &fields["tie_word_embeddings"]),
        (&"linear".into(), &false.into())
    );
    let model = gguf::from_bytes("x.gguf", file.bytes()).unwrap();
    assert_eq!(model.architecture.footprint().max_positions, 7, "the window never cuts");
    file.set("llama.rope.scaling.type", text("none")).set("llama.expert_count", u32(0));
    assert_eq!(config(&file).unwrap()["rope_parameters"]["rope_type"], "default");
    file.remove("llama.rope.freq_base").set("llama.attention.head_count", common_gguf::integers(&[2, 2]));
    assert_eq!(config(&file).unwrap()["rope_parameters"]["rope_theta"], 10_000.0);
}

#[test]
fn what_changes_the_arithmetic_and_is_not_done_is_refused_by_name() {
    for (key, value, word) in [
        ("general.architecture", text("gemma3"), "`gemma3` is not known; known: gpt2, llama, qwen2, qwen3"),
        ("general.type", text("adapter"), "general.type is `adapter`"),
        ("split.count", u32(3), "one of 3 parts"),
        ("llama.expert_count", u32(8), "llama.expert_count is 8"),
        ("llama.rope.scaling.type", text("yarn"), "`yarn`"),
        ("llama.rope.scaling.attn_factor", f32(1.2), "attn_factor is 1.2"),
        ("llama.rope.dimension_count", u32(2), "rope.dimension_count is 2"),
        ("llama.attention.value_length", u32(2), "value_length is 2"),
        ("llama.attention.causal", flag(false), "attention.causal is false"),
        ("llama.attn_logit_softcapping", f32(50.0), "llama.attn_logit_softcapping (50) is not known"),
        ("llama.residual_scale", f32(0.2), "llama.residual_scale"),
        ("llama.tensor_data_layout", text("rotated"), "`rotated`"),
        ("llama.attention.head_count", common_gguf::integers(&[2, 1]), "the same for every block"),
        ("llama.attention.head_count", u32(0), "attention.head_count is 0"),
        ("llama.block_count", u32(1000), "block_count is 1000, and there are 11 tensors"),
        ("llama.vocab_size", u32(6), "llama.vocab_size is 6, and token_embd.weight has 5 rows"),
        ("llama.embedding_length", text("8"), "llama.embedding_length is `8`"),
        ("llama.rope.freq_base", f32(f32::NAN), "freq_base is NaN, not a finite number"),
        ("llama.attention.layer_norm_rms_epsilon", u32(1), "not a finite number"),
    ] {
        let mut file = File::llama();
        let error = config(file.set(key, value)).unwrap_err();
        assert!(error.contains(word), "{key}: {error}");
    }
    for key in ["general.architecture", "llama.context_length", "llama.attention.layer_norm_rms_epsilon"] {
        let mut file = File::llama();
        let error = config(file.remove(key)).unwrap_err();
        assert_eq!(error, format!("{key} is missing"));
    }
    let mut file = File::llama();
    file.tensor("rope_freqs.weight", &[2]).set("llama.rope.scaling.factor", f32(2.0));
    assert!(config(&file).unwrap_err().contains("rope_freqs.weight together with linear scaling"));
    file.remove("llama.rope.scaling.factor");
    assert!(config(&file).unwrap_err().contains("not those of rope_type llama3"));
}

#[test]
fn tensors_have_to_be_those_of_the_model() {
    let mut file = File::llama();
    file.tensors.remove(3);
    file.tensor("blk.0.attn_q.weight", &[8, 6]).tensor("blk.0.ffn_gate_exps.weight", &[4]);
    file.tensors.remove(1);
    let error = gguf::from_bytes("x.gguf", file.bytes()).err().unwrap().to_string();
    for word in [
        "misshapen: blk.0.attn_q.weight is [6, 8], the metadata want [8, 8]",
        "missing: output_norm.weight [8]",
        "unexpected: blk.0.ffn_gate_exps.weight [4]",
    ] {
        assert!(error.contains(word), "{error}");
    }
}

/// In parts as whole: a fingerprint must not depend on how a tensor was read.
#[test]
fn parts_of_a_tensor_are_the_tensor() {
    for path in common_gguf::files() {
        let Ok(model) = gguf::open(&path, None) else { continue };
        for (name, shape) in model.architecture.tensors() {
            let whole = model.tensors.read(&name).unwrap();
            assert_eq!(whole.len(), shape.iter().product::<usize>());
            let mut parts = Vec::new();
            model.tensors.read_parts(&name, &mut |part| parts.extend_from_slice(part)).unwrap();
            assert_eq!(whole, parts, "{name}");
        }
    }
}
