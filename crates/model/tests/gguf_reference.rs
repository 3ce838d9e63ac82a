//! A real GGUF file against `transformers`: token ids of 1,000 texts, and hidden states.
//! `NUMALIGN_GGUF_REFERENCE` names what `tools/fixtures/make_gguf_reference.py` wrote.

use numalign_config::DeviceChoice;
use numalign_model::{LmInput, Piece, load};
use serde_json::Value;

/// Of the largest number of a hidden state.
const TOLERANCE: f32 = 1e-4;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn a_real_file() {
    let Ok(path) = std::env::var("NUMALIGN_GGUF_REFERENCE") else {
        println!(
            "skipped: NUMALIGN_GGUF_REFERENCE names no reference (tools/fixtures/make_gguf_reference.py writes one)"
        );
        return;
    };
    let reference: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let started = std::time::Instant::now();
    let mut model = load(reference["path"].as_str().unwrap(), DeviceChoice::Cpu, false).unwrap();
    println!("loaded in {:.1} s: {} numbers", started.elapsed().as_secs_f64(), model.lm.parameters());
    let texts = reference["texts"].as_array().unwrap();
    let mut others = 0;
    for (text, want) in texts.iter().zip(reference["ids"].as_array().unwrap()) {
        let text = text.as_str().unwrap();
        let got = model.lm.tokenize(text).unwrap();
        if got != ids(want) {
            others += 1;
            println!("{text:?}: {got:?}, not {want}");
        }
    }
    assert_eq!(others, 0, "of {} texts", texts.len());
    let mut most = 0.0f32;
    for case in reference["cases"].as_array().unwrap() {
        let sequences = vec![vec![Piece::Tokens(ids(&case["ids"]))]];
        let got = model.lm.forward(&LmInput { sequences, ..LmInput::default() }, false).unwrap();
        let want = case["hidden_last"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32);
        let want: Vec<f32> = want.collect();
        let largest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let apart = got.iter().zip(&want).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        most = most.max(apart / largest);
    }
    println!("{} texts' ids equal; hidden states within {most:.1e}", texts.len());
    assert!(most < TOLERANCE, "{most}");
}
