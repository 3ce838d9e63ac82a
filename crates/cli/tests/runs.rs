//! What belongs to one run: its folder and its record, how it is continued without its configuration, how it ends early.

mod common;

use common::run::{arguments, bytes, kill, newest_step, run_line, succeed, succeed_line, wait_for};
use common::{Folder, Output, check};
use rustix::process::Signal;
use serde_json::Value;

const TINY: &str = "--num-epochs 2 --num-batches 3 --batch-size 8 --micro-batch-size 4";

/// Long enough to be stopped in the middle.
const LONG: &str =
    "--num-epochs 40 --num-batches 50 --checkpoint-every 35 --batch-size 20 --micro-batch-size 4 --log-every 7";

/// The exit code of a run that was stopped.
const STOPPED: i32 = 130;

/// The records of a run's `metrics.jsonl` of one kind.
fn records(folder: &Folder, run: &str, kind: &str) -> Vec<Value> {
    let text = String::from_utf8(folder.read(&format!("chk/{run}/metrics.jsonl"))).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|record| record["kind"] == kind).collect()
}

/// What of a record does not depend on the clock.
fn timeless(records: &[Value], keys: &[&str]) -> Vec<Vec<Value>> {
    records.iter().map(|record| keys.iter().map(|key| record[key].clone()).collect()).collect()
}

#[test]
fn a_finished_run_is_replaced_by_its_own_configuration_only() {
    let folder = Folder::new();
    folder.copy_fixture("small-f32", "model");
    let run = |stage: &str, more: &str| folder.run(&arguments(stage, TINY, &format!("--run-id mine {more}")));
    check("the first", &run("nn", ""), 0, &[]);
    let first = folder.contents();
    let refused = |output: Output, said: &[&str]| {
        check("another", &output, 1, &[&["another configuration", "chk/mine", "hint:", "--run-id"], said].concat());
        for (path, bytes) in &first {
            assert!(path.ends_with("lock") || std::fs::read(path).ok().as_ref() == Some(bytes), "{}", path.display());
        }
    };
    refused(run("text", ""), &["stage: the checkpoint has nn, the configuration text"]);
    refused(run("nn", "--seed 9"), &["seed: the checkpoint has 0, the configuration 9"]);
    let longer = folder.run(&arguments("nn", "--num-epochs 3 --num-batches 3", "--micro-batch-size 4 --run-id mine"));
    refused(longer, &["num_epochs: the checkpoint has 2", "--resume auto"]);
    refused(run("nn", "--model-name model"), &["model_name: the checkpoint has demo"]);
    // The same again, with another number of workers: the record is the new run's alone.
    let again = run("nn", "--workers 1 --log-every 2");
    check("the same", &again, 0, &["replacing the finished run"]);
    assert_eq!(timeless(&records(&folder, "mine", "epoch"), &["epoch", "steps", "world"]), [[1, 3, 1], [2, 3, 1]]);
    let steps = records(&folder, "mine", "step");
    assert_eq!(timeless(&steps, &["step", "run_id"]), [2u64, 4, 6].map(|step| vec![Value::from(step), "mine".into()]));
    let time = steps[0]["time"].as_str().unwrap_or_default();
    assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
}

