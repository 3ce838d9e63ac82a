//! Evaluation during training (`eval_every`): the same bytes for any world, after kills and resumes; what it finds is what
//! `eval` finds; without it every byte is as it was.

mod common;

use common::Folder;
use common::run::{bytes, hit_at_steps, json, succeed};
use rustix::process::Signal;
use serde_json::Value;

const SHORT: &str = "--num-epochs 6 --num-batches 4 --batch-size 20 --micro-batch-size 4 --mixed-max-numbers 3 \
                     --checkpoint-every 4 --keep-checkpoints 100 --lr 0.01";

const ALTERNATE: &str = "--solver alternate --solve-every 8 --solve-samples 60";

/// Samples that do not divide evenly among five micro-batches.
const EVALUATED: &str = "--eval-every 2 --eval-samples 33";

/// Long enough that something can be killed in the middle, much of it evaluation.
const LONG: &str = "--num-epochs 200 --num-batches 3 --checkpoint-every 3 --batch-size 20 --micro-batch-size 4 \
                    --eval-every 1 --eval-samples 100";

fn history(folder: &Folder, file: &str) -> Vec<Value> {
    json(&folder.run(&["inspect", "--json", file]))["history"].as_array().expect("a history").clone()
}

fn steps(history: &[Value]) -> Vec<u64> {
    history.iter().map(|entry| entry["step"].as_u64().expect("a step")).collect()
}

#[test]
fn any_number_of_workers_evaluates_to_the_same_bytes() {
    let folder = Folder::new();
    for (name, stage, epochs, solver, expected) in [
        ("adam", "nn", 6, "", &[8, 16, 24][..]),
        ("rounds", "mixed", 6, ALTERNATE, &[8, 16, 24]),
        ("round", "mixed", 5, "--solver alternate --solve-samples 60", &[8, 16, 20]),
        ("pass", "text", 6, "--solver exact", &[24]),
    ] {
        let settings = SHORT.replace("epochs 6", &format!("epochs {epochs}"));
        for workers in [1, 2, 3] {
            let more = format!("{solver} {EVALUATED} --workers {workers} --run-id {name}-{workers}");
            succeed(&folder, stage, &settings, &more);
            assert!(bytes(&folder, &format!("{name}-{workers}")) == bytes(&folder, &format!("{name}-1")), "{name}");
        }
        let history = history(&folder, &format!("chk/{name}-1.safetensors"));
        assert_eq!(steps(&history), expected, "{name}: {history:?}");
        let asked = history[0]["questions"].as_u64().unwrap_or(0);
        assert_eq!(asked, if stage == "mixed" { 33 } else { 0 }, "{history:?}");
    }
}

#[test]
fn it_finds_what_eval_finds_and_keeps_the_best() {
    let folder = Folder::new();
    // So fast a rate that some evaluation in the middle is the best.
    let settings = SHORT.replace("--lr 0.01", "--lr 0.3 --shl false");
    succeed(&folder, "mixed", &settings, &format!("{EVALUATED} --run-id q"));
    let eval = |checkpoint: &str, more: &[&str]| {
        json(&folder.run(&[&["eval", "--json", "--count", "33", "--checkpoint", checkpoint], more].concat()))
    };
    let near = |ours: &Value, theirs: &Value| {
        let (ours, theirs) = (ours.as_f64().expect("a number"), theirs.as_f64().expect("a number"));
        assert!((ours - theirs).abs() <= 1e-6 * theirs.abs(), "{ours} and {theirs}");
    };
    let history = history(&folder, "chk/q.safetensors");
    for entry in &history {
        let found = eval(&format!("chk/q/step-{:08}.safetensors", entry["step"].as_u64().expect("a step")), &[]);
        near(&entry["mae"], &found["mae"]);
        near(&entry["mse"], &found["mse"]);
        let right = 100.0 * entry["right"].as_f64().expect("a count") / 33.0;
        assert_eq!(Some(right), found["right_numbers"]["right_percent"].as_f64());
    }
    let best = json(&folder.run(&["inspect", "--json", "chk/q.safetensors"]))["best"].clone();
    let lowest = history.iter().map(|entry| entry["mae"].as_f64().expect("a number")).fold(f64::INFINITY, f64::min);
    assert_eq!(best["mae"].as_f64(), Some(lowest));
    near(&best["mae"], &eval("chk/q.safetensors", &["--best"])["mae"]);
    let answer = |checkpoint: &str, more: &[&str]| {
        let question = "The list holds $$45.2&& and $$7.81&&: which is the smallest?";
        json(&folder.run(&[&["predict", "--json", "--checkpoint", checkpoint, question], more].concat()))
    };
    let at_best = format!("chk/q/step-{:08}.safetensors", best["step"].as_u64().expect("a step"));
    assert_eq!(answer("chk/q.safetensors", &["--best"]), answer(&at_best, &[]));

    let record = String::from_utf8(folder.read("chk/q/metrics.jsonl")).expect("text");
    let lines: Vec<Value> = record.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let evaluations: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "evaluation").collect();
    assert_eq!(evaluations.len(), 3, "{record}");
    assert_eq!(evaluations[0]["mae"], history[0]["mae"]);
    assert_eq!(evaluations[2]["best_step"], best["step"]);
}

/// The evaluation at the end of `launch` takes `eval_count` samples.
#[test]
fn the_closing_evaluation_takes_as_many_samples_as_asked() {
    let folder = Folder::new();
    let tiny = ["launch", "nn", "--workers", "1", "--num-epochs", "1", "--num-batches", "2"];
    let report = json(&folder.run(&[&tiny[..], &["--eval-count", "7", "--json"]].concat()));
    assert_eq!(report["samples"], 7);
}

