//! `numalign report`: a page of figures and pictures from a list of configurations, in real runs.

mod common;

use std::time::Duration;

use common::run::{children, kill, wait_for};
use common::{Folder, Output};
use rustix::process::Signal;
use serde_json::Value;

const NN: &str = "# Number to number, in a hurry.\nstage: nn\nnum_epochs: 2\nnum_batches: 5\neval_every: 1\n";
const MIXED: &str = "# The smallest of a few.\nstage: mixed\nnum_epochs: 2\nnum_batches: 5\nmixed_max_numbers: 3\n";

fn report(folder: &Folder, more: &[&str]) -> Output {
    folder.run(&[&["report", "list", "--count", "40", "--pictures", "svg", "--json"], more].concat())
}

fn rows(output: &Output) -> Vec<Value> {
    let said: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
    said["rows"].as_array().expect("rows").clone()
}

fn page(folder: &Folder) -> String {
    String::from_utf8(folder.read("report/report.md")).expect("text")
}

#[test]
fn a_report_has_a_row_for_each_and_does_not_repeat_itself() {
    let folder = Folder::new();
    folder.write("list/nn.yaml", NN);
    folder.write("list/mixed.yaml", MIXED);
    folder.write("list/passed-over.txt", "not a configuration");
    let output = report(&folder, &[]);
    assert!(output.status.success(), "{output}");
    let first = rows(&output);
    assert_eq!(first.iter().map(|row| row["name"].as_str()).collect::<Vec<_>>(), [Some("mixed"), Some("nn")]);
    for row in &first {
        assert_eq!(row["done"]["again"], true, "{row}");
        let metrics = &row["done"]["figures"]["metrics"];
        assert!(metrics["mae"].is_number() && metrics["ablation"]["mae"].is_number(), "{row}");
        assert_eq!(metrics["samples"], 40, "{row}");
    }
    let page = page(&folder);
    for part in ["| nn | nn | demo | adam | 80 | ", "min of up to 3", "Number to number, in a hurry.", "](mixed.svg)"] {
        assert!(page.contains(part), "`{part}` is not in\n{page}");
    }
    let picture = String::from_utf8(folder.read("report/nn.svg")).expect("text");
    assert!(picture.contains("training loss") && picture.contains("held out during training"), "{picture}");

    // Nothing changed: nothing is run. One changed: that one is. --fresh: all of them.
    let again = |more: &[&str]| {
        let output = report(&folder, more);
        assert!(output.status.success(), "{output}");
        rows(&output).iter().map(|row| row["done"]["again"].as_bool()).collect::<Vec<_>>()
    };
    assert_eq!(again(&[]), [Some(false), Some(false)]);
    folder.write("list/nn.yaml", format!("{NN}lr: 0.01\n"));
    assert_eq!(again(&[]), [Some(false), Some(true)]);
    assert_eq!(again(&["--fresh", "--num-epochs", "1"]), [Some(true), Some(true)]);
    let named = folder.run(&["report", "list/nn.yaml", "--num-epochs", "1", "--out", "report", "--count", "40"]);
    assert!(named.status.success() && named.stderr.contains("unchanged"), "{named}");
}

#[test]
fn one_that_fails_has_a_row_that_says_why() {
    let folder = Folder::new();
    folder.write("list/a-nowhere.yaml", "stage: nn\nmodel_name: /nowhere\n");
    folder.write("list/b-wrong.yaml", "stage: nn\nlr: -1\nbach_size: 3\n");
    folder.write("list/c-right.yaml", NN);
    let output = report(&folder, &[]);
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("2 of 3 configurations failed") && output.stderr.contains("hint:"), "{output}");
    let rows = rows(&output);
    assert!(rows[0]["failed"].as_str().is_some_and(|why| why.contains("/nowhere")), "{rows:?}");
    assert!(rows[1]["failed"].as_str().is_some_and(|why| why.contains("bach_size")), "{rows:?}");
    assert!(rows[2]["done"].is_object(), "{rows:?}");
    let page = page(&folder);
    assert!(page.contains("| failed: ") && page.contains("](c-right.svg)"), "{page}");

    for (line, words) in [
        (&["report", "nothing-here"][..], &["nothing-here"][..]),
        (&["report", "list/c-right.yaml", "list/c-right.yaml"], &["two configurations", "c-right", "hint:"]),
        (&["report", "chk"], &["no .yaml file", "hint:"]),
    ] {
        let output = folder.run(line);
        assert_ne!(output.status.code(), Some(0), "{output}");
        for word in words {
            assert!(output.stderr.contains(word), "`{word}` is not in {output}");
        }
    }
}

#[test]
fn a_stopped_report_leaves_no_process_and_goes_on_later() {
    let folder = Folder::new();
    folder.write("list/a.yaml", NN);
    folder.write("list/b.yaml", NN.replace("num_epochs: 2", "num_epochs: 100000"));
    let mut report = folder.spawn(&["report", "list", "--count", "40"]);
    report.wait_for_stderr("b …");
    let mut launch = Vec::new();
    wait_for("the training", || {
        launch = children(report.id(), "launch");
        launch.len() == 1 && children(launch[0] as u32, "worker --coordinator").len() == 2
    });
    let workers = children(launch[0] as u32, "worker --coordinator");
    kill(report.id() as i32, Signal::TERM);
    let output = report.wait_at_most(Duration::from_secs(60));
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("the report was stopped") && output.stderr.contains("hint:"), "{output}");
    wait_for("the workers' end", || {
        workers.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}/exe")).exists())
    });
    folder.write("list/b.yaml", NN);
    let output = folder.run(&["report", "list", "--count", "40"]);
    assert!(output.status.success() && output.stderr.contains("1/2 a:"), "{output}");
    assert!(output.stderr.lines().any(|line| line.contains("1/2 a:") && line.contains("unchanged")), "{output}");
}
