//! Names and folders of frozen models.

use super::*;

/// Replaces `from` by `to` in a file of the model folder.
fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} holds `{from}`", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// A safetensors file with the header `text` and `count` zero bytes.
fn safetensors_file(text: &str, count: usize) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &vec![0; count]].concat()
}

type Damage = fn(&Path);

#[test]
fn damaged_model_folders_are_refused() {
    let cases: &[(&str, Damage, &[&str])] = &[
        ("small-f32", |m| std::fs::remove_file(m.join("config.json")).unwrap(), &["config.json", "No such file"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), "{").unwrap(), &["config.json", "not JSON"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), "").unwrap(), &["config.json", "not JSON"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), "[]").unwrap(), &["config.json", "not a JSON object"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), b"\xff\xfe").unwrap(), &["config.json"]),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"gpt2\"", "\"gpt_neox\""),
            &["model_type", "gpt_neox", "gpt2, llama"],
        ),
        ("small-f32", |m| edit(&m.join("config.json"), "\"model_type\"", "\"model_tipe\""), &["model_type"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"gelu_new\"", "\"mish\""), &["activation_function", "mish"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_head\": 5", "\"n_head\": 7"), &["n_embd 30", "n_head 7"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_head\": 5", "\"n_head\": 0"), &["n_head is 0"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": \"30\""), &["n_embd"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": -30"), &["n_embd is -30"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": 1e300"), &["n_embd"]),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": 35"),
            &["misshapen", "wte.weight", "[97, 30]"],
        ),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"n_layer\": 3", "\"n_layer\": 4"),
            &["missing", "h.3.ln_1.weight"],
        ),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"n_layer\": 3", "\"n_layer\": 2"),
            &["unexpected", "h.2.ln_1.weight"],
        ),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_layer\": 3", "\"n_layer\": 9999"), &["missing", "more"]),
        ("small-f32", |m| edit(&m.join("config.json"), "1e-05", "0"), &["layer_norm_epsilon"]),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"add_cross_attention\": false", "\"add_cross_attention\": true"),
            &["add_cross_attention"],
        ),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"reorder_and_upcast_attn\": false", "\"reorder_and_upcast_attn\": 1"),
            &["reorder_and_upcast_attn"],
        ),
        ("small-f32", |m| std::fs::remove_file(m.join("model.safetensors")).unwrap(), &["neither model.safetensors"]),
        (
            "small-f32",
            |m| std::fs::rename(m.join("model.safetensors"), m.join("pytorch_model.bin")).unwrap(),
            &["only pytorch_model.bin", "safe_serialization"],
        ),
        (
            "small-f32",
            |m| {
                std::fs::remove_file(m.join("model.safetensors")).unwrap();
                std::fs::create_dir(m.join("model.safetensors")).unwrap();
            },
            &["model.safetensors", "not a file"],
        ),
        ("small-f32", |m| std::fs::write(m.join("model.safetensors"), "").unwrap(), &["model.safetensors", "0 bytes"]),
        ("small-f32", |m| std::fs::write(m.join("model.safetensors"), "a text file").unwrap(), &["model.safetensors"]),
        (
            "small-f32",
            |m| {
                let path = m.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
            },
            &["model.safetensors", "ends at byte"],
        ),
        (
            "small-f32",
            |m| {
                let path = m.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..100]).unwrap();
            },
            &["model.safetensors", "header claims"],
        ),
        (
            "small-f32",
            |m| {
                let text =
                    "{\"wte.weight\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,8]}}";
                std::fs::write(m.join("model.safetensors"), safetensors_file(text, 8)).unwrap();
            },
            &["model.safetensors", "header"],
        ),
        (
            "small-f32",
            |m| {
                let text = "{\"wte.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}";
                std::fs::write(m.join("model.safetensors"), safetensors_file(text, 8)).unwrap();
            },
            &["model.safetensors", "header"],
        ),
        (
            "small-f32",
            |m| {
                let text = "{\"wte.weight\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
                std::fs::write(m.join("model.safetensors"), safetensors_file(text, 8)).unwrap();
            },
            &["missing", "wte.weight"],
        ),
        (
            "sharded-bf16",
            |m| std::fs::remove_file(m.join("model-00002-of-00004.safetensors")).unwrap(),
            &["model-00002-of-00004.safetensors", "No such file"],
        ),
        (
            "sharded-bf16",
            |m| {
                let from = m.join("model-00001-of-00004.safetensors");
                std::fs::copy(from, m.join("model-00002-of-00004.safetensors")).unwrap();
            },
            &["occurs twice"],
        ),
        (
            "sharded-bf16",
            |m| std::fs::write(m.join("model.safetensors.index.json"), "{").unwrap(),
            &["index.json", "not JSON"],
        ),
        ("sharded-bf16", |m| std::fs::write(m.join("model.safetensors.index.json"), "{}").unwrap(), &["weight_map"]),
        (
            "sharded-bf16",
            |m| std::fs::write(m.join("model.safetensors.index.json"), "{\"weight_map\": {\"a\": 1}}").unwrap(),
            &["weight_map of a"],
        ),
        (
            "sharded-bf16",
            |m| {
                std::fs::write(m.join("model.safetensors.index.json"), "{\"weight_map\": {\"a\": \"../../x\"}}")
                    .unwrap()
            },
            &["leaves the folder", "../../x"],
        ),
        (
            "sharded-bf16",
            |m| edit(&m.join("model.safetensors.index.json"), "00004.safetensors", "00009.safetensors"),
            &["00009"],
        ),
        (
            "tokenizer",
            |m| std::fs::write(m.join("tokenizer.json"), "{}").unwrap(),
            &["tokenizer.json", "not a tokenizer"],
        ),
        ("tokenizer", |m| std::fs::write(m.join("tokenizer.json"), "").unwrap(), &["tokenizer.json"]),
    ];
    for (index, (fixture, damage, said)) in cases.iter().enumerate() {
        let folder = Folder::new();
        damage(&folder.copy_fixture(fixture, "model"));
        let said = words(&[&["error:", "hint:"], said]);
        refuse(&folder, &["hidden", "--model", "model", "--ids", "1,2"], FAILED, &said);
        refuse(&folder, &["bench", "step", "--model", "model", "--steps", "1"], FAILED, &said);
        // A worker's refusal ends the whole run, with its words; a few of them will do.
        if index % 5 == 0 {
            refuse(&folder, &words(&[&["launch", "nn", "--model-name", "model"], TINY]), FAILED, &said);
        }
    }
}