#[test]
fn it_changes_no_projector_and_may_be_turned_on_and_off() {
    let folder = Folder::new();
    succeed(&folder, "nn", SHORT, "--run-id without");
    succeed(&folder, "nn", SHORT, &format!("{EVALUATED} --run-id with"));
    let inspect = |run: &str| json(&folder.run(&["inspect", "--json", &format!("chk/{run}.safetensors")]));
    assert_eq!(inspect("without")["projector_digest"], inspect("with")["projector_digest"]);
    assert_ne!(inspect("without")["state_digest"], inspect("with")["state_digest"]);
    assert!(inspect("without")["best"].is_null());

    // Resumed at an evaluated step and between two, with the same setting: the same bytes.
    for step in [4, 8, 12, 20] {
        let run = format!("from-{step}");
        let from = format!("{EVALUATED} --workers 3 --run-id {run} --resume chk/with/step-{step:08}.safetensors");
        succeed(&folder, "nn", SHORT, &from);
        assert!(bytes(&folder, &run) == bytes(&folder, "with"), "resumed at step {step}");
    }
    let resumed = |run: &str, from: &str, setting: &str| {
        succeed(&folder, "nn", SHORT, &format!("{setting} --run-id {run} --resume {from}"));
        assert_eq!(inspect(run)["projector_digest"], inspect("without")["projector_digest"]);
        steps(&history(&folder, &format!("chk/{run}.safetensors")))
    };
    assert_eq!(resumed("off", "chk/with/step-00000012.safetensors", ""), [8]);
    assert_eq!(resumed("on", "chk/without/step-00000012.safetensors", "--eval-every 3"), [12, 24]);
    // A last evaluation that was not made is left to do, where evaluations are wanted and only there. What was killed before
    // it has no final file.
    let again = |setting: &str| folder.run(&common::run::arguments("nn", SHORT, &format!("{setting} --run-id off")));
    let replaces = |setting: &str| {
        let output = again(setting);
        assert!(output.status.success() && output.stderr.contains("replacing the finished run"), "{output}");
    };
    replaces("");
    replaces(EVALUATED);
    replaces("");
    std::fs::remove_file(folder.path().join("chk/off.safetensors")).unwrap();
    let refused = again(EVALUATED);
    assert!(!refused.status.success() && refused.stderr.contains("unfinished run at step 24 of 24"), "{refused}");
    replaces("");
    // A finished run is evaluated where it stands.
    assert_eq!(resumed("late", "chk/without.safetensors", "--eval-every 6"), [24]);

    // The states of an evaluated run can be recomputed too.
    let replayed =
        json(&folder.run(&["replay", "--json", "--checkpoint", "chk/with/step-00000012.safetensors", "--steps", "8"]));
    let digest = |step: u64| inspect(&format!("with/step-{step:08}"))["state_digest"].clone();
    assert_eq!(replayed["steps"][3]["state_digest"], digest(16));
    assert_eq!(replayed["steps"][7]["state_digest"], digest(20));
    let verified = folder.run(&["verify", "chk/with.safetensors"]);
    assert!(verified.status.success(), "{verified}");

    let refused = folder.run(&["eval", "--checkpoint", "chk/without.safetensors", "--best"]);
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("--eval-every") && refused.stderr.contains("hint:"), "{refused}");
}

#[test]
fn kills_change_no_byte() {
    let folder = Folder::new();
    succeed(&folder, "nn", LONG, "--run-id reference");
    let reference = bytes(&folder, "reference");
    for victim in ["worker --coordinator", "coordinator --listen"] {
        let run = format!("killed-{}", &victim[..6]);
        let mut launcher = folder.spawn(&common::run::arguments("nn", LONG, &format!("--run-id {run}")));
        let chk = folder.path().join("chk").join(&run);
        let steps = (0..3).map(|time| 30 + 150 * time);
        hit_at_steps(launcher.id(), victim, Signal::KILL, &chk, steps);
        let output = launcher.wait();
        assert!(output.status.success(), "{run}: {}", output.stderr);
        assert!(bytes(&folder, &run) == reference, "{run}");
    }
}

/// Digests of final files as the build before evaluations existed wrote them; kernels give the same bits everywhere.
#[test]
fn without_it_every_byte_is_as_it_was() {
    let folder = Folder::new();
    succeed(&folder, "nn", SHORT, "--run-id nn");
    let file = bytes(&folder, "nn");
    assert_eq!(digest(&file), "4fad02e448fb7441e5c48839c897450b06d9f50474e80250c94e7f74e0a5b0b9");
    // The metadata of runs that read texts has a key more since: the tokenizer's fingerprint. The tensors are as they were.
    for (stage, solver, expected) in [
        ("mixed", ALTERNATE, "1ea9e2a4e271133b6d389c9d8641799cf4909f59357a0e416572609057f020d9"),
        ("text", "--solver exact", "4263ae839c1557f4eea1eea82154b41cb2b3fe98c62554c57193a41a0f9fbfdf"),
    ] {
        succeed(&folder, stage, SHORT, &format!("{solver} --run-id {stage}"));
        assert_eq!(digest(tensors(&bytes(&folder, stage))), expected, "{stage}");
    }
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// A safetensors file without its header.
fn tensors(file: &[u8]) -> &[u8] {
    let (length, rest) = file.split_first_chunk().expect("a length");
    &rest[u64::from_le_bytes(*length) as usize..]
}
