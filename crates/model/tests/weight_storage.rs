//! How weights are held and where: 16-bit types, several devices, and the refusal of what does not fit.

use std::path::Path;

use numalign_config::{CpuArithmetic, DeviceChoice, Dtype};
use numalign_model::{
    FrozenLm, LmInput, LoadOptions, ModelError, NormGradients, Piece, PooledRead, ReadPositions, load_with,
};

fn options() -> LoadOptions {
    LoadOptions::new(DeviceChoice::Cpu, true)
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name).display().to_string()
}

/// Sequences of several lengths with tokens and numbers between them.
fn input(lm: &dyn FrozenLm, read: PooledRead) -> LmInput {
    let d = lm.hidden_size();
    let number = |row| Piece::Embedding { row, repeat: 1 };
    let sequences = vec![
        vec![Piece::Tokens(vec![3, 1, 4]), number(0), Piece::Tokens(vec![1, 5])],
        vec![number(1)],
        vec![Piece::Tokens(vec![9, 2, 6, 5, 3]), number(2), number(3)],
    ];
    LmInput { sequences, embeddings: (0..4 * d).map(|i| (i as f32 * 0.31).sin()).collect(), reads: vec![read] }
}

/// Everything that a pass returns: hidden states, gradients of embeddings, gradients of norms.
fn results(lm: &mut dyn FrozenLm, read: PooledRead) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let batch = input(lm, read);
    let hidden = lm.forward(&batch, true).unwrap();
    let cotangent: Vec<f32> = (0..hidden.len()).map(|i| (i as f32 * 0.7).cos()).collect();
    let count: usize = lm.norm_parameters().unwrap().iter().map(|parameter| parameter.values.len()).sum();
    let mut sums = vec![vec![0.0; count]];
    let norms = NormGradients { group_of_sequence: &[0, 0, 0], sums: &mut sums };
    let grad = lm.backward(&cotangent, Some(norms)).unwrap();
    (hidden, grad, sums.swap_remove(0))
}

#[test]
fn several_devices_give_the_bytes_of_one() {
    let reads = [
        PooledRead::default(),
        PooledRead { positions: ReadPositions::Mean, layer: None },
        PooledRead { positions: ReadPositions::Embeddings, layer: Some(1) },
        PooledRead { positions: ReadPositions::Last, layer: Some(2) },
    ];
    for (name, most) in [(fixture("one-head"), 4), (fixture("mistral-window"), 3), (fixture("qwen3-head-norms"), 2)] {
        let mut one = load_with(&name, options()).unwrap();
        assert!(!one.description.device.contains("blocks"), "{}", one.description.device);
        for devices in 2..=most {
            let mut several = load_with(&name, LoadOptions { devices, ..options() }).unwrap();
            assert!(several.description.device.contains("blocks 1–"), "{}", several.description.device);
            assert_eq!(one.lm.fingerprint(), several.lm.fingerprint());
            for read in reads {
                let (want, got) = (results(&mut *one.lm, read), results(&mut *several.lm, read));
                assert_eq!(got, want, "{name} on {devices} devices, {read:?}");
            }
        }
    }
}

#[test]
fn more_devices_than_blocks_are_refused() {
    let error = load_with("demo", LoadOptions { devices: 100, ..options() }).err().unwrap();
    assert!(matches!(error, ModelError::Device { .. }), "{error}");
    assert!(error.to_string().contains("100 devices"), "{error}");
}

/// Weights that a file holds in 16 bits lose nothing when they are held so.
#[test]
fn sixteen_bit_files_keep_their_bits_in_memory() {
    let folders = [("odd-bf16", Dtype::Bf16), ("odd-f16-prefixed", Dtype::F16), ("llama-3-scaled", Dtype::Bf16)];
    for (name, dtype) in folders {
        let mut wide = load_with(&fixture(name), options()).unwrap();
        let mut narrow = load_with(&fixture(name), LoadOptions { dtype, ..options() }).unwrap();
        assert_eq!(
            results(&mut *wide.lm, PooledRead::default()),
            results(&mut *narrow.lm, PooledRead::default()),
            "{name}"
        );
        assert_eq!(wide.lm.fingerprint(), narrow.lm.fingerprint());
        assert_eq!(2 * narrow.lm.weight_bytes(), wide.lm.weight_bytes());
        assert!(narrow.description.device.ends_with(&format!("weights in {dtype}")), "{}", narrow.description.device);
    }
}

#[test]
fn rounded_weights_stay_close() {
    let folder = fixture("small-f32");
    let mut wide = load_with(&folder, options()).unwrap();
    for (dtype, most) in [(Dtype::Bf16, 0.1), (Dtype::F16, 0.01)] {
        let mut narrow = load_with(&folder, LoadOptions { dtype, ..options() }).unwrap();
        let (want, _, _) = results(&mut *wide.lm, PooledRead::default());
        let (got, _, _) = results(&mut *narrow.lm, PooledRead::default());
        let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let apart = want.iter().zip(&got).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(apart > 0.0 && apart < most, "{dtype}: {apart}");
        assert_eq!(wide.lm.fingerprint(), narrow.lm.fingerprint());
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_loaded() {
    let error = load_with("synthetic:xl", LoadOptions { positions: 1 << 40, ..options() }).err().unwrap();
    assert!(matches!(error, ModelError::TooLarge { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("`synthetic:xl` needs") && text.contains("weights 5.8"), "{text}");
    assert!(error.hint().is_some_and(|hint| hint.contains("positions") || hint.contains("memory")), "{error}");
}

#[test]
fn products_in_bf16_hold_blocks_in_two_bytes() {
    let folder = fixture("small-f32");
    let arithmetic = CpuArithmetic::Bf16;
    let mut wide = load_with(&folder, options()).unwrap();
    let mut rounded = load_with(&folder, LoadOptions { arithmetic, ..options() }).unwrap();
    let narrow = load_with(&folder, LoadOptions { arithmetic, dtype: Dtype::Bf16, ..options() }).unwrap();
    let device = &rounded.description.device;
    assert!(device.contains("products in bf16") && !wide.description.device.contains("products"), "{device}");
    assert_eq!(wide.lm.fingerprint(), rounded.lm.fingerprint());
    // Tables stay as `dtype` has them.
    assert_eq!(2 * narrow.lm.weight_bytes(), wide.lm.weight_bytes());
    let bytes = rounded.lm.weight_bytes();
    assert!(bytes > narrow.lm.weight_bytes() && bytes < wide.lm.weight_bytes(), "{bytes}");
    let (want, _, _) = results(&mut *wide.lm, PooledRead::default());
    let (got, _, _) = results(&mut *rounded.lm, PooledRead::default());
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = want.iter().zip(&got).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    assert!(apart > 0.0 && apart < 0.1, "{apart}");
}
