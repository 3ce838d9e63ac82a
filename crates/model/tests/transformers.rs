//! Hidden states, gradients and token ids against `transformers`: the embedded demo model against its own
//! `reference.json`, and every folder in `testdata/` (written by `tools/fixtures/make_fixtures.py`).

use std::path::{Path, PathBuf};

use numalign_config::DeviceChoice;
use numalign_model::{FrozenLm, LmInput, Piece, load};
use serde_json::Value;

/// Closer than the distance between `gelu` and `gelu_new`.
const TOLERANCE: f32 = 2e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn assert_close(label: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{label}");
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart / largest < TOLERANCE, "{label}: relative difference {}", apart / largest);
}

/// One embedding per position, so that the gradient of each position can be seen.
fn as_embeddings(lm: &dyn FrozenLm, ids: &[u32]) -> LmInput {
    let pieces = (0..ids.len()).map(|row| Piece::Embedding { row, repeat: 1 }).collect();
    LmInput { sequences: vec![pieces], embeddings: lm.embed_tokens(ids).unwrap(), ..LmInput::default() }
}

fn cotangent(d: usize) -> Vec<f32> {
    (0..d).map(|i| (i as f64).cos() as f32).collect()
}

fn check_gradient(lm: &mut dyn FrozenLm, label: &str, gradient: &Value) {
    let d = lm.hidden_size();
    let input = as_embeddings(lm, &ids(&gradient["ids"]));
    let hidden = lm.forward(&input, true).unwrap();
    assert_close(&format!("{label}: hidden"), &hidden, &floats(&gradient["hidden_last"]));
    let grad = lm.backward_to_embeddings(&cotangent(d)).unwrap();
    let want: Vec<f32> = gradient["grad_embeddings"].as_array().unwrap().iter().flat_map(floats).collect();
    assert_close(&format!("{label}: gradient"), &grad, &want);
}

fn check_case(lm: &mut dyn FrozenLm, label: &str, case: &Value) {
    let want_ids = ids(&case["ids"]);
    if let Some(text) = case.get("text").and_then(Value::as_str) {
        assert_eq!(lm.tokenize(text).unwrap(), want_ids, "{label}: ids of {text:?}");
    }
    let input = LmInput { sequences: vec![vec![Piece::Tokens(want_ids)]], ..LmInput::default() };
    let hidden = lm.forward(&input, false).unwrap();
    assert_close(&format!("{label}: hidden"), &hidden, &floats(&case["hidden_last"]));
}

#[test]
fn demo_model() {
    let mut model = load("demo", DeviceChoice::Cpu, true).unwrap();
    let lm = &mut *model.lm;
    let text = include_str!("../assets/demo-gpt2/reference.json");
    let reference: Value = serde_json::from_str(text).unwrap();
    for case in reference["cases"].as_array().unwrap() {
        check_case(lm, "demo", case);
    }
    check_gradient(lm, "demo", &reference["gradient"]);
    let d = lm.hidden_size();
    for entry in reference["values"].as_array().unwrap() {
        let x = (entry["value"].as_f64().unwrap() - 50.0) / 28.867_513_459_481_287;
        let embeddings = (0..d).map(|i| (0.3 * (i as f64).sin() * x + 0.05 * (i as f64).cos()) as f32).collect();
        let sequences = vec![vec![Piece::Embedding { row: 0, repeat: 1 }]];
        let input = LmInput { sequences, embeddings, ..LmInput::default() };
        let hidden = lm.forward(&input, false).unwrap();
        assert_close("demo value", &hidden, &floats(&entry["hidden_last"]));
    }
}

/// The folder, with some keys of its config.json replaced.
fn with_overrides(folder: &Path, overrides: &Value, scratch: &Path) -> PathBuf {
    if overrides.as_object().is_none_or(|map| map.is_empty()) {
        return folder.to_owned();
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, scratch.join(path.file_name().unwrap())).unwrap();
    }
    let path = scratch.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in overrides.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    scratch.to_owned()
}

#[test]
fn every_fixture_folder() {
    let mut folders = 0;
    let mut entries = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = std::fs::read_to_string(folder.join("reference.json")) else {
            continue;
        };
        folders += 1;
        let reference: Value = serde_json::from_str(&text).unwrap();
        for entry in reference["entries"].as_array().unwrap() {
            entries += 1;
            let label = format!("{} / {}", folder.file_name().unwrap().display(), entry["name"]);
            let scratch = tempfile::tempdir().unwrap();
            let path = with_overrides(&folder, &entry["config_overrides"], scratch.path());
            let mut model = load(path.to_str().unwrap(), DeviceChoice::Cpu, true)
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            let lm = &mut *model.lm;
            for case in entry["cases"].as_array().unwrap() {
                check_case(lm, &label, case);
            }
            check_gradient(lm, &label, &entry["gradient"]);
            let single = &entry["gradient_single"];
            let input = LmInput {
                sequences: vec![vec![Piece::Embedding { row: 0, repeat: 1 }]],
                embeddings: floats(&single["embedding"]),
                ..LmInput::default()
            };
            let hidden = lm.forward(&input, true).unwrap();
            assert_close(&format!("{label}: single"), &hidden, &floats(&single["hidden_last"]));
            let grad = lm.backward_to_embeddings(&cotangent(lm.hidden_size())).unwrap();
            assert_close(&format!("{label}: single gradient"), &grad, &floats(&single["grad_embedding"]));
        }
    }
    assert!(folders >= 10 && entries >= 20, "only {folders} folders with {entries} entries");
}
