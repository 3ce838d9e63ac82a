//! Files that people really have: each is read, or refused in words with the place.

use super::common::{check, fixtures, words};
use super::{Folder, Output};

const TINY: &[&str] = &["launch", "--no-eval", "--workers", "1", "--num-epochs", "1", "--num-batches", "1"];

fn run(folder: &Folder, file: &str, more: &[&str]) -> Output {
    folder.run(&words(&[TINY, &["--run-id", "run", "--dataset.file", file], more]))
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("tables").join(name)).expect("a fixture")
}

/// Two good rows, so that the wrong one is found among others.
const CSV: &str = "input,output\n1,10\n2,20\n";
const JSONL: &str = "{\"input\": 1, \"output\": 10}\n{\"input\": 2, \"output\": 20}\n";

#[test]
fn wrong_files_are_refused_in_words() {
    let folder = Folder::new();
    let utf16: Vec<u8> = CSV.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let parquet = fixture("invoices.parquet");
    let csv = |rows: &str| format!("{CSV}{rows}").into_bytes();
    let jsonl = |rows: &str| format!("{JSONL}{rows}").into_bytes();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty.csv", Vec::new(), &["holds no samples"]),
        ("empty.jsonl", Vec::new(), &["holds no samples"]),
        ("header.csv", b"input,output\n".to_vec(), &["holds no samples"]),
        ("one.csv", b"input,output\n1,2\n".to_vec(), &["can be held out", "dataset.eval_share to 0"]),
        ("same.csv", b"input,output\n1,2\n1,2\n1,2\n".to_vec(), &["3 rows, and all of them say the same"]),
        ("utf16-mark.csv", [b"\xff\xfe".to_vec(), utf16.clone()].concat(), &["UTF-16", "save it as UTF-8"]),
        ("utf16.csv", utf16, &["UTF-16", "save it as UTF-8"]),
        ("latin1.csv", [CSV.as_bytes(), b"caf\xe9,3\n"].concat(), &["line 4", "UTF-8"]),
        (
            "latin1.jsonl",
            [JSONL.as_bytes(), b"{\"input\": \"caf\xe9\", \"output\": 1}\n"].concat(),
            &["line 3", "UTF-8"],
        ),
        ("packed.csv", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(), &["gzip", "gunzip"]),
        ("packed.jsonl", b"\x28\xb5\x2f\xfd\0\0\0\0".to_vec(), &["zstd"]),
        ("sheet.csv", b"PK\x03\x04\x14\0\x06\0".to_vec(), &["Excel", "export it as CSV"]),
        ("columns.csv", parquet.clone(), &["Parquet", "name it .parquet"]),
        ("text.parquet", CSV.as_bytes().to_vec(), &["cannot be read as Parquet"]),
        ("cut.parquet", parquet[..parquet.len() / 2].to_vec(), &["cannot be read as Parquet"]),
        ("nan.csv", csv("3,NaN\n"), &["line 4", "column \"output\"", "NaN"]),
        ("nan.jsonl", jsonl("{\"input\": 3, \"output\": NaN}\n"), &["line 3", "bad JSON"]),
        ("large.csv", csv("3,1e400\n"), &["line 4", "column \"output\"", "not finite"]),
        ("large.jsonl", jsonl("{\"input\": 1e400, \"output\": 3}\n"), &["line 3", "out of range"]),
        ("odd.parquet", fixture("odd.parquet"), &["missing column \"input\"", "whole, single"]),
        ("twice.csv", b"input,output,input\n1,2,3\n".to_vec(), &["two columns are called \"input\""]),
        ("twice.jsonl", jsonl("{\"input\": 1, \"input\": 2, \"output\": 3}\n"), &["line 3", "duplicate key \"input\""]),
        (
            "nested.jsonl",
            jsonl("{\"input\": {\"a\": 1}, \"output\": 3}\n"),
            &["line 3", "column \"input\" is an object"],
        ),
        ("list.jsonl", jsonl("{\"input\": 1, \"output\": [3]}\n"), &["line 3", "column \"output\" is a list"]),
        ("columnless.csv", b"text,label\na,1\n".to_vec(), &["missing column", "text, label", "dataset.input"]),
        ("case.csv", b"Input,Output\n1,2\n".to_vec(), &["missing column \"input\"; it has Input, Output"]),
        ("gap.csv", csv(",30\n"), &["line 4", "column \"input\" is empty", "dataset.missing"]),
        ("words.csv", csv("3,thirty\n"), &["line 4", "column \"output\" is \"thirty\""]),
        ("short.csv", csv("3\n"), &["line 4", "1 fields and the header 2"]),
        ("long.csv", csv("3,4,5\n"), &["line 4", "3 fields and the header 2"]),
        ("quote.csv", csv(&format!("\"3,30\n{}", "4,40\n".repeat(300_000))), &["line 4", "longer than", "quote"]),
        ("endless.jsonl", jsonl(&"x".repeat(2 << 20)), &["line 3", "longer than"]),
        ("login.csv", b"\n<!DOCTYPE html><html><body>Log in</body></html>".to_vec(), &["a web page", "download"]),
        ("lfs.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n".to_vec(), &["git lfs pull"]),
        ("array.json", b"[\n{\"input\": 1, \"output\": 2}\n]\n".to_vec(), &["line 1", "bad JSON", "jq -c '.[]'"]),
        ("array.jsonl", jsonl("[1, 2]\n"), &["line 3", "expected an object", "found a list"]),
        ("pretty.json", b"{\n  \"input\": 1,\n  \"output\": 2\n}\n".to_vec(), &["line 1", "bad JSON"]),
        ("hole.jsonl", jsonl("\n{\"input\": 3, \"output\": 30}\n"), &["line 3", "blank line"]),
        ("null.jsonl", jsonl("{\"input\": 3, \"output\": null}\n"), &["line 3", "column \"output\" is empty"]),
        ("flag.jsonl", jsonl("{\"input\": 3, \"output\": true}\n"), &["line 3", "column \"output\" is a boolean"]),
        ("marks.csv", csv("$$x&&,3\n"), &["line 4", "does not open a number"]),
    ];
    assert!(cases.len() + READ.len() >= 40, "{}", cases.len());
    for (name, bytes, said) in cases {
        folder.write(name, bytes);
        let output = run(&folder, name, &[]);
        check(name, &output, 1, &words(&[&["error:", "hint:"], said]));
        assert_eq!(output.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{output}");
    }
    for (file, said) in [(".", "it is a folder"), ("/dev/null", "it is a device"), ("absent.csv", "No such file")] {
        check(file, &run(&folder, file, &[]), 1, &["error:", said, "hint:"]);
    }
    folder.write("good.csv", CSV);
    for (template, said) in [
        ("{age} years", "missing column \"age\"; it has input, output"),
        ("$${input} years", "is not closed"),
        ("{input", "no closing"),
        ("$${input}&& {}", "names no column"),
    ] {
        check(template, &run(&folder, "good.csv", &["--dataset.input", template]), 1, &["error:", said, "hint:"]);
    }
}

