//! Hidden states and gradients of every family on the emulated GPU, beside the CPU's.

use std::path::Path;

use numalign_checkpoint::Checkpoint;

use super::*;
use crate::common::fixtures;

/// Without matrix units products are exact to rounding; with them the factors keep ten bits (TF32).
const CAPABILITIES: [(&str, f64); 2] = [("75", 1e-5), ("90", 1e-2)];

/// A folder of `testdata` for each family and for each odd shape.
const FOLDERS: [&str; 11] = [
    "small-f32",
    "odd-bf16",
    "one-head",
    "head-size-1",
    "one-layer",
    "llama-grouped",
    "llama-3-scaled",
    "llama-biased-linear",
    "mistral-window",
    "qwen2-biased",
    "qwen3-head-norms",
];

fn models() -> Vec<String> {
    let folders = FOLDERS.map(|name| fixtures().join(name).display().to_string());
    std::iter::once("demo".to_owned()).chain(folders).collect()
}

/// Largest difference over the largest wanted value.
fn apart(what: &str, got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let most = got.iter().zip(want).fold(0.0f64, |most, (a, b)| {
        assert!(a.is_finite(), "{what}: {a} instead of {b}");
        most.max((a - b).abs())
    });
    assert!(largest > 0.0, "{what}: all numbers are 0");
    most / largest
}

/// Token ids of a short and of a long sequence: their products have kernels of their own.
const TEXTS: [&str; 2] = ["3,1,4,1,5,9,2", "3,1,4,1,5,9,2,6,5,3,5,8,9,7,9,3,2,3"];

fn hidden(gpu: &Gpu, model: &str, device: &str, ids: &str) -> Vec<f64> {
    let output = gpu.succeed(&["hidden", "--model", model, "--ids", ids, "--device", device, "--json"]);
    let said: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}"));
    said["hidden"].as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number")).collect()
}

/// The gradients of both projectors after one step, from Adam's first moments.
fn gradients(gpu: &Gpu, model: &str, device: &str, positions: usize, number: usize) -> Vec<(String, Vec<f64>)> {
    let run = format!("{device}-{number}");
    let settings = format!(
        "--num-epochs 1 --num-batches 1 --batch-size 4 --micro-batch-size 4 --numeric-positions {positions} --seed 3"
    );
    let more = format!("--workers 1 --collective grpc --device {device} --model-name {model} --run-id {run}");
    let output = gpu.start(&arguments("nn", &settings, &more)).wait_at_most(TIMEOUT);
    assert!(output.status.success(), "{model}: {output}");
    let bytes = gpu.bytes(&run);
    let checkpoint = Checkpoint::from_bytes(Path::new(&run), &bytes).expect("a checkpoint");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(checkpoint.to_bytes(), bytes);
    let mut found = Vec::new();
    for (name, view) in file.tensors() {
        if name.starts_with("optimizer.exp_avg.") {
            let values =
                view.data().chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap())));
            found.push((name, values.collect()));
        }
    }
    assert!(found.len() >= 4, "{found:?}");
    // The file's own order is another one in each process.
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

#[test]
fn hidden_states_are_those_of_the_cpu() {
    let Some(mut gpu) = Gpu::get() else { return };
    for (capability, tolerance) in CAPABILITIES {
        gpu.set("FAKE_CUDA_CAPABILITY", capability);
        for model in models() {
            for ids in TEXTS {
                let (ours, cpu) = (hidden(&gpu, &model, "cuda", ids), hidden(&gpu, &model, "cpu", ids));
                let difference = apart(&model, &ours, &cpu);
                assert!(difference < tolerance, "{model} at {capability}: {difference:.1e}");
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_cpu() {
    let Some(mut gpu) = Gpu::get() else { return };
    let mut number = 0;
    for (capability, tolerance) in CAPABILITIES {
        gpu.set("FAKE_CUDA_CAPABILITY", capability);
        let models = models();
        let mut cases: Vec<_> = models.iter().flat_map(|model| [(model.as_str(), 5), (model.as_str(), 18)]).collect();
        // Attention over several tiles, the last of them not full.
        cases.push(("demo", 150));
        for (model, positions) in cases {
            number += 1;
            let ours = gradients(&gpu, model, "cuda", positions, number);
            let cpu = gradients(&gpu, model, "cpu", positions, number);
            for ((name, ours), (_, cpu)) in ours.iter().zip(&cpu) {
                let difference = apart(name, ours, cpu);
                assert!(difference < tolerance, "{model}, {name} at {capability}: {difference:.1e}");
            }
        }
    }
}

/// Whatever a kernel does in parallel, its result does not depend on who comes first.
#[test]
fn the_order_of_blocks_and_lanes_changes_no_bit() {
    let Some(mut gpu) = Gpu::get() else { return };
    for model in models() {
        gpu.set("FAKE_CUDA_ORDER", "forward");
        let forward = TEXTS.map(|ids| hidden(&gpu, &model, "cuda", ids));
        gpu.set("FAKE_CUDA_ORDER", "reverse");
        assert_eq!(TEXTS.map(|ids| hidden(&gpu, &model, "cuda", ids)), forward, "{model}");
    }
}

/// Weights and products in 16 bits: near the CPU, which holds the weights alone so; and exact where that is asked for.
#[test]
fn products_in_sixteen_bits_are_near_the_cpu() {
    let Some(gpu) = Gpu::get() else { return };
    let step = |name: &str, more: &str| {
        let settings =
            "--num-epochs 1 --num-batches 1 --batch-size 4 --micro-batch-size 4 --numeric-positions 5 --seed 3";
        let more = format!("--workers 1 --collective grpc --run-id {name} {more}");
        let output = gpu.start(&arguments("nn", settings, &more)).wait_at_most(TIMEOUT);
        assert!(output.status.success(), "{name}: {output}");
        gpu.bytes(name)
    };
    let moments = |bytes: &[u8]| -> Vec<f64> {
        let file = safetensors::SafeTensors::deserialize(bytes).expect("safetensors");
        let view = file.tensor("optimizer.exp_avg.input_projection.weight").expect("a tensor");
        view.data().chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
    };
    for (dtype, tolerance) in [("bf16", 3e-2), ("f16", 1e-2)] {
        let cpu = moments(&step(&format!("{dtype}-cpu"), &format!("--device cpu --dtype {dtype}")));
        let rounded = moments(&step(&format!("{dtype}-gpu"), &format!("--device cuda --dtype {dtype}")));
        let difference = apart(dtype, &rounded, &cpu);
        assert!((1e-5..tolerance).contains(&difference), "{dtype}: {difference:.1e}");
        let more = format!("--device cuda --dtype {dtype} --exact-f32 true");
        let difference = apart(dtype, &moments(&step(&format!("{dtype}-exact"), &more)), &cpu);
        assert!(difference < 1e-5, "{dtype}, exact: {difference:.1e}");
    }
    let exact = moments(&step("f32-exact", "--device cuda --exact-f32 true"));
    let difference = apart("f32", &exact, &moments(&step("f32-cpu", "--device cpu")));
    assert!(difference < 1e-5, "exact f32: {difference:.1e}");
}
