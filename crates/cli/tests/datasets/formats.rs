//! The promise with a dataset: the same bytes for JSONL, CSV and Parquet, for any number of workers, after a kill and a resume.

use std::sync::OnceLock;

use rustix::process::Signal;

use super::common::run::{bytes, hit_at_steps, json, newest_step, wait_for};
use super::{Folder, launch, succeed, with_tables};

/// The result of the undisturbed run on the JSONL file with two workers, and what was said.
fn reference() -> &'static (Vec<u8>, String) {
    static RESULT: OnceLock<(Vec<u8>, String)> = OnceLock::new();
    RESULT.get_or_init(|| {
        let folder = with_tables();
        let output = succeed(&folder, "invoices.jsonl", "reference", "");
        (bytes(&folder, "reference"), output.stderr)
    })
}

#[test]
fn formats_and_worlds_give_the_same_bytes() {
    let (expected, said) = reference();
    for words in [
        "stage mixed: the inputs of the dataset have marked numbers",
        "from the targets of",
        "60 rows,",
        "of them held out",
        "passes over the training rows",
    ] {
        assert!(said.contains(words), "`{words}`: {said}");
    }
    let folder = with_tables();
    for (file, workers) in [("invoices.csv", "1"), ("invoices.parquet", "3")] {
        succeed(&folder, file, file, &format!("--workers {workers}"));
        assert!(bytes(&folder, file) == *expected, "{file} with {workers} workers");
    }
}

#[test]
fn a_kill_and_a_resume_change_no_byte() {
    let (expected, _) = reference();
    let folder = with_tables();
    let mut launcher = folder.spawn(&launch("invoices.csv", "killed", "--workers 3"));
    let checkpoints = folder.path().join("chk/killed");
    hit_at_steps(launcher.id(), "worker --coordinator", Signal::KILL, &checkpoints, [5]);
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    assert!(bytes(&folder, "killed") == *expected, "a worker was killed");

    let from = "--resume chk/killed/step-00000010.safetensors";
    succeed(&folder, "invoices.parquet", "resumed", from);
    assert!(bytes(&folder, "resumed") == *expected, "resumed from another format");
    // A key that is not given is the checkpoint's, not the default that a fresh run would have.
    folder.write("run.yaml", "num_epochs: 4\nbatch_size: 8\nmicro_batch_size: 4\neval_every: 1\nlr: 0.01\n");
    succeed(&folder, "invoices.jsonl", "again", from);
    assert!(bytes(&folder, "again") == *expected, "resumed without the template");
}

#[test]
fn a_ridge_chosen_in_folds_gives_the_same_bytes() {
    const EXACT: &str = "--solver exact --train-input-projection false --eval-every 0";
    let folder = with_tables();
    succeed(&folder, "invoices.jsonl", "whole", EXACT);
    let whole = bytes(&folder, "whole");
    let inspect = json(&folder.run(&["inspect", "chk/whole.safetensors", "--json"])).to_string();
    assert!(inspect.contains("\"ridge_folds\":10"), "{inspect}");
    for workers in [1, 3] {
        let run = format!("with-{workers}");
        succeed(&folder, "invoices.csv", &run, &format!("{EXACT} --workers {workers}"));
        assert!(bytes(&folder, &run) == whole, "{workers} workers");
    }
    let from = "--resume chk/whole/step-00000010.safetensors";
    succeed(&folder, "invoices.parquet", "resumed", &format!("{EXACT} {from}"));
    assert!(bytes(&folder, "resumed") == whole, "resumed in the middle of the round");
    // A checkpoint from before there were folds has none, and goes on without.
    succeed(&folder, "invoices.csv", "eighth", &format!("{EXACT} --ridge-folds 0"));
    assert!(bytes(&folder, "eighth") != whole);
    succeed(&folder, "invoices.csv", "older", &format!("{EXACT} {}", from.replace("whole", "eighth")));
    assert!(bytes(&folder, "older") == bytes(&folder, "eighth"));
}

#[test]
fn a_checkpoint_says_and_proves_its_split() {
    let folder = with_tables();
    folder.write("chk/run.safetensors", &reference().0);
    let verify = ["verify", "chk/run.safetensors", "--json", "--dataset", "invoices.csv"];
    let proof = json(&folder.run(&verify));
    assert_eq!(proof["held_out"], "not trained on", "{proof}");
    let held_out = proof["held_out_rows"].as_u64().expect("a number");
    assert!((1..30).contains(&held_out), "{proof}");

    let unproven = folder.run(&["verify", "chk/run.safetensors"]);
    assert_eq!(unproven.status.code(), Some(1), "{unproven}");
    assert!(unproven.stderr.contains("unproven") && unproven.stderr.contains("--dataset"), "{unproven}");

    let inspect = json(&folder.run(&["inspect", "chk/run.safetensors", "--json"]));
    let text = inspect.to_string();
    for part in ["held_out_digest", "train_digest", "input_ranges", "$${quantity}&&"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn without_a_dataset_nothing_is_added() {
    let folder = Folder::new();
    let output = folder.run(&["launch", "nn", "--no-eval", "--num-epochs", "1", "--workers", "1"]);
    assert!(output.status.success(), "{output}");
    let text = json(&folder.run(&["inspect", "chk/nn.safetensors", "--json"])).to_string();
    for part in ["held_out", "input_ranges", "eval_share", "\"split\""] {
        assert!(!text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_coordinator_that_starts_again_needs_no_file() {
    let (expected, _) = reference();
    let folder = with_tables();
    let mut launcher = folder.spawn(&launch("invoices.csv", "gone", "--workers 2 --chaos slow=200"));
    let checkpoints = folder.path().join("chk/gone");
    wait_for("a checkpoint", || newest_step(&checkpoints) >= 5);
    std::fs::remove_file(folder.path().join("invoices.csv")).expect("the file");
    hit_at_steps(launcher.id(), "coordinator --listen", Signal::KILL, &checkpoints, [5]);
    let output = launcher.wait();
    assert!(output.status.success() && output.stderr.contains("starting it again"), "{output}");
    assert!(bytes(&folder, "gone") == *expected, "the rows came from the launcher");
}
