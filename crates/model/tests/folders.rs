//! Model folders as people have them: what `transformers` leaves behind is read as it reads it, what is broken is refused
//! with its name.

use std::path::{Path, PathBuf};

use numalign_config::DeviceChoice;
use numalign_model::{FrozenModel, LmInput, ModelError, Piece, load};
use serde_json::{Value, json};

/// A copy of a folder of `testdata/` that a test may damage.
struct ModelFolder(tempfile::TempDir);

impl ModelFolder {
    fn copy(fixture: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(fixture);
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&self.read(name)).unwrap();
        edit(&mut value);
        self.write(name, value.to_string());
    }

    fn load(&self) -> Result<FrozenModel, ModelError> {
        load(self.0.path().to_str().unwrap(), DeviceChoice::Cpu, false)
    }

    /// The message and hint with which the folder is refused.
    fn refusal(&self) -> String {
        match self.load() {
            Ok(_) => panic!("the folder was loaded"),
            Err(error) => format!("{error}\n{}", error.hint().unwrap_or_default()),
        }
    }

    #[track_caller]
    fn is_refused(&self, wanted: &[&str]) {
        let refusal = self.refusal();
        for part in wanted {
            assert!(refusal.contains(part), "`{part}` is missing in:\n{refusal}");
        }
    }
}

fn header_length(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

/// Replaces the number at `index` of a tensor in an `f32` file.
fn put(folder: &ModelFolder, tensor: &str, index: usize, value: f32) {
    let mut bytes = folder.read("model.safetensors");
    let data = header_length(&bytes);
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let start = data + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 4 * index;
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    folder.write("model.safetensors", bytes);
}

#[test]
fn truncation_and_padding_stored_in_tokenizer_json_are_left_out() {
    let text = "The weight is 12.345678 and no more, whatever the number of tokens may be.";
    let plain = ModelFolder::copy("tokenizer");
    let expected = plain.load().unwrap().lm.tokenize(text).unwrap();
    assert!(expected.len() > 16);
    let stored = ModelFolder::copy("tokenizer");
    stored.edit_json("tokenizer.json", |tokenizer| {
        tokenizer["truncation"] =
            json!({ "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0 });
        tokenizer["padding"] = json!({
            "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "!"
        });
    });
    let model = stored.load().unwrap();
    assert_eq!(model.lm.tokenize(text).unwrap(), expected);
    assert_eq!(model.lm.tokenize("12").unwrap(), plain.load().unwrap().lm.tokenize("12").unwrap());
}

#[test]
fn weights_that_are_not_finite_are_named_with_their_index() {
    for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for (tensor, index, place) in
            [("h.1.attn.c_attn.weight", 95, "[1, 5]"), ("wte.weight", 61, "[2, 1]"), ("ln_f.bias", 7, "[7]")]
        {
            let folder = ModelFolder::copy("small-f32");
            put(&folder, tensor, index, value);
            folder.is_refused(&[&format!("tensor {tensor} holds {said} at index {place}")]);
        }
    }
}

#[test]
fn bytes_that_no_tensor_covers_are_refused() {
    let folder = ModelFolder::copy("small-f32");
    let bytes = folder.read("model.safetensors");
    folder.write("model.safetensors", [&bytes[..], &[0; 1000]].concat());
    folder.is_refused(&["model.safetensors: 1000 bytes follow the last tensor"]);
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258da\
                       aa5e2ca24d17e2393\nsize 124439808\n";
const PAGE: &str = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n";

#[test]
fn lfs_pointers_and_web_pages_are_called_so() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = ModelFolder::copy("tokenizer");
        folder.write(name, POINTER);
        folder.is_refused(&[&format!("{name} is a Git-LFS pointer"), "git lfs pull"]);
        folder.write(name, PAGE);
        folder.is_refused(&[&format!("{name} is a web page"), "/resolve/"]);
    }
    let sharded = ModelFolder::copy("sharded-bf16");
    sharded.write("model-00002-of-00004.safetensors", POINTER);
    sharded.is_refused(&["model-00002-of-00004.safetensors is a Git-LFS pointer"]);
    sharded.write("model.safetensors.index.json", PAGE);
    sharded.is_refused(&["model.safetensors.index.json is a web page"]);
}

#[test]
fn files_of_another_format_under_the_name_of_the_weights_are_called_so() {
    for (bytes, said) in [
        (&b"GGUF\x03\0\0\0"[..], "a GGUF file under another name"),
        (b"PK\x03\x04archive/data.pkl", "a PyTorch file"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip"),
    ] {
        let folder = ModelFolder::copy("small-f32");
        folder.write("model.safetensors", bytes);
        folder.is_refused(&[&format!("model.safetensors is {said}")]);
    }
    let folder = ModelFolder::copy("small-f32");
    folder.write("config.json", b"\x1f\x8b\x08\0\xff\xfe\0\0");
    folder.is_refused(&["config.json is compressed with gzip"]);
}

#[test]
fn a_folder_without_weights_is_told_what_it_holds() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["pytorch_model.bin"], &["only pytorch_model.bin is there", "safe_serialization=True"]),
        (
            &["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
            &["pytorch_model-00001-of-00002.bin", "PyTorch weights in shards", "safe_serialization=True"],
        ),
        (&["model.fp16.safetensors"], &["only model.fp16.safetensors (a variant)", "name it model.safetensors"]),
        (&["consolidated.safetensors"], &["only consolidated.safetensors", "the files for transformers"]),
        (&["consolidated.00.pth"], &["only consolidated.00.pth", "the files for transformers"]),
        (
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            &["only model-00001-of-00002.safetensors (a shard, without model.safetensors.index.json)", "download"],
        ),
        (&["tf_model.h5"], &["only tf_model.h5 is there", "safe_serialization=True"]),
        (&["training_args.bin"], &["neither model.safetensors nor model.safetensors.index.json"]),
        (&[], &["neither model.safetensors nor model.safetensors.index.json"]),
    ];
    for (files, said) in cases {
        let folder = ModelFolder::copy("small-f32");
        std::fs::remove_file(folder.file("model.safetensors")).unwrap();
        for file in *files {
            folder.write(file, "");
        }
        folder.is_refused(said);
    }
}

