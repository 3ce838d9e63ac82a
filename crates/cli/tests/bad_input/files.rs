//! Texts, datasets and checkpoints.

use super::*;

#[test]
fn a_mixed_text_without_sense_is_refused() {
    let folder = Folder::new();
    folder.write("nn.safetensors", checkpoint());
    for text in ["$$1", "$$&&", "$$1$$2&&", "$$x&&", "$$1e999&&"] {
        let args = ["hidden", "--checkpoint", "nn.safetensors", "--mixed", text];
        refuse(&folder, &args, FAILED, &["error:", "byte 0", "hint:"]);
    }
    refuse(&folder, &["hidden", "--checkpoint", "nn.safetensors", "--mixed", ""], FAILED, &["error:"]);
}

#[test]
fn a_bad_line_of_a_dataset_is_named() {
    let folder = Folder::new();
    folder.write("nn.safetensors", checkpoint());
    let good = "{\"input\": 1, \"output\": 1}\n";
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("json", b"{\"input\": 1, \"output\": }\n", &["line 2", "bad JSON"]),
        ("cut", b"{\"input\": 1, \"outp", &["line 2", "bad JSON"]),
        ("blank", b"\n{\"input\": 1, \"output\": 1}\n", &["line 2", "blank line"]),
        ("missing", b"{\"input\": 1}\n", &["line 2", "missing column \"output\""]),
        ("twice", b"{\"input\": 1, \"input\": 1, \"output\": 1}\n", &["line 2", "duplicate key \"input\""]),
        ("list", b"[1, 1]\n", &["line 2", "expected an object"]),
        ("null", b"{\"input\": 1, \"output\": null}\n", &["line 2", "\"output\""]),
        ("text", b"{\"input\": \"a\", \"output\": 1}\n", &["line 2", "\"input\"", "number"]),
        ("nan", b"{\"input\": NaN, \"output\": 1}\n", &["line 2"]),
        ("infinite", b"{\"input\": 1e999, \"output\": 1}\n", &["line 2", "out of range at column 15"]),
        ("utf8", b"{\"input\": \"\xff\", \"output\": 1}\n", &["line 2", "UTF-8"]),
    ];
    for (name, bytes, said) in cases {
        let file = format!("{name}.jsonl");
        folder.write(&file, [good.as_bytes(), bytes].concat());
        let said = words(&[&["error:", "hint:", &file], said]);
        refuse(&folder, &["eval", "--checkpoint", "nn.safetensors", "--dataset", &file], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "nn", "--dataset.file", &file], TINY]), FAILED, &said);
    }
    folder.write("none.jsonl", "");
    let run = |file: &str, said: &[&str]| {
        refuse(&folder, &words(&[&["launch", "nn", "--dataset.file", file], TINY]), FAILED, said);
    };
    run("none.jsonl", &["none.jsonl", "no samples", "hint:"]);
    run("absent.jsonl", &["absent.jsonl", "No such file", "hint:"]);
    run(".", &["error:", "hint:"]);
}

