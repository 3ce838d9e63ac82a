//! Other models than the demo through the real binary: Llama-style folders, 16-bit weights, several devices per worker,
//! and the refusals.

mod common;

use common::Folder;
use common::run::{bytes, run_line, succeed_line};

const SHORT: &str = "--num-epochs 2 --num-batches 5 --batch-size 8 --micro-batch-size 4 --checkpoint-every 100";

fn trained(folder: &Folder, id: &str, more: &str) -> Vec<u8> {
    succeed_line(folder, &format!("launch {SHORT} --no-eval --run-id {id} {more}"));
    bytes(folder, id)
}

#[test]
fn devices_per_worker_changes_no_byte() {
    let folder = Folder::new();
    for stage in ["nn", "mixed"] {
        let settings = format!("--stage {stage} --mixed-max-numbers 3 --workers 1");
        let one = trained(&folder, &format!("{stage}-1"), &settings);
        let two = trained(&folder, &format!("{stage}-2"), &format!("{settings} --devices-per-worker 2"));
        assert!(one == two, "stage {stage}");
    }
}

#[test]
fn llama_style_folders_train_to_the_same_bytes_with_any_number_of_workers() {
    let folder = Folder::new();
    for model in ["qwen3-head-norms", "mistral-window", "llama-3-scaled"] {
        folder.copy_fixture(model, model);
        let settings = format!("--model-name ./{model} --numeric-positions 3");
        let one = trained(&folder, &format!("{model}-1"), &format!("{settings} --workers 1"));
        let three = trained(&folder, &format!("{model}-3"), &format!("{settings} --workers 3 --devices-per-worker 2"));
        assert!(one == three, "{model}");
    }
}

#[test]
fn the_type_of_the_weights_belongs_to_the_result() {
    let folder = Folder::new();
    folder.copy_fixture("small-f32", "small");
    let wide = trained(&folder, "wide", "--model-name ./small --dtype f32");
    let plain = trained(&folder, "plain", "--model-name ./small");
    assert!(wide == plain, "f32 is the default");
    let narrow = trained(&folder, "narrow", "--model-name ./small --dtype bf16");
    assert!(wide != narrow);
    let text = String::from_utf8_lossy(&narrow);
    assert!(text.contains("dtype") && text.contains("bf16"), "the recipe names the type");
    let output = run_line(&folder, "eval --checkpoint chk/narrow.safetensors --count 20 --json");
    assert!(output.status.success(), "{}", output.stderr);
}

#[test]
fn an_unknown_architecture_is_refused_with_the_known_ones() {
    let folder = Folder::new();
    folder.copy_fixture("llama-grouped", "other");
    let config = String::from_utf8(folder.read("other/config.json")).unwrap();
    folder.write("other/config.json", config.replace("\"llama\"", "\"gemma2\""));
    let output = run_line(&folder, "hidden --model ./other --ids 1,2,3");
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("`gemma2`") && output.stderr.contains("qwen3"), "{}", output.stderr);
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_loaded() {
    let folder = Folder::new();
    let output = run_line(&folder, "bench step --model synthetic:xl --positions 1000000 --device cpu");
    assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("GiB are free") && output.stderr.contains("hint:"), "{}", output.stderr);
}