#[test]
fn a_stopped_run_goes_on_without_its_configuration() {
    let folder = Folder::new();
    succeed(&folder, "nn", LONG, "--run-id whole");
    let losses = |run: &str| timeless(&records(&folder, run, "epoch"), &["epoch", "step", "steps", "loss"]);
    let steps = |run: &str| timeless(&records(&folder, run, "step"), &["step", "loss", "lr"]);

    // By the clock …
    let limited = |limit: &str| folder.run(&arguments("nn", LONG, &format!("--run-id clock --max-time {limit}")));
    let mut output = limited("1s");
    // A slow machine may not have made a step by then.
    for limit in ["2s", "4s", "8s", "16s"] {
        if output.stderr.contains("no checkpoint was written") {
            output = limited(limit);
        }
    }
    check("max_time", &output, STOPPED, &["max_time is over", "stopped at step", "; wrote chk/clock/step-"]);
    let command = output.stderr.split("continue with: numalign ").nth(1).and_then(|rest| rest.lines().next());
    let command = command.unwrap_or_else(|| panic!("a whole command: {output}"));
    assert_eq!(command, "launch --run-id clock --resume auto");
    // … and by hand, in the middle of an epoch.
    succeed_line(&folder, &format!("{command} --no-eval --max-time 10min --workers 3"));
    assert!(bytes(&folder, "clock") == bytes(&folder, "whole"));
    let mut launcher = folder.spawn(&arguments("nn", LONG, "--run-id hand"));
    let chk = folder.path().join("chk/hand");
    wait_for("a checkpoint", || newest_step(&chk) >= 70);
    kill(launcher.id() as i32, Signal::INT);
    check("Ctrl-C", &launcher.wait(), STOPPED, &["; wrote chk/hand/step-", "launch --run-id hand --resume auto"]);
    succeed_line(&folder, "launch --run-id hand --resume auto --no-eval");
    assert!(bytes(&folder, "hand") == bytes(&folder, "whole"));
    // The record is that of a run that was never stopped.
    for run in ["clock", "hand"] {
        assert_eq!(losses(run), losses("whole"), "{run}");
        assert_eq!(steps(run), steps("whole"), "{run}");
    }
    // Without the folder's own file the checkpoint's recipe is enough.
    std::fs::remove_file(folder.path().join("chk/hand/config.yaml")).unwrap();
    let grown = succeed_line(&folder, "launch --run-id hand --resume auto --no-eval --num-epochs 61");
    assert!(grown.stderr.contains("continuing chk/hand/step-00003000"), "{grown}");
    // A setting that contradicts is refused, with both values.
    let refused = run_line(&folder, "launch --run-id whole --resume auto --lr 0.5");
    check("another rate", &refused, 1, &["lr: the checkpoint has 0.003, the configuration 0.5"]);
    let refused = run_line(&folder, "launch --run-id whole --resume yes");
    check("no file", &refused, 1, &["yes", "auto or a checkpoint", "hint:"]);
}

#[test]
fn projectors_of_another_base_are_refused_before_a_worker_starts() {
    let folder = Folder::new();
    folder.copy_fixture("small-f32", "model");
    succeed(&folder, "nn", TINY, "--run-id demo");
    let load = "--no-eval --model-path-load chk/demo.safetensors --run-id other";
    let refused = run_line(&folder, &format!("launch nn {TINY} {load} --model-name model"));
    let said = ["chk/demo.safetensors belongs to the model demo", "model_name is model", "hint:"];
    check("another base", &refused, 1, &said);
    assert!(!refused.stderr.contains("coordinator on"), "{refused}");
    // Its own base is none.
    succeed_line(&folder, &format!("launch nn {TINY} {load}"));
}

#[test]
fn a_worker_without_work_is_told_what_would_give_it_some() {
    let folder = Folder::new();
    let output = succeed(&folder, "nn", "--num-epochs 1 --num-batches 2", "");
    assert!(
        output.stderr.contains("1 of 2 workers has no work") && output.stderr.contains("micro_batch_size 4"),
        "{output}"
    );
}

#[test]
fn the_last_lines_are_the_result_and_the_next_command() {
    let folder = Folder::new();
    let output = succeed_line(&folder, &format!("launch text {TINY} --eval-count 50 --run-id poor"));
    let last = output.stdout.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("result: error ") && last.contains("; constant ") && last.contains("50 held-out"),
        "{output}"
    );
    assert!(!output.stdout.contains("by decile"), "{output}");
    // Six steps are no training.
    assert!(output.stderr.contains("no better than the constant predictor; try --solver exact"), "{output}");
    let next = output.stderr.split("next: numalign ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let (command, input) = next.split_once(" '").expect("a quoted text");
    let asked = folder.run(&[&command.split(' ').collect::<Vec<_>>()[..], &[input.trim_end_matches('\'')]].concat());
    assert!(asked.status.success() && asked.stdout.trim().parse::<f64>().is_ok(), "{asked}");
    let detailed = succeed_line(&folder, "eval --checkpoint chk/poor.safetensors --count 50 --details");
    assert!(detailed.stdout.contains("by decile") && detailed.stdout.contains("worst samples"), "{detailed}");
}
