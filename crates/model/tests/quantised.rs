//! Weights in blocks: a file's own, and those that are made while loading.

mod common_gguf;

use std::path::Path;

use common_gguf::testdata;
use numalign_config::{DeviceChoice, Dtype};
use numalign_model::{FrozenModel, LmInput, LoadOptions, ModelError, Piece, PooledRead, ReadPositions, load_with};

fn open(name: &str, dtype: Dtype) -> Result<FrozenModel, ModelError> {
    load_with(name, LoadOptions { dtype, ..LoadOptions::new(DeviceChoice::Cpu, true) })
}

fn gguf(name: &str) -> String {
    testdata().join(format!("{name}.gguf")).display().to_string()
}

fn folder(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name).display().to_string()
}

/// Hidden states and gradients of sequences of several lengths.
fn results(model: &mut FrozenModel) -> (Vec<f32>, Vec<f32>) {
    let d = model.lm.hidden_size();
    let number = |row| Piece::Embedding { row, repeat: 1 };
    let sequences = vec![
        vec![Piece::Tokens(vec![3, 1, 4]), number(0), Piece::Tokens(vec![1, 5])],
        vec![number(1)],
        vec![Piece::Tokens(vec![9, 2, 6, 5, 3]), number(2), number(3)],
    ];
    let embeddings = (0..4 * d).map(|i| (i as f32 * 0.31).sin()).collect();
    let reads = vec![PooledRead { positions: ReadPositions::Mean, layer: None }];
    let hidden = model.lm.forward(&LmInput { sequences, embeddings, reads }, true).unwrap();
    let cotangent: Vec<f32> = (0..hidden.len()).map(|i| (i as f32 * 0.7).cos()).collect();
    let grad = model.lm.backward_to_embeddings(&cotangent).unwrap();
    (hidden, grad)
}

/// The blocks of a file stand for the numbers that are read from it otherwise: the same bits, in less memory.
#[test]
fn blocks_of_a_file_give_the_bits_of_its_numbers() {
    let files = [
        ("quantised-gpt2", Dtype::Q4_1),
        ("quantised-llama", Dtype::Q6K),
        ("quantised-llama", Dtype::Q8_0),
        ("quantised-qwen2", Dtype::Q8_0),
        ("quantised-qwen2", Dtype::Q4K),
        ("quantised-qwen3", Dtype::Q4_0),
        ("quantised-qwen3", Dtype::Q5K),
    ];
    for (name, dtype) in files {
        let mut wide = open(&gguf(name), Dtype::F32).unwrap();
        let mut blocks = open(&gguf(name), dtype).unwrap_or_else(|error| panic!("{name} {dtype}: {error}"));
        assert_eq!(results(&mut blocks), results(&mut wide), "{name} {dtype}");
        assert_eq!(blocks.lm.fingerprint(), wide.lm.fingerprint());
        assert!(blocks.lm.weight_bytes() < wide.lm.weight_bytes());
        assert!(blocks.description.device.ends_with(&format!("weights in {dtype}")), "{}", blocks.description.device);
    }
}

#[test]
fn blocks_that_a_file_does_not_hold_are_refused() {
    let error = open(&gguf("quantised-qwen3"), Dtype::Q8_0).err().unwrap();
    assert!(error.to_string().contains("the file holds its weights in q4_0"), "{error}");
    let error = open(&folder("small-f32"), Dtype::Q4K).err().unwrap();
    assert!(error.to_string().contains("the files hold no such blocks"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("q8_0 and q4_0 are made")), "{error}");
}

/// Made from plain weights: the error grows as the bits become fewer, and the fingerprint stays the files'.
#[test]
fn blocks_are_made_while_loading() {
    let mut wide = open("demo", Dtype::F32).unwrap();
    let (want, want_grad) = results(&mut wide);
    let apart = |a: &[f32], b: &[f32]| {
        let largest = a.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
    };
    let mut before = 0.0;
    for (dtype, most) in [(Dtype::Q8_0, 0.1), (Dtype::Q4_0, 1.0)] {
        let mut blocks = open("demo", dtype).unwrap();
        let (hidden, grad) = results(&mut blocks);
        let error = apart(&want, &hidden).max(apart(&want_grad, &grad));
        assert!(error > before && error < most, "{dtype}: {error}");
        assert_eq!(blocks.lm.fingerprint(), wide.lm.fingerprint());
        before = error;
    }
}

#[test]
fn seven_billion_parameters_are_refused_in_words_where_they_do_not_fit() {
    // A pass this long never fits; the refusal comes before a weight is made.
    let options = LoadOptions { positions: 1 << 30, ..LoadOptions::new(DeviceChoice::Cpu, true) };
    let error = load_with("synthetic:llama-7b", options).err().unwrap().to_string();
    assert!(error.contains("`synthetic:llama-7b` needs") && error.contains("weights 24.6"), "{error}");
}
