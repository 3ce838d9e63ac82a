//! Mutations that keep a format's outer shell whole, so that what lies inside is reached: JSON values, safetensors files,
//! and checkpoints whose digest is made right again. Called by the targets.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::mutate::{Choices, NUMBERS, mutate};

/// Changes one place in a JSON text; none where the text is no JSON.
pub fn mutate_json(choices: &mut Choices, text: &[u8], words: &[&str]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(text).ok()?;
    change(choices, &mut value, words);
    Some(value.to_string().into_bytes())
}

fn change(choices: &mut Choices, value: &mut Value, words: &[&str]) {
    match value {
        Value::Object(fields) if !fields.is_empty() && !choices.one_in(12) => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            let key = choices.pick(&keys).clone();
            match choices.below(8) {
                0 => {
                    fields.remove(&key);
                }
                1 => {
                    // Under another name.
                    let name = if choices.one_in(2) { choices.pick(&keys).clone() } else { word(choices, words) };
                    if let Some(value) = fields.remove(&key) {
                        fields.insert(name, value);
                    }
                }
                2 => {
                    let name = word(choices, words);
                    fields.insert(name, strange(choices, words));
                }
                _ => {
                    if let Some(inner) = fields.get_mut(&key) {
                        change(choices, inner, words);
                    }
                }
            }
        }
        Value::Array(items) if !items.is_empty() && !choices.one_in(8) => {
            let place = choices.below(items.len());
            match choices.below(6) {
                0 => {
                    items.remove(place);
                }
                1 => items.insert(place, items[place].clone()),
                _ => change(choices, &mut items[place], words),
            }
        }
        // A text that holds JSON itself is opened.
        Value::String(text) if text.starts_with(['{', '[']) && !choices.one_in(6) => {
            if let Some(changed) = mutate_json(choices, text.as_bytes(), words) {
                *text = String::from_utf8_lossy(&changed).into_owned();
            }
        }
        Value::String(text) if choices.one_in(2) => {
            let mut bytes = std::mem::take(text).into_bytes();
            mutate(choices, &mut bytes, words, b"");
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        other => *other = strange(choices, words),
    }
}

fn word(choices: &mut Choices, words: &[&str]) -> String {
    if words.is_empty() { "x".to_owned() } else { (*choices.pick(words)).to_owned() }
}

fn strange(choices: &mut Choices, words: &[&str]) -> Value {
    match choices.below(8) {
        0 => Value::Null,
        1 => Value::Bool(choices.one_in(2)),
        2 => Value::Array(Vec::new()),
        3 => Value::Object(Map::new()),
        4 => Value::String(word(choices, words)),
        5 => Value::String((*choices.pick(NUMBERS)).to_owned()),
        _ => serde_json::from_str(choices.pick::<&str>(NUMBERS)).unwrap_or(Value::Null),
    }
}

/// A safetensors file taken apart: the header and the bytes behind it.
pub fn split_safetensors(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.checked_add(8)?;
    Some((serde_json::from_slice(bytes.get(8..end)?).ok()?, bytes.get(end..)?))
}

/// Puts a safetensors file together again, with a header length that fits.
pub fn join_safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let mut text = header.to_string().into_bytes();
    while !text.len().is_multiple_of(8) {
        text.push(b' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&text);
    bytes.extend_from_slice(data);
    bytes
}

/// Changes the header or the data of a safetensors file, and leaves the rest consistent.
pub fn mutate_safetensors(choices: &mut Choices, bytes: &[u8], words: &[&str]) -> Option<Vec<u8>> {
    let (mut header, data) = split_safetensors(bytes)?;
    let mut data = data.to_vec();
    if choices.one_in(4) {
        mutate(choices, &mut data, &[], b"");
    } else {
        change(choices, &mut header, words);
    }
    Some(join_safetensors(&header, &data))
}

/// As [`mutate_safetensors`], with the checkpoint's `file_digest` made right again: only then is its content looked at.
pub fn mutate_checkpoint(choices: &mut Choices, bytes: &[u8], words: &[&str]) -> Option<Vec<u8>> {
    let (mut header, data) = split_safetensors(bytes)?;
    let mut data = data.to_vec();
    match choices.below(8) {
        0 if !data.is_empty() => {
            let at = choices.below(data.len());
            data[at] = choices.byte();
        }
        1 => change(choices, &mut header, words),
        _ => change(choices, header.get_mut("__metadata__")?, words),
    }
    if let Some(digest) = checkpoint_digest(&header, &data)
        && let Some(metadata) = header.get_mut("__metadata__").and_then(Value::as_object_mut)
    {
        metadata.insert("file_digest".to_owned(), digest.into());
    }
    Some(join_safetensors(&header, &data))
}

/// The checkpoint format's digest, written a second time from its description: BLAKE3 over metadata (without `file_digest`)
/// and tensors (name, shape, values), each length-prefixed, in name order. None where the header is not of that form.
fn checkpoint_digest(header: &Value, data: &[u8]) -> Option<String> {
    let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 checkpoint file");
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let header = header.as_object()?;
    let metadata: BTreeMap<&String, &Value> = header.get("__metadata__")?.as_object()?.iter().collect();
    for (key, value) in metadata {
        if key != "file_digest" {
            field(key.as_bytes());
            field(value.as_str()?.as_bytes());
        }
    }
    let tensors: BTreeMap<&String, &Value> = header.iter().filter(|(name, _)| *name != "__metadata__").collect();
    for (name, tensor) in tensors {
        field(name.as_bytes());
        let mut shape = Vec::new();
        for size in tensor.get("shape")?.as_array()? {
            shape.extend(size.as_u64()?.to_le_bytes());
        }
        field(&shape);
        let offset = |place: usize| usize::try_from(tensor.get("data_offsets")?.get(place)?.as_u64()?).ok();
        field(data.get(offset(0)?..offset(1)?)?);
    }
    Some(hasher.finalize().to_hex().to_string())
}
