//! Losses and their gradients against PyTorch's autograd (`testdata/losses.json`, made by `tools/fixtures/make_losses.py`).

use std::path::Path;

use numalign_config::{Config, Recipe};
use numalign_projector::{Encoding, LossFunction};
use serde_json::Value;

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/losses.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn recipe(fixture: &Value, case: &Value) -> Recipe {
    let mut flags = vec![
        ("min_val", fixture["min_val"].to_string()),
        ("max_val", fixture["max_val"].to_string()),
        ("loss", case["loss_name"].as_str().unwrap().to_owned()),
    ];
    if case["delta"].is_number() {
        flags.push(("huber_delta", case["delta"].to_string()));
    }
    let flags: Vec<(&str, &str)> = flags.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Config::with(&flags).unwrap().recipe
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Encoded values are `f32`, so an error of 0.02 is known to 1e-5 of itself.
const TOLERANCE: f64 = 2e-5;

#[test]
fn values_and_gradients_are_pytorchs() {
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let recipe = recipe(&fixture, case);
        let (loss, encoding) = (LossFunction::of(&recipe), Encoding::of(&recipe));
        let (predictions, targets) = (numbers(&case["predictions"]), numbers(&case["targets"]));
        let inverse_batch = 1.0 / predictions.len() as f32;
        let mut total = 0.0;
        for ((prediction, target), theirs) in predictions.iter().zip(&targets).zip(numbers(&case["gradient"])) {
            let error = *prediction as f32 - encoding.encode(*target);
            let (value, slope) = loss.value_and_slope(error, loss.weight(*target), inverse_batch);
            total += f64::from(value);
            let apart = (f64::from(slope) - theirs).abs();
            assert!(apart <= TOLERANCE * theirs.abs(), "{loss:?} at {target}: slope {slope}, PyTorch {theirs}");
        }
        let theirs = case["loss"].as_f64().unwrap();
        assert!((total - theirs).abs() <= TOLERANCE * theirs, "{loss:?}: {total}, PyTorch {theirs}");
    }
}
