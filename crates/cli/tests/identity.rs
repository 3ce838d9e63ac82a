//! The promise: the same bytes in the final checkpoint, whatever the number of workers, whichever process was killed, whenever
//! the run was resumed. Real processes, real sockets, real `kill -9`.

mod common;

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::Folder;
use common::run::{arguments, bytes, children, hit_at_steps, kill, newest_step, succeed, wait_for};
use rustix::process::Signal;

const SHORT: &str = "--num-epochs 4 --num-batches 10 --batch-size 20 --micro-batch-size 4 --mixed-max-numbers 4 \
                     --checkpoint-every 7 --keep-checkpoints 100 --lr 0.01";

/// Long enough that something can be killed in the middle.
const LONG: &str = "--num-epochs 60 --num-batches 20 --checkpoint-every 10 --batch-size 20 --micro-batch-size 4";

/// The result of the undisturbed run of [`LONG`].
fn long_reference() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = Folder::new();
        succeed(&folder, "nn", LONG, "--run-id reference");
        bytes(&folder, "reference")
    })
}

#[test]
fn any_number_of_workers_gives_the_same_bytes() {
    let folder = Folder::new();
    for stage in ["nn", "text", "mixed"] {
        let mut first: Option<Vec<u8>> = None;
        for workers in [1, 2, 3, 5, 6] {
            let run = format!("{stage}-{workers}");
            succeed(&folder, stage, SHORT, &format!("--workers {workers} --run-id {run}"));
            let result = bytes(&folder, &run);
            match &first {
                None => first = Some(result),
                Some(first) => assert!(*first == result, "stage {stage} with {workers} workers"),
            }
        }
    }
}

#[test]
fn resuming_after_any_checkpoint_gives_the_same_bytes() {
    let folder = Folder::new();
    succeed(&folder, "nn", SHORT, "--run-id whole");
    let whole = bytes(&folder, "whole");
    let last = std::fs::read(folder.path().join("chk/whole/step-00000040.safetensors")).unwrap();
    assert!(whole == last, "the final file is the state after the last step");
    for step in [7, 21, 35] {
        let run = format!("from-{step}");
        let from = format!("chk/whole/step-{step:08}.safetensors");
        succeed(&folder, "nn", SHORT, &format!("--workers 3 --run-id {run} --resume {from}"));
        assert!(bytes(&folder, &run) == whole, "resumed at step {step}");
    }
    // A run of fewer epochs, made longer, is the longer run.
    succeed(&folder, "nn", SHORT.replace("epochs 4", "epochs 2").as_str(), "--run-id grown");
    succeed(&folder, "nn", SHORT, "--run-id grown --resume auto");
    assert!(bytes(&folder, "grown") == whole, "num_epochs grown on resume");
}

/// The recipe says so, a resume is held to it, and commands on the result follow it.
#[test]
fn products_in_bf16_give_the_same_bytes() {
    let folder = Folder::new();
    for stage in ["nn", "mixed"] {
        let rounded = format!("{SHORT} --arithmetic bf16");
        succeed(&folder, stage, &rounded, &format!("--workers 1 --run-id {stage}"));
        let whole = bytes(&folder, stage);
        for (run, more) in [
            (format!("{stage}-3"), "--workers 3".to_owned()),
            (format!("{stage}-21"), format!("--workers 2 --resume chk/{stage}/step-00000021.safetensors")),
        ] {
            succeed(&folder, stage, &rounded, &format!("{more} --run-id {run}"));
            assert!(bytes(&folder, &run) == whole, "{run}");
        }
        succeed(&folder, stage, SHORT, &format!("--run-id {stage}-f32"));
        assert!(bytes(&folder, &format!("{stage}-f32")) != whole, "other products, other bits");
        let exact = format!("{SHORT} --arithmetic f32");
        let from = format!("--run-id {stage}-f32-21 --resume chk/{stage}/step-00000021.safetensors");
        let refused = folder.run(&arguments(stage, &exact, &from));
        assert!(!refused.status.success() && refused.stderr.contains("arithmetic"), "{}", refused.stderr);
    }
    let inspected = folder.run(&["inspect", "chk/nn.safetensors"]);
    assert!(inspected.stdout.contains("bf16"), "{inspected}");
    for command in
        [&["eval", "--checkpoint", "chk/nn.safetensors", "--count", "16"][..], &["verify", "chk/nn.safetensors"]]
    {
        let output = folder.run(command);
        assert!(output.status.success(), "{output}");
    }
}

#[test]
fn killed_and_hung_processes_change_no_byte() {
    let folder = Folder::new();
    let reference = long_reference();
    for (victim, signal, times) in [
        ("worker --coordinator", Signal::KILL, 3),
        ("worker --coordinator", Signal::STOP, 1),
        ("coordinator --listen", Signal::KILL, 2),
    ] {
        let run = format!("{}-{}", &victim[..6], signal.as_raw());
        let mut launcher = folder.spawn(&arguments("nn", LONG, &format!("--run-id {run}")));
        let chk = folder.path().join("chk").join(&run);
        let steps = (0..times).map(|time| 20 + 250 * time);
        hit_at_steps(launcher.id(), victim, signal, &chk, steps);
        let output = launcher.wait();
        assert!(output.status.success(), "{run}: {}", output.stderr);
        assert!(bytes(&folder, &run) == reference, "{run}");
    }
}

#[test]
fn a_killed_launcher_leaves_no_child_and_its_run_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    let reference = long_reference();
    let launcher = folder.spawn(&arguments("nn", LONG, "--run-id cut"));
    let chk = folder.path().join("chk/cut");
    wait_for("a checkpoint", || newest_step(&chk) >= 50);
    let pids = children(launcher.id(), "numalign");
    assert_eq!(pids.len(), 3, "a coordinator and two workers");
    kill(launcher.id() as i32, Signal::KILL);
    wait_for("the children's end", || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists()));
    drop(launcher);

    let plain = folder.run(&arguments("nn", LONG, "--run-id cut"));
    assert_eq!(plain.status.code(), Some(1), "an unfinished run is not overwritten");
    assert!(plain.stderr.contains("--resume auto") && plain.stderr.contains("--run-id"), "{}", plain.stderr);
    succeed(&folder, "nn", LONG, "--run-id cut --resume auto");
    assert!(bytes(&folder, "cut") == reference);
    let again = succeed(&folder, "nn", LONG, "--run-id cut --resume auto");
    assert!(again.stderr.contains("finished"), "{}", again.stderr);
    assert!(bytes(&folder, "cut") == reference);
}

#[test]
fn an_interrupted_run_stops_within_five_seconds_with_a_checkpoint() {
    let folder = Folder::new();
    let reference = long_reference();
    let mut launcher = folder.spawn(&arguments("nn", LONG, "--run-id stopped"));
    let chk = folder.path().join("chk/stopped");
    wait_for("a checkpoint", || newest_step(&chk) >= 50);
    let since = Instant::now();
    kill(launcher.id() as i32, Signal::INT);
    let output = launcher.wait();
    assert!(since.elapsed() < Duration::from_secs(5), "it took {:?}", since.elapsed());
    assert_eq!(output.status.code(), Some(130), "{}", output.stderr);
    assert!(output.stderr.contains("stopped at step"), "{}", output.stderr);
    assert!(output.stderr.contains("; wrote chk/stopped/step-"), "{}", output.stderr);
    succeed(&folder, "nn", LONG, "--run-id stopped --resume auto --workers 5");
    assert!(bytes(&folder, "stopped") == reference);
}