#[test]
fn a_damaged_checkpoint_is_refused_by_every_reader() {
    let folder = Folder::new();
    let good = checkpoint();
    folder.write("good.safetensors", good);
    folder.write("run.yaml", "{}\n");
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    let flip = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let foreign = std::fs::read(common::fixtures().join("small-f32/model.safetensors")).unwrap();
    let mut endless_header = good.to_vec();
    endless_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "empty"),
        ("short", good[..5].to_vec(), "damaged"),
        ("header", good[..200].to_vec(), "damaged"),
        ("truncated", good[..good.len() - 1].to_vec(), "damaged"),
        ("half", good[..good.len() / 2].to_vec(), "damaged"),
        ("longer", [good, b"x"].concat(), "damaged"),
        ("flipped", flip(good.len() - 3), "damaged"),
        ("foreign", foreign, "not a numalign checkpoint"),
        ("text", b"this is a text file, longer than eight bytes\n".to_vec(), "damaged"),
        ("yaml", b"lr: 1\n".to_vec(), "damaged"),
        ("zeros", vec![0; 4096], "damaged"),
        ("endless", endless_header, "damaged"),
    ];
    for (name, bytes, said) in &cases {
        let file = format!("{name}.safetensors");
        folder.write(&file, bytes);
        let said = ["error:", "hint:", file.as_str(), *said];
        refuse(&folder, &["inspect", &file], FAILED, &said);
        refuse(&folder, &["inspect", &file, "--json"], FAILED, &said);
        refuse(&folder, &["eval", "--checkpoint", &file, "--count", "2"], FAILED, &said);
        refuse(&folder, &["predict", "--checkpoint", &file, "1"], FAILED, &said);
        refuse(&folder, &["hidden", "--checkpoint", &file, "--value", "1"], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "--run-id", "x", "--resume", &file], TINY]), FAILED, &said);
        refuse(&folder, &words(&[&["launch", "--run-id", "x", "--model-path-load", &file], TINY]), FAILED, &said);
    }
    let resume_says = "there is no file missing.safetensors to resume from; resume takes auto or a checkpoint";
    for (file, said, resume) in [
        ("missing.safetensors", "No such file", resume_says),
        ("folder", "not a file", "not a file"),
        ("/dev/zero", "not a file", "not a file"),
    ] {
        refuse(&folder, &["inspect", file], FAILED, &["error:", "hint:", file, said]);
        refuse(&folder, &["predict", "--checkpoint", file, "1"], FAILED, &["error:", "hint:", file, said]);
        let launch = words(&[&["launch", "--run-id", "x", "--resume", file], TINY]);
        refuse(&folder, &launch, FAILED, &["error:", "hint:", file, resume]);
    }
    // Wherever a byte is wrong, it is noticed.
    for at in (0..good.len()).step_by(good.len() / 64).chain(0..8) {
        folder.write("flipped.safetensors", flip(at));
        refuse(&folder, &["inspect", "flipped.safetensors"], FAILED, &["error:", "hint:", "flipped.safetensors"]);
    }
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let folder = Folder::new();
    folder.write("demo.safetensors", checkpoint());
    folder.copy_fixture("small-f32", "small");
    let other = ["--model", "small"];
    let said = ["another frozen model", "small", "hint:"];
    refuse(&folder, &words(&[&["eval", "--checkpoint", "demo.safetensors"], &other]), FAILED, &said);
    // Flags may stand behind the inputs, and a number may be negative.
    refuse(&folder, &words(&[&["predict", "--checkpoint", "demo.safetensors", "1", "-2.5"], &other]), FAILED, &said);
    let load = ["launch", "--model-name", "small", "--model-path-load", "demo.safetensors"];
    refuse(&folder, &words(&[&load, TINY]), FAILED, &["belongs to the model demo", "set model_name to demo"]);
}

#[test]
fn a_text_that_is_too_long_is_refused_with_its_row() {
    let folder = Folder::new();
    let text = "x y ".repeat(400);
    let line = format!("{{\"input\": \"{text}\", \"output\": 1}}\n");
    let good = "{\"input\": \"$$1&&\", \"output\": 1}\n";
    folder.write("long.jsonl", [good, good, &line].concat());
    let launch = ["launch", "text", "--dataset.file", "long.jsonl", "--dataset.shuffle", "false"];
    refuse(&folder, &words(&[&launch, TINY]), FAILED, &["error:", "row 3 of long.jsonl", "256", "hint:"]);
    refuse(&folder, &["hidden", "--model", "demo", "--text", &text], FAILED, &["error:", "256", "hint:"]);
    folder.write("nn.safetensors", checkpoint());
    let mixed = format!("{text} $$1&&");
    refuse(&folder, &["hidden", "--checkpoint", "nn.safetensors", "--mixed", &mixed], FAILED, &["256", "hint:"]);
    let positions = ["launch", "nn", "--numeric-positions", "257"];
    refuse(&folder, &words(&[&positions, TINY]), FAILED, &["257", "256", "hint:"]);
}

