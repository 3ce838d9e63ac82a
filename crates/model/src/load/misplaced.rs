//! Names what lies in the place of a model's files: a Git-LFS pointer, a web page, weights of another format, an adapter,
//! a dangling link, a wrapper's weights, a folder of the hub's cache; and says what to do about it.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use crate::error::ModelError;

/// Bytes from which a file's kind is told.
pub const HEAD: usize = 512;

const TO_SAFETENSORS: &str = "load it with transformers and save it with save_pretrained(safe_serialization=True)";
const FROM_SOURCE: &str = "download the file itself; a page in its place is what a server answers without a login, or for \
                           a link to a web page (on the hub the file is under /resolve/, not /blob/)";

/// The error for a file that begins with `head`, if that is the beginning of something known that no model file is.
pub fn content(path: &Path, head: &[u8]) -> Option<ModelError> {
    let start: Vec<u8> = head
        .iter()
        .copied()
        .skip_while(u8::is_ascii_whitespace)
        .take(48)
        .map(|byte| byte.to_ascii_lowercase())
        .collect();
    let (found, advice) = if start.starts_with(b"version https://git-lfs") {
        (
            "a Git-LFS pointer, not the file itself",
            "run `git lfs install && git lfs pull` in the clone, or download the file from the hub".to_owned(),
        )
    } else if [&b"<!doctype html"[..], b"<html", b"<head", b"<?xml"].iter().any(|tag| start.starts_with(tag)) {
        ("a web page, not the file itself", FROM_SOURCE.to_owned())
    } else if head.starts_with(b"GGUF") {
        ("a GGUF file under another name", "name it with .gguf and give its path as model_name".to_owned())
    } else if head.starts_with(b"PK\x03\x04") || head.starts_with(b"\x80\x02") {
        ("a PyTorch file (pickle) under another name", format!("name it pytorch_model.bin, {TO_SAFETENSORS}"))
    } else if head.starts_with(b"\x89HDF") {
        ("an HDF5 file under another name", TO_SAFETENSORS.to_owned())
    } else if head.starts_with(b"\x1f\x8b") {
        ("compressed with gzip", "unpack it with gunzip".to_owned())
    } else {
        return None;
    };
    Some(misplaced(path, found.to_owned(), advice))
}

/// The error for a link whose target is not there.
pub fn dangling(path: &Path) -> Option<ModelError> {
    let target = std::fs::read_link(path).ok()?;
    if path.exists() {
        return None;
    }
    let advice = "copy the folder with its files (cp -rL), or download the model again: the folders of the hub's cache \
                  hold links into its `blobs`";
    Some(misplaced(path, format!("a link to {}, which is not there", target.display()), advice.to_owned()))
}

