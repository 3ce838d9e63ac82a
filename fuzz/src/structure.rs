//! Custom mutations for libFuzzer: they keep a format's outer shell whole, so that what lies inside is reached. JSON values,
//! safetensors files, and checkpoints whose digest is made right again.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Numbers at which readers go wrong.
const NUMBERS: &str = "0 -0 1 -1 7 255 256 65535 2147483648 4294967295 4294967296 9007199254740993 9223372036854775807 \
                       9223372036854775808 18446744073709551615 18446744073709551616 1e308 1e309 -1e400 1e-320 5e-324 \
                       0.1 1. .5 1e 00 0x10 nan inf 1_000 \u{663}";

/// Changes the first bytes of a buffer, as many as the second argument says, to at most as many as the third; returns the
/// new length. libFuzzer's own mutation has this form.
pub type MutateBytes = fn(&mut [u8], usize, usize) -> usize;

/// Changes an input by its structure; none where it has lost that structure.
pub type Structured = fn(&mut Choices, &[u8]) -> Option<Vec<u8>>;

/// Changes an input by its structure two times in three, and its bytes otherwise; for `libfuzzer_sys::fuzz_mutator`.
pub fn mutate(
    structured: Structured,
    bytes: MutateBytes,
    buffer: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
) -> usize {
    let mut choices = Choices { state: u64::from(seed), bytes };
    if !choices.one_in(3)
        && let Some(mut changed) = structured(&mut choices, &buffer[..size])
    {
        while choices.one_in(3)
            && let Some(again) = structured(&mut choices, &changed)
        {
            changed = again;
        }
        if changed.len() <= max_size {
            buffer[..changed.len()].copy_from_slice(&changed);
            return changed.len();
        }
    }
    bytes(buffer, size, max_size)
}

/// Pseudo-random choices, and libFuzzer's mutation for what has no structure.
pub struct Choices {
    state: u64,
    bytes: MutateBytes,
}

impl Choices {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is at least 1.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// True once in `times`.
    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn number(&mut self) -> &'static str {
        let place = self.below(NUMBERS.split(' ').count());
        NUMBERS.split(' ').nth(place).unwrap_or("0")
    }

    /// The bytes changed, and at most 32 longer.
    fn bytes(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = bytes.to_vec();
        buffer.resize(bytes.len() + 32, 0);
        let length = (self.bytes)(&mut buffer, bytes.len(), bytes.len() + 32);
        buffer.truncate(length);
        buffer
    }

    /// As [`Choices::bytes`], for a text.
    fn text(&mut self, text: &str) -> String {
        String::from_utf8_lossy(&self.bytes(text.as_bytes())).into_owned()
    }
}

/// Changes one place in a JSON text; none where the text is not JSON.
pub fn json(choices: &mut Choices, text: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(text).ok()?;
    change(choices, &mut value);
    Some(value.to_string().into_bytes())
}

/// Changes one line of a JSONL text; none where that line is not JSON.
pub fn json_lines(choices: &mut Choices, text: &[u8]) -> Option<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let place = choices.below(lines.len());
    lines[place] = json(choices, &lines[place])?;
    Some(lines.join(&b'\n'))
}

fn change(choices: &mut Choices, value: &mut Value) {
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
                    let name = if choices.one_in(2) { choices.pick(&keys).clone() } else { choices.text(&key) };
                    if let Some(value) = fields.remove(&key) {
                        fields.insert(name, value);
                    }
                }
                2 => {
                    fields.insert(choices.text(""), strange(choices, &key));
                }
                _ => {
                    if let Some(inner) = fields.get_mut(&key) {
                        change(choices, inner);
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
                _ => change(choices, &mut items[place]),
            }
        }
        // A text that holds JSON itself is opened.
        Value::String(text) if text.starts_with(['{', '[']) && !choices.one_in(6) => {
            if let Some(changed) = json(choices, text.as_bytes()) {
                *text = String::from_utf8_lossy(&changed).into_owned();
            }
        }
        Value::String(text) if choices.one_in(2) => *text = choices.text(text),
        other => *other = strange(choices, ""),
    }
}

/// A value that the place may not expect.
fn strange(choices: &mut Choices, name: &str) -> Value {
    match choices.below(8) {
        0 => Value::Null,
        1 => Value::Bool(choices.one_in(2)),
        2 => Value::Array(Vec::new()),
        3 => Value::Object(Map::new()),
        4 => Value::String(choices.text(name)),
        5 => Value::String(choices.number().to_owned()),
        _ => serde_json::from_str(choices.number()).unwrap_or(Value::Null),
    }
}

/// A safetensors file taken apart: the header and the bytes behind it.
fn split_safetensors(bytes: &[u8]) -> Option<(Value, &[u8])> {
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
pub fn safetensors(choices: &mut Choices, bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut header, data) = split_safetensors(bytes)?;
    let mut data = data.to_vec();
    if choices.one_in(4) {
        data = choices.bytes(&data);
    } else {
        change(choices, &mut header);
    }
    Some(join_safetensors(&header, &data))
}

/// As [`safetensors`], with the checkpoint's `file_digest` made right again: only then is its content looked at.
pub fn checkpoint(choices: &mut Choices, bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut header, data) = split_safetensors(bytes)?;
    let mut data = data.to_vec();
    match choices.below(8) {
        0 if !data.is_empty() => {
            let at = choices.below(data.len());
            data[at] = choices.next() as u8;
        }
        1 => change(choices, &mut header),
        _ => change(choices, header.get_mut("__metadata__")?),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands in for libFuzzer: the last byte is changed, or one is added.
    fn bytes(buffer: &mut [u8], size: usize, max_size: usize) -> usize {
        let size = if size < max_size && size.is_multiple_of(2) { size + 1 } else { size };
        buffer[size - 1] ^= 1;
        size
    }

    #[test]
    fn the_digest_is_that_of_the_checkpoint_format() {
        let (header, data) = split_safetensors(include_bytes!("../seeds/checkpoint/nn")).unwrap();
        let stored = header["__metadata__"]["file_digest"].as_str();
        assert!(stored.is_some());
        assert_eq!(checkpoint_digest(&header, data).as_deref(), stored);
    }

    #[test]
    fn what_has_no_structure_is_changed_as_bytes() {
        let mut buffer = *b"[1, 2]            ";
        for seed in 0..200 {
            let size = mutate(json, bytes, &mut buffer, 6, 18, seed);
            assert!((1..=18).contains(&size));
            buffer = *b"[1, 2]            ";
            assert_eq!(mutate(json, bytes, &mut buffer, 3, 18, seed), 3, "not JSON");
            buffer = *b"[1, 2]            ";
        }
    }
}
