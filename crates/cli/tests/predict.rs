//! `predict`: numbers as people write them, inputs that look wrong, and the rows of files.

mod common;

use std::path::Path;

use common::run::{json, run_line, succeed};
use common::{Folder, Output, check, fixtures};
use serde_json::Value;

const TINY: &str = "--num-epochs 1 --num-batches 2 --run-id";

fn trained(stages: &[&str]) -> Folder {
    let folder = Folder::new();
    for stage in stages {
        succeed(&folder, stage, TINY, stage);
    }
    folder
}

fn predict(folder: &Folder, stage: &str, inputs: &[&str]) -> Output {
    folder.run(&[&["predict", "--checkpoint", &format!("chk/{stage}.safetensors")], inputs].concat())
}

/// Its standard output as JSON lines.
fn rows(output: &Output) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {output}"));
    output.stdout.lines().map(parse).collect()
}

#[test]
fn numbers_are_read_as_people_write_them() {
    let folder = trained(&["nn", "mixed"]);
    let answers = predict(&folder, "nn", &["12.5", "12.5 %", "$12.50", "<num>12.5</num>", "$$12.5&& kg", "1.25e1"]);
    assert!(answers.status.success() && answers.stderr.is_empty(), "{answers}");
    let lines: Vec<&str> = answers.stdout.lines().collect();
    assert!(lines.len() == 6 && lines.iter().all(|line| *line == lines[0]), "{answers}");
    let question = |text: &str| predict(&folder, "mixed", &[text]);
    let marked = question("Which is less, $$1,000&& or $$8&&?");
    assert_eq!(marked.stdout, question("Which is less, <num>1000</num> or <num>8</num>?").stdout);
    assert!(marked.stderr.contains("1000 lies outside the trained range from 0 to 100"), "{marked}");
    let refused = predict(&folder, "nn", &["1.234,50"]);
    check("a decimal comma", &refused, 2, &["`1.234,50`", "a comma groups digits by three", "dataset.decimal_comma"]);
}

#[test]
fn what_looks_wrong_is_said() {
    let folder = trained(&["nn", "text", "mixed"]);
    let outside = predict(&folder, "nn", &["500"]);
    check("outside", &outside, 0, &["warning: `500`: 500 lies outside the trained range from 0 to 100"]);
    let eaten = "The invoice total is 12129123.50&& euros";
    check("eaten", &predict(&folder, "mixed", &[eaten]), 2, &["no number in it is marked", "single quotes", "<num>"]);
    check("eaten", &predict(&folder, "nn", &["1212912.5&&"]), 2, &["not a decimal number", "single quotes"]);
    check("eaten", &predict(&folder, "text", &[eaten]), 0, &["the `&&` at byte 32 closes nothing", "single quotes"]);
    check("not closed", &predict(&folder, "text", &["Total $$12.50"]), 0, &["the `$$` at byte 6 has no closing `&&`"]);
    check("not closed", &predict(&folder, "mixed", &["Total $$12.50"]), 2, &["no closing", "hint:"]);
    check("no number", &predict(&folder, "mixed", &["How are you?"]), 2, &["no number in it is marked"]);
    check("a lone mark", &predict(&folder, "mixed", &["$$5&& && $$7&&"]), 0, &["closes nothing"]);
}