/// The error for a folder without `model.safetensors` and without its index.
pub fn folder_without_weights(folder: &Path) -> ModelError {
    let names = names(folder);
    let first = |fits: &dyn Fn(&str) -> bool| names.iter().find(|name| fits(name)).map(String::as_str);
    let only = |name: &str, advice: &str| ModelError::Misplaced {
        path: folder.to_owned(),
        found: format!("a folder without model.safetensors: only {name} is there"),
        advice: advice.to_owned(),
    };
    if let Some(adapter) = adapter(folder) {
        return adapter;
    }
    if first(&|name| name == "pytorch_model.bin").is_some() {
        return only("pytorch_model.bin", &format!("convert it: {TO_SAFETENSORS}"));
    }
    if let Some(name) = first(&|name| {
        name == "pytorch_model.bin.index.json" || (name.starts_with("pytorch_model") && name.ends_with(".bin"))
    }) {
        return only(&format!("{name} (PyTorch weights in shards)"), &format!("convert it: {TO_SAFETENSORS}"));
    }
    let is_shard = |name: &str| {
        name.strip_prefix("model-")
            .and_then(|rest| rest.strip_suffix(".safetensors"))
            .is_some_and(|rest| rest.split_once("-of-").is_some_and(|(number, of)| is_number(number) && is_number(of)))
    };
    if let Some(name) = first(&is_shard) {
        return only(
            &format!("{name} (a shard, without model.safetensors.index.json)"),
            "download model.safetensors.index.json from the model's source into the folder",
        );
    }
    if let Some(name) = first(&|name| name.starts_with("consolidated.")) {
        return only(
            &format!("{name} (the layout of the model's publisher)"),
            "download the files for transformers (model.safetensors, config.json) from the model's source",
        );
    }
    if let Some(name) = first(&|name| name.starts_with("model.") && name.ends_with(".safetensors")) {
        return only(
            &format!("{name} (a variant)"),
            "name it model.safetensors; a variant in f16 or bf16 holds other numbers than the model itself",
        );
    }
    if let Some(name) = first(&|name| name == "adapter_model.safetensors" || name == "adapter_model.bin") {
        return only(&format!("{name} (an adapter)"), MERGE);
    }
    if let Some(name) = first(&|name| {
        let extension = Path::new(name).extension().and_then(OsStr::to_str).unwrap_or_default();
        matches!(extension, "bin" | "pt" | "pth" | "h5" | "msgpack" | "onnx" | "ckpt") && name != "training_args.bin"
    }) {
        return only(name, TO_SAFETENSORS);
    }
    if let Some(name) = first(&|name| name.ends_with(".safetensors")) {
        return only(name, "name it model.safetensors if it is the whole model");
    }
    let reason = "neither model.safetensors nor model.safetensors.index.json is there";
    ModelError::Damaged { path: folder.to_owned(), reason: reason.to_owned() }
}

const MERGE: &str = "give the folder of a whole model: load the adapter with peft, then merge_and_unload() and \
                     save_pretrained()";

/// The error for the folder of an adapter (peft), which holds no model.
pub fn adapter(folder: &Path) -> Option<ModelError> {
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let base = match config.get("base_model_name_or_path").and_then(|base| base.as_str()) {
        Some(base) => format!(" for `{base}`"),
        None => String::new(),
    };
    Some(misplaced(folder, format!("the folder of an adapter{base}, not of a model"), MERGE.to_owned()))
}

/// The error for a model's folder in the hub's cache, whose files lie in its snapshots.
pub fn cache_of_hub(folder: &Path) -> Option<ModelError> {
    let snapshots = names(&folder.join("snapshots"));
    let snapshot = snapshots.first()?;
    let name = folder.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned();
    let id = name.strip_prefix("models--").unwrap_or(&name).replace("--", "/");
    let advice =
        format!("give its name on the hub ({id}), or the folder {}", folder.join("snapshots").join(snapshot).display());
    Some(misplaced(folder, "a folder of the hub's cache, not of a model".to_owned(), advice))
}

/// The error for weights that a wrapper around the model has saved under its own prefix.
pub fn wrapped<'a>(folder: &Path, mut names: impl Iterator<Item = &'a String>) -> Option<ModelError> {
    const WRAPPERS: [(&str, &str, &str); 3] = [
        ("_orig_mod.", "torch.compile", "save the model inside: model._orig_mod.save_pretrained()"),
        ("module.", "DistributedDataParallel", "save the model inside: model.module.save_pretrained()"),
        ("base_model.model.", "peft", "call merge_and_unload() and then save_pretrained()"),
    ];
    let name = names.find(|name| WRAPPERS.iter().any(|(prefix, ..)| name.starts_with(prefix)))?;
    let (prefix, wrapper, advice) = WRAPPERS.iter().find(|(prefix, ..)| name.starts_with(prefix))?;
    Some(misplaced(
        folder,
        format!("a folder of weights whose names begin with `{prefix}`, as {wrapper} leaves them"),
        (*advice).to_owned(),
    ))
}

/// The first bytes of a file; empty where it cannot be read.
pub fn head_of(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head));
    if read.is_err() { Vec::new() } else { head }
}

fn misplaced(path: &Path, found: String, advice: String) -> ModelError {
    ModelError::Misplaced { path: path.to_owned(), found, advice }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Names in `folder`, sorted; none where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}
