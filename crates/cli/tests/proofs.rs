//! What can be proven afterwards and watched meanwhile: `verify`, `replay` and `status`, on real runs.

mod common;

use std::path::Path;

use common::Folder;
use common::run::{json, parsed, succeed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SHORT: &str = "--num-epochs 3 --num-batches 10 --batch-size 12 --micro-batch-size 4 --mixed-max-numbers 4 \
                     --checkpoint-every 7 --keep-checkpoints 100 --lr 0.01";

fn state_digest(folder: &Folder, file: &str) -> Value {
    json(&folder.run(&["inspect", file, "--json"]))["state_digest"].clone()
}

#[test]
fn verify_proves_every_stage_and_names_what_it_compared() {
    let folder = Folder::new();
    for stage in ["nn", "text", "mixed"] {
        succeed(&folder, stage, SHORT, &format!("--run-id {stage}"));
        for (step, file) in
            [(30, format!("chk/{stage}.safetensors")), (14, format!("chk/{stage}/step-00000014.safetensors"))]
        {
            let output = folder.run(&["verify", &file]);
            assert!(output.status.success(), "{output}");
            assert_eq!(output.stdout.lines().count(), 1, "{output}");
            let samples = format!("{step} steps took samples 0 to {} (exclusive) once each, in order", 12 * step);
            assert!(output.stdout.contains(&samples), "{output}");
            assert!(output.stdout.contains("frozen model demo matches"), "{output}");
            let said = json(&folder.run(&["verify", &file, "--json", "--no-base"]));
            assert_eq!(said["ok"], true);
            assert_eq!(said["samples"], 12 * step);
            assert_eq!(said["base"], "skipped");
            assert_eq!(said["state_digest"], state_digest(&folder, &file));
        }
    }
}

#[test]
fn verify_refuses_a_run_that_took_other_samples() {
    let folder = Folder::new();
    succeed(&folder, "nn", SHORT, "--run-id nn");
    let path = folder.path().join("chk/nn.safetensors");
    let mut checkpoint = numalign_checkpoint::Checkpoint::read(&path).expect("a checkpoint");
    // A step was taken twice: the file is whole, and so is its state.
    let recipe = checkpoint.identity.recipe.clone();
    let stream = numalign_data::SampleStream::generated(&recipe, numalign_data::Domain::Train).expect("a stream");
    let mut ledger = numalign_data::SampleDigest::start();
    ledger.extend(&stream, &recipe, 0..29);
    ledger.extend(&stream, &recipe, 28..29);
    checkpoint.sample_digest = ledger.to_hex();
    folder.write("repeated.safetensors", checkpoint.to_bytes());
    let output = folder.run(&["verify", "repeated.safetensors"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("samples 0 to 360") && output.stderr.contains("hint:"), "{output}");
    let output = folder.run(&["verify", "repeated.safetensors", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert_eq!(parsed(&output)["ok"], false);

    // A flipped bit is found before anything is recomputed.
    let mut bytes = folder.read("chk/nn.safetensors");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    folder.write("flipped.safetensors", bytes);
    let output = folder.run(&["verify", "flipped.safetensors"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("damaged"), "{output}");

    // Another frozen model than the run's, and one that is not there.
    folder.copy_fixture("small-f32", "other-model");
    let output = folder.run(&["verify", "chk/nn.safetensors", "--model", "other-model"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("fingerprint"), "{output}");
    let mut elsewhere = numalign_checkpoint::Checkpoint::read(&path).expect("a checkpoint");
    elsewhere.identity.recipe.model_name = "somebody/some-model".to_owned();
    folder.write("elsewhere.safetensors", elsewhere.to_bytes());
    let output = folder.run(&["verify", "elsewhere.safetensors"]);
    assert!(output.status.success(), "{output}");
    assert!(output.stdout.contains("somebody/some-model is not at hand and was not compared"), "{output}");
}

#[test]
fn a_run_from_a_file_is_proven_with_that_file() {
    let folder = Folder::new();
    let output = folder.run(&["generate", "mixed", "--count", "50", "--out", "data.jsonl"]);
    assert!(output.status.success(), "{output}");
    succeed(&folder, "mixed", SHORT, "--run-id filed --dataset.file data.jsonl");
    let file = "chk/filed.safetensors";
    let output = folder.run(&["verify", file, "--dataset", "data.jsonl"]);
    assert!(output.status.success(), "{output}");
    let output = folder.run(&["verify", file]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("--dataset"), "{output}");
    let changed = String::from_utf8(folder.read("data.jsonl")).expect("text");
    let changed: Vec<&str> = changed.lines().rev().collect();
    folder.write("changed.jsonl", changed.join("\n"));
    for command in [vec!["verify", file], vec!["replay", "--checkpoint", "chk/filed/step-00000007.safetensors"]] {
        let output = folder.run(&[command, vec!["--dataset", "changed.jsonl"]].concat());
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains("is not the file") && output.stderr.contains("hint:"), "{output}");
    }
    let from = "chk/filed/step-00000007.safetensors";
    let said =
        json(&folder.run(&["replay", "--checkpoint", from, "--steps", "7", "--dataset", "data.jsonl", "--json"]));
    assert_eq!(said["steps"][6]["state_digest"], state_digest(&folder, "chk/filed/step-00000014.safetensors"));
}

#[test]
fn replay_gives_the_states_of_the_distributed_run() {
    let folder = Folder::new();
    for stage in ["nn", "text", "mixed"] {
        succeed(&folder, stage, SHORT, &format!("--run-id {stage} --workers 3"));
        let from = format!("chk/{stage}/step-00000007.safetensors");
        let output = folder.run(&["replay", "--checkpoint", &from, "--steps", "100", "--json"]);
        assert!(output.status.success(), "{output}");
        assert!(output.stderr.contains("the run ends after 23 more steps"), "{output}");
        let said = json(&output);
        assert_eq!(said["steps"].as_array().map(Vec::len), Some(23));
        for step in [14, 21, 28, 30] {
            let replayed = &said["steps"][step - 8];
            assert_eq!(replayed["step"], step);
            let file = format!("chk/{stage}/step-{step:08}.safetensors");
            assert_eq!(replayed["state_digest"], state_digest(&folder, &file), "{stage} step {step}");
        }
        let plain = folder.run(&["replay", "--checkpoint", &from]);
        let digest = said["steps"][0]["state_digest"].as_str().expect("a digest");
        assert!(plain.stdout.starts_with("step        8  loss ") && plain.stdout.contains(digest), "{plain}");
    }
    let output = folder.run(&["replay", "--checkpoint", "chk/nn.safetensors"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("holds the last of 30 steps") && output.stderr.contains("hint:"), "{output}");
}

/// The address that `launch` prints.
fn address(said: &str) -> String {
    let at = said.find("coordinator on http://").expect("an address") + "coordinator on ".len();
    said[at..].split_whitespace().next().expect("an address").to_owned()
}

#[test]
fn status_tells_of_workers_failures_and_recoveries() {
    let folder = Folder::new();
    let mut list = vec!["launch", "nn", "--no-eval", "--run-id", "watched", "--num-epochs", "120", "--workers", "2"];
    list.extend(["--num-batches", "50", "--batch-size", "16", "--micro-batch-size", "4"]);
    // A worker that waits for a core is not dead: what is counted below is what this test does.
    list.extend(["--dead-after", "60s"]);
    let mut launcher = folder.spawn(&list);
    launcher.wait_for_stderr("epoch    1/120");
    let url = address(&launcher.stderr());
    let status = || json(&folder.run(&["status", "--coordinator", &url, "--json"]));
    let before = status();
    assert_eq!(before["phase"], "training");
    assert_eq!(before["failures_total"], 0);
    assert_eq!(before["workers"].as_array().map(Vec::len), Some(2));
    assert!(before["steps_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{before}");
    let victim = before["workers"].as_array().and_then(|workers| workers.iter().find(|worker| worker["rank"] == 0));
    let pid = victim.expect("rank 0")["pid"].as_i64().expect("a pid") as i32;
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("it runs");

    // The dead worker's place is taken by one that knows that it was restarted.
    let until = std::time::Instant::now() + common::TIMEOUT;
    let after = loop {
        let now = status();
        let recovered = now["recoveries_total"] == 1;
        let replaced = now["workers"].as_array().is_some_and(|all| all.iter().any(|worker| worker["restarts"] == 1));
        if recovered && replaced {
            break now;
        }
        assert!(std::time::Instant::now() < until, "{now}");
    };
    let failure = &after["failures"][0];
    assert!(failure["text"].as_str().is_some_and(|text| text.contains(&format!("pid {pid}"))), "{after}");
    assert!(failure["recovery_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{after}");
    assert_eq!(after["failed_checkpoints"], 0);

    let plain = folder.run_env(&["status"], &[("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port(&url))]);
    assert!(plain.status.success(), "{plain}");
    for word in ["run watched: training", "restarts", "1 failures so far, 1 recovered from", "recovered in"] {
        assert!(plain.stdout.contains(word), "`{word}` is not in {plain}");
    }
    let mut watch = folder.spawn(&["status", "--coordinator", &url, "--watch", "--json"]);
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    assert!(output.stderr.contains("1 failure, 1 recovery: median"), "{output}");
    let watched = watch.wait();
    assert!(watched.status.success(), "{watched}");
    assert!(watched.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{watched}");
    let record = String::from_utf8(folder.read("chk/watched/metrics.jsonl")).expect("text");
    assert!(record.lines().any(|line| line.contains("\"kind\":\"failure\"")), "{record}");
    assert!(Path::new(&folder.path().join("chk/watched.safetensors")).exists());
}

fn port(url: &str) -> &str {
    url.rsplit(':').next().expect("a port")
}

#[test]
fn status_says_when_nobody_answers() {
    let folder = Folder::new();
    let output = folder.run(&["status", "--coordinator", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("no coordinator answers at http://127.0.0.1:9"), "{output}");
    assert!(output.stderr.contains("hint:"), "{output}");
    let output = folder.run(&["status", "--coordinator", "127.0.0.1"]);
    assert_eq!(output.status.code(), Some(2), "{output}");
}