#[test]
fn rows_of_a_file_come_back_in_order_with_a_prediction_each() {
    let folder = trained(&["text"]);
    let ask = |more: &str| run_line(&folder, &format!("predict --checkpoint chk/text.safetensors {more}"));
    let alone = |text: &str| predict(&folder, "text", &[text]).stdout.trim().parse::<f64>().unwrap();
    // More rows than pass through the model at once, so that several batches meet.
    let line = |id: usize| format!("{{\"id\": {id}, \"tags\": [1, {{}}], \"input\": \"text {id}\"}}\n");
    folder.write("in.jsonl", (0..300).map(line).collect::<String>());
    let output = ask("--file in.jsonl");
    assert!(output.status.success(), "{output}");
    let answered = rows(&output);
    assert_eq!(answered.len(), 300);
    for (id, row) in answered.iter().enumerate() {
        assert_eq!((row["id"].as_u64(), &row["tags"]), (Some(id as u64), &serde_json::json!([1, {}])));
    }
    for id in [0, 127, 128, 299] {
        assert_eq!(answered[id]["prediction"].as_f64(), Some(alone(&format!("text {id}"))), "row {id}");
    }
    // The same rows in other formats: the same predictions.
    let predictions: Vec<String> = answered.iter().map(|row| row["prediction"].to_string()).collect();
    folder.write("in.csv", format!("id,input\n{}", (0..300).map(|id| format!("{id},text {id}\n")).collect::<String>()));
    let output = ask("--file in.csv --out out.csv");
    assert!(output.status.success() && output.stdout.is_empty(), "{output}");
    let written = String::from_utf8(folder.read("out.csv")).unwrap();
    let mut lines = written.lines();
    assert_eq!(lines.next(), Some("id,input,prediction,error"));
    for (id, (line, prediction)) in lines.zip(&predictions).enumerate() {
        let number: f64 = prediction.parse().unwrap();
        assert_eq!(line, format!("{id},text {id},{number},"));
    }
    folder.write("in.txt", (0..300).map(|id| format!("text {id}\n")).collect::<String>());
    let output = ask("--file in.txt");
    let plain: Vec<String> = rows(&output).iter().map(|row| row["prediction"].to_string()).collect();
    assert_eq!(plain, predictions);
    let piped = folder
        .spawn_shell("head -n 3 in.txt | \"$0\" \"$@\"", &["predict", "--checkpoint", "chk/text.safetensors", "-"])
        .wait();
    assert_eq!(rows(&piped)[2]["input"], "text 2", "{piped}");
    // Parquet comes back as JSONL.
    let table = fixtures().join("tables/invoices.parquet");
    let output = ask(&format!("--file {}", table.display()));
    let first = &rows(&output)[0];
    assert_eq!((&first["item"], &first["quantity"]), (&"chair".into(), &40.into()), "{output}");
    assert_eq!(first["prediction"].as_f64(), Some(alone("40 x chair at 86.86 euros")));
    // Or as Parquet, its columns as they were; and that once more, with the predictions replaced.
    let answered = output.stdout;
    for (from, to) in [(table.to_str().unwrap(), "once.parquet"), ("once.parquet", "twice.parquet")] {
        let output = ask(&format!("--file {from} --out {to}"));
        assert!(output.status.success() && output.stdout.is_empty(), "{output}");
    }
    assert_eq!(ask("--file twice.parquet").stdout, answered);
    let output = ask("--file in.csv --out csv.parquet");
    assert!(output.status.success(), "{output}");
    let back = ask("--file csv.parquet --out back.csv");
    assert!(back.status.success(), "{back}");
    assert_eq!(folder.read("back.csv"), written.into_bytes());
    check("no columns", &ask("--file in.jsonl --out out.parquet"), 2, &["no columns that all rows share", "hint:"]);
}

#[test]
fn a_bad_row_is_marked_and_the_others_are_answered() {
    let folder = trained(&["mixed"]);
    let ask = |more: &str| run_line(&folder, &format!("predict --checkpoint chk/mixed.safetensors {more}"));
    let lines = [
        r#"{"input": "$$5&& or $$1,000&&?"}"#,
        r#"{"input": "$$1,5&&?"}"#,
        r#"{"text": "$$5&&"}"#,
        "not JSON",
        r#"{"input": "no number"}"#,
        r#"{"input": "<num>7</num>?"}"#,
    ];
    folder.write("in.jsonl", lines.join("\n"));
    let output = ask("--file in.jsonl --out out.jsonl");
    check("bad rows", &output, 1, &["4 of 6 rows have no prediction", "1 row has a number outside", "hint:"]);
    let written = String::from_utf8(folder.read("out.jsonl")).unwrap();
    let answered: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is_answered: Vec<bool> = answered.iter().map(|row| row["prediction"].is_f64()).collect();
    assert_eq!(is_answered, [true, false, false, false, false, true], "{written}");
    let errors: Vec<&str> = answered.iter().filter_map(|row| row["error"].as_str()).collect();
    for (error, said) in errors.iter().zip(["decimal_comma", "missing column \"input\"", "bad JSON", "no number"]) {
        assert!(error.contains(said), "{error}");
    }
    folder.write("in.csv", "input,id\n$$5&& or $$7&&?,1\nnone,2\n");
    let output = ask("--file in.csv");
    check("a bad row of CSV", &output, 1, &["1 of 2 rows"]);
    assert!(output.stdout.lines().nth(2).is_some_and(|line| line.starts_with("none,2,,no number")), "{output}");
    // What cannot be read at all.
    check("no file", &ask("--file missing.csv"), 1, &["missing.csv", "hint:"]);
    check("itself", &ask("--file in.csv --out ./in.csv"), 2, &["is the input too", "hint:"]);
    assert!(Path::new(&folder.path().join("in.csv")).metadata().unwrap().len() > 0);
    check("both", &ask("--file in.csv 12"), 2, &["cannot be used with"]);
    let asked = json(&ask("--json $$5&&"));
    assert_eq!(asked["predictions"][0]["input"], "$$5&&");
}
