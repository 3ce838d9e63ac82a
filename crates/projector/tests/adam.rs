//! Forty updates against `torch.optim.Adam`, bit by bit (`testdata/adam.json`, made by `tools/fixtures/make_fixtures.py`).

use std::path::Path;

use numalign_config::{Config, Recipe};
use numalign_projector::schedule::learning_rate;
use numalign_projector::{Layout, State};
use serde_json::Value;

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/adam.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The recipe that the fixture was made with.
fn recipe(fixture: &Value) -> Recipe {
    let mut recipe = Config::with(&[]).unwrap().recipe;
    recipe.lr = fixture["lr"].as_f64().unwrap();
    recipe.shl = true;
    recipe.num_batches = fixture["steps_per_epoch"].as_u64().unwrap();
    recipe.lr_step_epochs = fixture["lr_step_epochs"].as_u64().unwrap();
    recipe.lr_gamma = fixture["lr_gamma"].as_f64().unwrap();
    recipe.train_input_projection = true;
    recipe.train_output_projection = true;
    recipe
}

/// The bit patterns of a vector.
fn bits(vector: &Value) -> Vec<u32> {
    let words = vector["bits"].as_array().unwrap().iter();
    words.map(|word| u32::from_str_radix(word.as_str().unwrap(), 16).unwrap()).collect()
}

fn floats(vector: &Value) -> Vec<f32> {
    bits(vector).into_iter().map(f32::from_bits).collect()
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_bit_is_pytorchs() {
    let fixture = fixture();
    let recipe = recipe(&fixture);
    // The fixture's seven numbers are the state of hidden size 2.
    let mut state = State::with_parameters(Layout::new(2), floats(&fixture["initial"]));
    let steps = fixture["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 40);
    let mut differences = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        assert_eq!(learning_rate(&recipe, index as u64), step["lr"].as_f64().unwrap());
        let mut reduced = floats(&step["gradient"]);
        reduced.push(0.0);
        state.update(&reduced, &recipe).unwrap();
        let vectors =
            [("parameter", state.parameters()), ("exp_avg", state.exp_avg()), ("exp_avg_sq", state.exp_avg_sq())];
        for (name, ours) in vectors {
            for (element, (our, their)) in bits_of(ours).into_iter().zip(bits(&step[name])).enumerate() {
                if our != their {
                    differences.push(format!("step {} {name}[{element}]: {our:08x}, PyTorch {their:08x}", index + 1));
                }
            }
        }
    }
    assert_eq!(differences, Vec::<String>::new());
}

#[test]
fn what_does_not_train_does_not_change() {
    let fixture = fixture();
    let mut recipe = recipe(&fixture);
    let start = State::with_parameters(Layout::new(2), floats(&fixture["initial"]));
    let row = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, 0.5];
    for (input, output) in [(true, false), (false, true)] {
        recipe.train_input_projection = input;
        recipe.train_output_projection = output;
        let mut state = start.clone();
        state.update(&row, &recipe).unwrap();
        let (still, moved) = if input { (4..7, 0..4) } else { (0..4, 4..7) };
        assert_eq!(state.parameters()[still.clone()], start.parameters()[still.clone()]);
        assert!(state.exp_avg()[still.clone()].iter().chain(&state.exp_avg_sq()[still]).all(|moment| *moment == 0.0));
        for element in moved {
            assert_ne!(state.parameters()[element], start.parameters()[element]);
        }
        assert_eq!(state.step(), 1);
    }
}

#[test]
fn a_gradient_that_does_not_fit_changes_nothing() {
    let fixture = fixture();
    let recipe = recipe(&fixture);
    let start = State::with_parameters(Layout::new(2), floats(&fixture["initial"]));
    let mut state = start.clone();
    let error = state.update(&[0.0; 7], &recipe).unwrap_err();
    assert_eq!(error.to_string(), "a gradient of 7 floats for a state of 8");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = [0.5; 8];
        row[5] = bad;
        let error = state.update(&row, &recipe).unwrap_err();
        assert_eq!(error.to_string(), format!("the gradient of step 0 is not finite ({bad} at 5)"));
    }
    assert_eq!(state, start);
}

#[test]
fn a_restored_state_goes_on_with_the_same_bits() {
    let fixture = fixture();
    let recipe = recipe(&fixture);
    let mut state = State::with_parameters(Layout::new(2), floats(&fixture["initial"]));
    for (index, step) in fixture["steps"].as_array().unwrap().iter().enumerate() {
        let again = State::restored(
            state.layout(),
            index as u64,
            state.parameters().to_vec(),
            state.exp_avg().to_vec(),
            state.exp_avg_sq().to_vec(),
        );
        assert_eq!(again.digest(), state.digest());
        let mut reduced = floats(&step["gradient"]);
        reduced.push(0.0);
        state.update(&reduced, &recipe).unwrap();
    }
}