/// Odd files that are read all the same, with what is said of them.
const READ: &[(&str, &str, &[&str], &str)] = &[
    ("excel.csv", "\u{feff}input;output\r\n1;10\r\n2;20\r\n3;30\r\n", &[], "stage nn"),
    ("declared.csv", "sep=|\r\ninput|output\r\n1,5;|10\r\n2,5;|20\r\n", &[], "stage text"),
    ("tabs.tsv", "input\toutput\na, b\t10\nc\t20\n", &[], "stage text"),
    ("bars.txt", "input|output\n\"a | b\"|10\nc|20\n", &[], "stage text"),
    ("chosen.csv", "input:output\na, b; c:10\nd, e; f:20\n", &["--dataset.separator", ":"], "stage text"),
    ("breaks.csv", "input,output\n\"a\nb $$1&&\",10\nc $$2&&,20\n", &[], "stage mixed"),
    (
        "extra.jsonl",
        "{\"id\": 7, \"input\": 1, \"output\": 2, \"tags\": [1]}\n{\"input\": 2, \"output\": 3}\n\n\n",
        &[],
        "stage nn",
    ),
    ("no_ending", "{\"input\": \"tea 茶 🍵\", \"output\": 2}\n{\"input\": \"é\", \"output\": 3}", &[], "stage text"),
    ("wide.csv", "input,output\n-1e-7,1e15\n+2.5E3,-3\n0,12345678901234567890\n", &[], "stage nn"),
    ("constant.csv", "input,output\na,5\nb,5\nc,5\n", &[], "min_val 2.5"),
    ("gaps.csv", "input,output\n1,10\n,20\n3,\n4,many\n5,50\n", &["--dataset.missing", "skip"], "3 rows are skipped"),
    ("alone.csv", "input,output\n1,10\n", &["--dataset.eval_share", "0"], "no row is held out"),
    ("named.csv", "text,label\na,1\nb,2\n", &["--dataset.input", "text", "--dataset.output", "label"], "stage text"),
];

#[test]
fn odd_files_are_read() {
    for (name, content, more, said) in READ {
        let folder = Folder::new();
        folder.write(name, content);
        let output = run(&folder, name, more);
        check(name, &output, 0, &[said, "passes over the training rows"]);
    }
}
