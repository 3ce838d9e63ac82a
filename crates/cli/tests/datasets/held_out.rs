//! Evaluations of a run with a dataset are on its held-out rows, each once, and on nothing else.

use std::collections::BTreeSet;

use super::common::run::json;
use super::{Folder, launch, succeed, with_tables};

fn rows_of(report: &serde_json::Value) -> BTreeSet<u64> {
    let rows = report["rows"].as_array().expect("row numbers");
    let numbers: BTreeSet<u64> = rows.iter().map(|row| row.as_u64().expect("a number")).collect();
    assert_eq!(numbers.len(), rows.len(), "each row once: {rows:?}");
    assert_eq!(report["samples"].as_u64(), Some(rows.len() as u64), "the true count");
    numbers
}

#[test]
fn every_evaluation_is_on_the_same_rows() {
    let folder = with_tables();
    let mut words = launch("invoices.csv", "run", "--json");
    words.retain(|word| *word != "--no-eval");
    let closing = json(&folder.run(&words));
    let held_out = rows_of(&closing);
    let eval = ["eval", "--json", "--checkpoint", "chk/run.safetensors", "--dataset"];
    let again = json(&folder.run(&[&eval[..], &["invoices.parquet"]].concat()));
    assert_eq!(again["mae"], closing["mae"]);
    assert_eq!(rows_of(&again), held_out);
    // The last evaluation during training is of the same projectors on the same rows.
    let inspect = json(&folder.run(&["inspect", "chk/run.safetensors", "--json"])).to_string();
    assert!(inspect.contains(&format!("\"samples\":{}", held_out.len())), "{inspect}");

    let fewer = json(&folder.run(&[&eval[..], &["invoices.csv", "--count", "2"]].concat()));
    assert_eq!(rows_of(&fewer).len(), 2);
    assert!(rows_of(&fewer).is_subset(&held_out));
    let ablated = json(&folder.run(&[&eval[..], &["invoices.csv", "--ablation"]].concat()));
    assert!(ablated["ablation"]["mae"].as_f64().is_some(), "{ablated}");
    let nothing = folder.run(&["eval", "--checkpoint", "chk/run.safetensors"]);
    assert!(!nothing.status.success() && nothing.stderr.contains("--dataset"), "{nothing}");

    // Another file has no held-out rows: each of its rows counts once.
    let header = "id,item,quantity,price,input,output\n";
    folder.write("other.csv", format!("{header}1,chair,2,3.5,x,7\n2,table,1,9,x,9\n3,lamp,4,2,x,8\n"));
    let other = json(&folder.run(&[&eval[..], &["other.csv"]].concat()));
    assert_eq!(rows_of(&other), BTreeSet::from([1, 2, 3]));
}

#[test]
fn a_file_of_held_out_rows_is_used_as_it_is() {
    let folder = with_tables();
    let csv = String::from_utf8(folder.read("invoices.csv")).expect("text");
    let (header, _) = csv.split_once('\n').expect("a header");
    folder.write("test.csv", format!("{header}\n70,chair,3,1.5,x,4.5\n71,lamp,2,30,x,60\n"));
    let output = succeed(&folder, "invoices.csv", "run", "--dataset.eval_file test.csv");
    assert!(output.stderr.contains("held-out rows: all 2 of test.csv"), "{output}");
    let verify = ["verify", "chk/run.safetensors", "--dataset", "invoices.csv"];
    let without = folder.run(&verify);
    assert!(without.status.success() && without.stdout.contains("stays unproven"), "{without}");
    let with = folder.run(&[&verify[..], &["--eval-file", "test.csv"]].concat());
    assert!(with.stdout.contains("none of the 2 held-out rows was trained on"), "{with}");

    let shared = folder.run(&launch("invoices.csv", "shared", "--dataset.eval_file invoices.csv --num-epochs 1"));
    assert!(shared.stderr.contains("warning: 60 of the 60 held-out rows are among the training rows"), "{shared}");
    let both = folder.run(&launch("invoices.csv", "both", "--dataset.eval_file test.csv --dataset.eval_share 0.2"));
    assert_eq!(both.status.code(), Some(2), "{both}");
    assert!(both.stderr.contains("dataset.eval_share"), "{both}");
}

#[test]
fn file_order_holds_out_nothing_and_says_so() {
    let folder = with_tables();
    let output = succeed(&folder, "invoices.csv", "order", "--dataset.shuffle false --eval-every 0 --num-epochs 1");
    assert!(output.stderr.contains("no row is held out") && output.stderr.contains("dataset.eval_share"), "{output}");
    let refused = folder.run(&launch("invoices.csv", "none", "--dataset.shuffle false"));
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("eval_every has nothing to evaluate on"), "{refused}");
}

#[test]
fn ranges_follow_the_rows_unless_they_are_given() {
    let folder = Folder::new();
    let rows: String = (0..40).map(|row| format!("{row},{}\n", 1000 + 100 * row)).collect();
    folder.write("rows.csv", format!("input,output\n{rows}"));
    let run = |more: &[&str]| {
        let tiny = ["launch", "--no-eval", "--workers", "1", "--num-epochs", "1", "--dataset.file", "rows.csv"];
        let output = folder.run(&[&tiny[..], more].concat());
        assert!(output.status.success(), "{output}");
        output.stderr
    };
    let auto = run(&["--run-id", "auto", "--min-val", "auto"]);
    assert!(auto.contains("stage nn: every input of the dataset is a number"), "{auto}");
    assert!(auto.contains("min_val 1") && auto.contains("numbers in the inputs: "), "{auto}");
    assert!(!auto.contains("warning"), "{auto}");
    let given = run(&["--run-id", "given", "--min-val", "0", "--max-val", "100"]);
    assert!(given.contains("rows have a value outside its range; the furthest is 4"), "{given}");
    let predicted = folder.run(&["predict", "--checkpoint", "chk/auto.safetensors", "5"]);
    assert!(predicted.status.success(), "{predicted}");
    let without = folder.run(&["launch", "nn", "--min-val", "auto"]);
    assert!(!without.status.success() && without.stderr.contains("set dataset.file, or give a number"), "{without}");
}
