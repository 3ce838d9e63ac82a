//! How many kernels a training step launches. On a GPU that is fast enough, starting them is what a small step costs.

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::*;
use crate::common::fixtures;

/// Launches of the worker in a run of `steps` steps of one micro-batch.
fn launches(gpu: &Gpu, model: &str, [batch, positions]: [usize; 2], steps: usize) -> usize {
    let before = gpu.log("counts").lines().count();
    let settings = format!(
        "--num-epochs 1 --num-batches {steps} --batch-size {batch} --micro-batch-size {batch} \
         --numeric-positions {positions} --seed 3"
    );
    gpu.launched("nn", &settings, &format!("--workers 1 --model-name {model} --run-id run-{before}"));
    let log = gpu.log("counts");
    let counts = log.lines().skip(before).filter_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "launches");
        words.nth(1)?.parse::<usize>().ok()
    });
    counts.max().unwrap_or_else(|| panic!("no count of launches in {log:?}"))
}

/// A copy of a model's folder for longer sequences than it was made for. A learned table of positions begins anew where it ends.
fn with_positions(gpu: &Gpu, model: &str, positions: usize) -> String {
    let copy = gpu.folder.copy_fixture(model, &format!("{model}-long"));
    let path = copy.join("config.json");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for key in ["max_position_embeddings", "n_positions", "n_ctx"] {
        if config.get(key).is_some() {
            config[key] = positions.into();
        }
    }
    std::fs::write(&path, config.to_string()).expect("it is written");

    let weights = copy.join("model.safetensors");
    let bytes = std::fs::read(&weights).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    if let Ok(table) = tensors.tensor("wpe.weight") {
        let shape = vec![positions, table.shape()[1]];
        let size = table.data().len() / table.shape()[0] * positions;
        let longer: Vec<u8> = table.data().iter().copied().cycle().take(size).collect();
        let longer = TensorView::new(table.dtype(), shape, &longer).expect("a tensor");
        let all = tensors.tensors().into_iter().map(|(name, tensor)| match name.as_str() {
            "wpe.weight" => (name, longer.clone()),
            _ => (name, tensor),
        });
        std::fs::write(&weights, safetensors::serialize(all, None).expect("a file")).expect("it is written");
    }
    copy.display().to_string()
}

/// Per block and training step, all of the step counted: GPT-2 (the demo has four blocks, the longer model three), Llama and Qwen3 (two each).
#[test]
fn a_block_takes_few_launches() {
    let Some(gpu) = Gpu::get() else { return };
    let log = gpu.path("counts");
    let gpu = gpu.with("FAKE_CUDA_COUNTS", &log);
    let fixture = |name: &str| fixtures().join(name).display().to_string();
    let (llama, qwen) = (fixture("llama-grouped"), fixture("qwen3-head-norms"));
    let (gpt2, long) = (with_positions(&gpu, "small-f32", 1024), with_positions(&gpu, "llama-grouped", 1024));
    let cases = [
        ("demo", [8, 1], 4, 25),
        ("demo", [8, 16], 4, 25),
        ("demo", [2, 256], 4, 25),
        (gpt2.as_str(), [2, 1024], 3, 25),
        (llama.as_str(), [8, 5], 2, 32),
        (long.as_str(), [2, 1024], 2, 32),
        (qwen.as_str(), [8, 5], 2, 36),
    ];
    for (model, size, blocks, most) in cases {
        let one_step = launches(&gpu, model, size, 3) - launches(&gpu, model, size, 2);
        assert!(one_step <= most * blocks, "{model} {size:?}: {one_step} launches for {blocks} blocks");
    }
}
