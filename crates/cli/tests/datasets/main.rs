//! Datasets of one's own: formats, templates, held-out rows, ranges, and files that are odd or wrong.

#[path = "../common/mod.rs"]
mod common;

mod formats;
mod held_out;
mod odd_files;

use common::{Folder, Output, fixtures};

/// A run on the rows of `testdata/tables`, with evaluations on its held-out rows.
const RUN: &str = "\
dataset:
  input: \"{item}: $${quantity}&& at $${price}&& euros\"
num_epochs: 4
batch_size: 8
micro_batch_size: 4
eval_every: 1
checkpoint_every: 5
keep_checkpoints: 100
lr: 0.01
";

/// A folder with the tables and `run.yaml`.
fn with_tables() -> Folder {
    let folder = Folder::new();
    for name in ["invoices.jsonl", "invoices.csv", "invoices.parquet"] {
        folder.write(name, std::fs::read(fixtures().join("tables").join(name)).expect("a fixture"));
    }
    folder.write("run.yaml", RUN);
    folder
}

/// The command line of a launch of `run.yaml`; `more` is separated by blanks.
fn launch<'a>(file: &'a str, run: &'a str, more: &'a str) -> Vec<&'a str> {
    let mut words = vec!["launch", "--no-eval", "--config", "run.yaml", "--dataset.file", file, "--run-id", run];
    words.extend(more.split_whitespace());
    words
}

/// A launch that has to succeed.
fn succeed(folder: &Folder, file: &str, run: &str, more: &str) -> Output {
    let output = folder.run(&launch(file, run, more));
    assert!(output.status.success(), "{run}: {output}");
    output
}