#[test]
fn a_sample_that_does_not_fit_is_found_before_the_first_step() {
    let folder = Folder::new();
    folder.copy_fixture("tokenizer", "model");
    let file = |name: &str, bad: &str| {
        let good = "{\"input\": \"It is $$12.5&& metres\", \"output\": 12.5}\n".repeat(1999);
        folder.write(name, format!("{good}{bad}\n"));
    };
    let long = "x ".repeat(200);
    file("long.jsonl", &format!("{{\"input\": \"{long}\", \"output\": 1}}"));
    let cases: [(&str, &str, &[&str]); 3] = [
        ("text", "long.jsonl", &["row 2000 of long.jsonl", "positions", "64"]),
        ("mixed", "long.jsonl", &["row 2000 of long.jsonl", "positions", "64"]),
        ("mixed", "none.jsonl", &["row 2000 of none.jsonl", "has no marked number"]),
    ];
    file("none.jsonl", "{\"input\": \"no number\", \"output\": 1}");
    for (index, (stage, dataset, said)) in cases.into_iter().enumerate() {
        let id = format!("{stage}-{index}");
        let data = ["launch", stage, "--dataset.file", dataset, "--dataset.shuffle", "false", "--model-name", "model"];
        let numbers = ["--pooling", if dataset == "none.jsonl" { "numbers" } else { "last" }];
        let run = words(&[
            &data,
            &numbers,
            &["--no-eval", "--workers", "2", "--num-epochs", "50", "--num-batches", "10", "--run-id", &id],
        ]);
        let output = refuse(&folder, &run, FAILED, said);
        assert!(output.stderr.contains("no step was made"), "{output}");
        assert!(!folder.path().join(format!("chk/{id}.safetensors")).exists());
    }
}

/// The tokenizer of the folder `model` with a change.
fn change_tokenizer(folder: &Folder, change: impl FnOnce(&mut serde_json::Value)) {
    let mut document = serde_json::from_slice(&folder.read("model/tokenizer.json")).expect("JSON");
    change(&mut document);
    folder.write("model/tokenizer.json", document.to_string());
}

#[test]
fn a_text_that_the_tokenizer_or_the_model_cannot_take_is_found_before_the_first_step() {
    let data = |folder: &Folder, bad: &str| {
        let good = "{\"input\": \"It is $$12.5&& metres\", \"output\": 12.5}\n".repeat(999);
        folder.write("data.jsonl", format!("{good}{{\"input\": \"{bad}\", \"output\": 1}}\n"));
    };
    let launch = words(&[
        &["launch", "text", "--dataset.file", "data.jsonl", "--dataset.shuffle", "false", "--model-name", "model"],
        &["--no-eval", "--workers", "1", "--num-epochs", "50", "--num-batches", "10"],
    ]);
    let refused = |folder: &Folder, said: &[&str]| {
        let output = refuse(folder, &launch, FAILED, said);
        assert!(output.stderr.contains("no step was made"), "{output}");
    };
    // A byte without a token: the text comes to nothing.
    let folder = Folder::new();
    folder.copy_fixture("tokenizer", "model");
    change_tokenizer(&folder, |document| {
        document["model"]["vocab"].as_object_mut().expect("a vocabulary").remove("~").expect("the token");
    });
    data(&folder, "~");
    refused(&folder, &["row 1000 of data.jsonl", "no token"]);
    // A token that was added behind the last row of the model's embedding.
    let folder = Folder::new();
    folder.copy_fixture("tokenizer", "model");
    change_tokenizer(&folder, |document| {
        let token = serde_json::json!({
            "id": 320, "content": "<new>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": false
        });
        document["added_tokens"].as_array_mut().expect("a list").push(token);
    });
    data(&folder, "a <new> one");
    refused(&folder, &["row 1000 of data.jsonl", "token id 320"]);
}
