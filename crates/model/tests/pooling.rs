//! PooledRead-outs by position and layer, and the gradients of embeddings and layer norms, against `transformers`
//! (`tools/fixtures/make_reads.py`), in every folder that has a `reads.json`.

use std::path::Path;

use numalign_config::DeviceChoice;
use numalign_model::{FrozenLm, LmInput, NormGradients, Piece, PooledRead, ReadPositions, load};
use serde_json::Value;

const TOLERANCE: f32 = 2e-5;

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn assert_close(label: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{label}");
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart / largest < TOLERANCE, "{label}: relative difference {}", apart / largest);
}

#[test]
fn reads_and_norm_gradients() {
    let mut folders = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")).unwrap() {
        let folder = entry.unwrap().path();
        if let Ok(text) = std::fs::read_to_string(folder.join("reads.json")) {
            check_folder(&folder, &serde_json::from_str(&text).unwrap());
            folders += 1;
        }
    }
    assert!(folders >= 7, "only {folders} folders");
}

/// Every case read at once: their hidden states side by side, and the sum of their gradients.
fn check_together(folder: &Path, lm: &mut dyn FrozenLm, inputs: &[LmInput], cases: &[Value]) {
    let d = lm.hidden_size();
    let reads = inputs.iter().flat_map(|input| input.reads.clone()).collect();
    let together = LmInput { reads, ..inputs[0].clone() };
    let cotangent: Vec<f32> = (0..cases.len() * d).map(|i| ((i % d) as f64).cos() as f32).collect();
    let hidden = lm.forward(&together, true).unwrap();
    let grad = lm.backward_to_embeddings(&cotangent).unwrap();
    let mut want_grad = vec![0.0f64; grad.len()];
    for (case, hidden) in cases.iter().zip(hidden.chunks_exact(d)) {
        assert_close(
            &format!("{}: hidden of {} together", folder.display(), case["at"]),
            hidden,
            &floats(&case["hidden"]),
        );
        for (sum, grad) in want_grad.iter_mut().zip(floats(&case["grad_embeddings"])) {
            *sum += f64::from(grad);
        }
    }
    let want_grad: Vec<f32> = want_grad.into_iter().map(|grad| grad as f32).collect();
    assert_close(&format!("{}: gradient of all reads", folder.display()), &grad, &want_grad);
}

fn check_folder(folder: &Path, reference: &Value) {
    let mut lm = load(folder.to_str().unwrap(), DeviceChoice::Cpu, true).unwrap().lm;
    let d = lm.hidden_size();
    let embeddings = floats(&reference["embeddings"]);
    let external: Vec<u64> = reference["external"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
    let mut sequence = Vec::new();
    for (position, id) in reference["ids"].as_array().unwrap().iter().enumerate() {
        sequence.push(match external.iter().position(|e| *e == position as u64) {
            Some(row) => Piece::Embedding { row, repeat: 1 },
            None => Piece::Tokens(vec![id.as_u64().unwrap() as u32]),
        });
    }
    let names: Vec<&str> = reference["norm_names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    let parameters = lm.norm_parameters().unwrap();
    assert_eq!(parameters.iter().map(|parameter| parameter.name.as_str()).collect::<Vec<_>>(), names);
    let cotangent: Vec<f32> = (0..d).map(|i| (i as f64).cos() as f32).collect();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3 * lm.layers());
    let mut inputs = Vec::new();
    for case in cases {
        let at = match case["at"].as_str().unwrap() {
            "last" => ReadPositions::Last,
            "mean" => ReadPositions::Mean,
            _ => ReadPositions::Embeddings,
        };
        let layer = case["layer"].as_u64().map(|layer| layer as usize);
        let label = format!("{}: {at:?}, layer {layer:?}", folder.display());
        let reads = vec![PooledRead { positions: at, layer }];
        let input = LmInput { sequences: vec![sequence.clone()], embeddings: embeddings.clone(), reads };
        let hidden = lm.forward(&input, true).unwrap();
        assert_close(&format!("{label}: hidden"), &hidden, &floats(&case["hidden"]));
        let mut sums = vec![vec![0.0f32; parameters.iter().map(|parameter| parameter.values.len()).sum()]];
        let norms = NormGradients { group_of_sequence: &[0], sums: &mut sums };
        let grad = lm.backward(&cotangent, Some(norms)).unwrap();
        assert_close(&format!("{label}: gradient"), &grad, &floats(&case["grad_embeddings"]));
        for ((name, grad), want) in names.iter().zip(sums[0].chunks_exact(d)).zip(case["norms"].as_array().unwrap()) {
            let want: Vec<f64> = want.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let sum: f64 = grad.iter().map(|g| f64::from(*g)).sum();
            let wave: f64 = grad.iter().enumerate().map(|(i, g)| f64::from(*g) * (i as f64).cos()).sum();
            let scale = want[2].max(1e-12);
            assert!((sum - want[0]).abs() / scale < 2e-5, "{label} {name}: sum {sum} for {}", want[0]);
            assert!((wave - want[1]).abs() / scale < 2e-5, "{label} {name}: wave {wave} for {}", want[1]);
        }
        inputs.push(input);
    }
    check_together(folder, &mut *lm, &inputs, cases);
}