#[test]
fn weights_that_are_not_finite_or_not_whole_end_with_1() {
    let folder = Folder::new();
    let model = folder.copy_fixture("small-f32", "model");
    let path = model.join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let hidden = ["hidden", "--model", "model", "--ids", "1"];
    std::fs::write(&path, [&whole[..], &[0; 1000]].concat()).unwrap();
    refuse(&folder, &hidden, FAILED, &["error:", "hint:", "1000 bytes follow the last tensor"]);
    let mut bytes = whole;
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    refuse(&folder, &hidden, FAILED, &["error:", "hint:", "tensor wte.weight holds NaN at index [96, 29]"]);
}

#[test]
fn a_model_without_tokenizer_is_refused_for_texts_only() {
    let folder = Folder::new();
    folder.copy_fixture("small-f32", "model");
    refuse(&folder, &["hidden", "--model", "model", "--text", "1"], FAILED, &["tokenizer", "hint:"]);
    refuse(&folder, &words(&[&["launch", "text", "--model-name", "model"], TINY]), FAILED, &["tokenizer", "hint:"]);
    let output = folder.run(&words(&[&["launch", "nn", "--model-name", "model"], TINY]));
    assert!(output.status.success(), "{output}");
}

#[test]
fn wrong_model_names_are_refused() {
    let folder = Folder::new();
    folder.write("file", "");
    for (name, said) in [
        ("synthetic:huge", "huge"),
        ("synthetic:small:x", "`x` is not a seed"),
        ("synthetic:small:-1", "`-1` is not a seed"),
        ("synthetic:small:1:2", "1:2"),
        ("synthetic:", "not a size"),
        ("./none", "no such folder"),
        ("/none/at/all", "no such folder"),
        ("~/models/gpt2", "no such folder"),
        ("a/b/c", "no such folder"),
        ("file", "it is a file"),
        ("my model", "neither a folder nor a possible hub id"),
        ("openai/gpt2?", "neither a folder"),
        ("gpt2/", "neither a folder"),
        ("..", "config.json"),
    ] {
        let code = if name == ".." { FAILED } else { USAGE };
        refuse(&folder, &["hidden", "--model", name, "--ids", "1"], code, &["error:", "hint:", said]);
        if name != ".." {
            refuse(
                &folder,
                &words(&[&["launch", "nn", "--model-name", name], TINY]),
                USAGE,
                &["error:", "hint:", said],
            );
        }
    }
    // A name that could be a hub's, without a network.
    for name in ["dmeo", "openai-community/gpt3"] {
        let said = ["error:", "hint:", name, "HF_HUB_OFFLINE"];
        refuse(&folder, &["hidden", "--model", name, "--ids", "1"], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "nn", "--model-name", name], TINY]), FAILED, &said);
    }
}
