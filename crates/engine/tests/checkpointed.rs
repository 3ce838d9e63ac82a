//! A checkpoint gives an engine and samples only with the model and the data that it was trained on.

use std::path::Path;

use numalign_checkpoint::{Checkpoint, Identity};
use numalign_config::{Arithmetic, Config, DeviceChoice, Stage};
use numalign_data::{Input, Sample};
use numalign_engine::{EngineError, Purpose, load_engine, training_stream};
use numalign_projector::{Layout, State};

const PATH: &str = "chk/run.safetensors";

fn checkpoint(dataset_digest: Option<String>) -> Checkpoint {
    let recipe = Config::with(&[]).unwrap().recipe;
    let demo = numalign_model::load("demo", DeviceChoice::Cpu, false).unwrap().lm;
    let identity = Identity {
        base_fingerprint: demo.fingerprint().to_hex().to_string(),
        tokenizer_fingerprint: None,
        arithmetic: Arithmetic::F32,
        layer_norms: Vec::new(),
        dataset_digest,
        split: None,
        loaded_digest: None,
        recipe: recipe.clone(),
    };
    let state = State::initial(Layout::of(&recipe, demo.hidden_size(), 0), 1);
    Checkpoint { identity, state, sample_digest: String::new(), sums: None }
}

#[test]
fn another_model_is_refused() {
    let checkpoint = checkpoint(None);
    let load = |model| load_engine(&checkpoint, Path::new(PATH), Some(model), DeviceChoice::Cpu, Purpose::Predict);
    assert!(load("demo").is_ok());
    let error = load("synthetic:small").err().expect("it is another model");
    assert!(matches!(&error, EngineError::OtherModel { name, .. } if name == "synthetic:small"), "{error}");
    assert!(error.to_string().starts_with("chk/run.safetensors was trained on another frozen model"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("--model")));
}

#[test]
fn a_bad_sample_leaves_the_others_their_bits() {
    let mut checkpoint = checkpoint(None);
    checkpoint.identity.recipe.stage = Stage::Mixed;
    let load = load_engine(&checkpoint, Path::new(PATH), None, DeviceChoice::Cpu, Purpose::Predict);
    let mut engine = load.expect("the demo model");
    let texts = ["$$5&& or $$7&&?", "$$12.5&&", "one more $$80&&, and longer than the others"];
    let sample = |text: &str| Sample { index: 0, input: Input::Text(text.to_owned()), target: 0.0 };
    let good: Vec<Sample> = texts.into_iter().map(sample).collect();
    let encoded = engine.predict(&checkpoint.state, &good).expect("predictions");
    let expected: Vec<u64> = encoded.iter().map(|value| engine.encoding().decode(*value).to_bits()).collect();
    let mut all = good;
    all.insert(1, sample("$$five&&"));
    all.push(sample(""));
    let each = engine.predict_each(&checkpoint.state, &all).expect("answers");
    let bits: Vec<u64> = each.iter().filter_map(|answer| answer.as_ref().ok()).map(|value| value.to_bits()).collect();
    assert_eq!(bits, expected);
    let reasons: Vec<String> =
        each.iter().filter_map(|answer| answer.as_ref().err()).map(EngineError::reason).collect();
    assert!(reasons.len() == 2 && reasons[0].contains("five") && reasons[1].contains("no tokens"), "{reasons:?}");
    assert!(each[1].is_err() && each[4].is_err());
}

#[test]
fn generated_samples_need_no_file_and_samples_of_a_file_need_that_one() {
    let (generated, stored) = (checkpoint(None), checkpoint(Some("0123456789abcdef0123".to_owned())));
    assert!(training_stream(&generated, Path::new(PATH), None).is_ok());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.jsonl");
    std::fs::write(&file, "{\"input\": 1.5, \"output\": 1.5}\n").unwrap();
    let refusal = |checkpoint, dataset: Option<&Path>| {
        let error = training_stream(checkpoint, Path::new(PATH), dataset).expect_err("it does not fit");
        (error.to_string(), error.hint().unwrap_or_default().to_owned())
    };
    for ((error, hint), words, advice) in [
        (refusal(&generated, Some(&file)), "was not trained from a file", "leave --dataset out"),
        (refusal(&stored, None), "was trained from a file (digest 0123456789abcdef)", "--dataset"),
        (refusal(&stored, Some(&file)), "the run's 0123456789abcdef", "the file of the run"),
    ] {
        assert!(error.contains(words) && error.contains(PATH), "{error}");
        assert!(hint.contains(advice), "{hint}");
    }
}