#[test]
fn an_adapters_folder_is_called_so() {
    let adapter = "{\"base_model_name_or_path\": \"openai-community/gpt2\", \"peft_type\": \"LORA\"}";
    let said = ["the folder of an adapter for `openai-community/gpt2`, not of a model", "merge_and_unload"];
    let folder = ModelFolder::copy("small-f32");
    folder.write("adapter_config.json", adapter);
    folder.load().map(|_| ()).expect("an adapter beside a whole model is no matter");
    std::fs::rename(folder.file("model.safetensors"), folder.file("adapter_model.safetensors")).unwrap();
    folder.is_refused(&said);
    std::fs::remove_file(folder.file("config.json")).unwrap();
    folder.is_refused(&said);
}

#[test]
fn a_dangling_link_is_called_so() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = ModelFolder::copy("tokenizer");
        std::fs::remove_file(folder.file(name)).unwrap();
        std::os::unix::fs::symlink("../../blobs/0123", folder.file(name)).unwrap();
        folder.is_refused(&[&format!("{name} is a link to ../../blobs/0123, which is not there"), "cp -rL"]);
    }
    let sharded = ModelFolder::copy("sharded-bf16");
    let shard = "model-00003-of-00004.safetensors";
    std::fs::remove_file(sharded.file(shard)).unwrap();
    std::os::unix::fs::symlink("gone", sharded.file(shard)).unwrap();
    sharded.is_refused(&[&format!("{shard} is a link to gone, which is not there")]);
}

/// Adds tensors of two numbers each to a safetensors file.
fn add_tensors(folder: &ModelFolder, names: &[&str]) {
    let bytes = folder.read("model.safetensors");
    let data = header_length(&bytes);
    let mut header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let mut end = bytes.len() - data;
    for name in names {
        header[name] = json!({ "dtype": "F32", "shape": [2], "data_offsets": [end, end + 8] });
        end += 8;
    }
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    let more = vec![0; 8 * names.len()];
    folder.write("model.safetensors", [&length[..], header.as_bytes(), &bytes[data..], &more].concat());
}

#[test]
fn heads_for_other_tasks_are_passed_over_and_other_tensors_are_not() {
    let folder = ModelFolder::copy("small-f32");
    let plain = folder.load().unwrap().lm.fingerprint();
    let heads = [
        "score.weight",
        "score.bias",
        "v_head.summary.weight",
        "lm_head.bias",
        "classifier.weight",
        "qa_outputs.bias",
        "multiple_choice_head.summary.weight",
        "head.weight",
        "position_ids",
    ];
    add_tensors(&folder, &heads);
    assert_eq!(folder.load().unwrap().lm.fingerprint(), plain);
    add_tensors(&folder, &["h.0.attn.c_attn.lora_A.weight"]);
    folder.is_refused(&["unexpected: h.0.attn.c_attn.lora_A.weight"]);
}

#[test]
fn weights_of_a_wrapper_are_called_so() {
    for (prefix, said) in [("_orig_mod.", "torch.compile"), ("module.", "module.save"), ("base_model.model.", "peft")] {
        let folder = ModelFolder::copy("small-f32");
        let bytes = folder.read("model.safetensors");
        let data = header_length(&bytes);
        let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..data]).unwrap();
        let renamed = header.into_iter().map(|(name, place)| match name.as_str() {
            "__metadata__" => (name, place),
            _ => (format!("{prefix}{name}"), place),
        });
        let header = Value::Object(renamed.collect()).to_string();
        let length = (header.len() as u64).to_le_bytes();
        folder.write("model.safetensors", [&length[..], header.as_bytes(), &bytes[data..]].concat());
        folder.is_refused(&[&format!("weights whose names begin with `{prefix}`"), said]);
    }
}

#[test]
fn the_hubs_own_folder_of_a_model_is_called_so() {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--some-org--gpt_2");
    std::fs::create_dir_all(model.join("snapshots/0123")).unwrap();
    let Err(error) = load(model.to_str().unwrap(), DeviceChoice::Cpu, false) else { panic!("it was loaded") };
    let said = format!("{error}\n{}", error.hint().unwrap_or_default());
    assert!(said.contains("a folder of the hub's cache") && said.contains("(some-org/gpt_2)"), "{said}");
    assert!(said.contains("snapshots/0123"), "{said}");
}

#[test]
fn settings_are_read_as_python_reads_them() {
    let folder = ModelFolder::copy("tokenizer");
    let plain = folder.load().unwrap().lm.fingerprint();
    let with = |file: &str, more: &str| {
        let text = String::from_utf8(folder.read(file)).unwrap();
        folder.write(file, text.replacen('{', &format!("{{{more}, "), 1));
    };
    with("config.json", "\"time_step_limit\": [0.0, Infinity], \"note\": NaN");
    with("tokenizer_config.json", "\"model_max_length\": Infinity");
    for file in ["config.json", "tokenizer.json"] {
        folder.write(file, [b"\xef\xbb\xbf".as_slice(), &folder.read(file)].concat());
    }
    assert_eq!(folder.load().unwrap().lm.fingerprint(), plain);
    let folder = ModelFolder::copy("tokenizer");
    let text = String::from_utf8(folder.read("config.json")).unwrap();
    folder.write("config.json", text.replace("1e-05", "NaN"));
    folder.is_refused(&["layer_norm_epsilon"]);
}

#[test]
fn a_text_beyond_a_sliding_window_is_told_of_it() {
    let mut model = ModelFolder::copy("mistral-window").load().unwrap();
    let sequences = vec![vec![Piece::Tokens((1..=30).collect())]];
    let error = model.lm.forward(&LmInput { sequences, ..LmInput::default() }, false).unwrap_err();
    assert!(error.to_string().contains("more than the model's 23"), "{error}");
    assert!(error.hint().unwrap_or_default().contains("sliding window"), "{error}");
}
