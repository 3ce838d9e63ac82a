//! The tokenizer in a GGUF file's metadata, rebuilt as the `tokenizer.json` that it was made from.
//!
//! Byte-level byte-pair encodings only; for the others the reason is given when a text comes, since not every use of a
//! model needs its tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::container::Container;
use super::error::GgufError;
use super::names::GgufArchitecture;
use super::pre_tokenizer::{KNOWN, PreTokenizer, pre_tokenizer};
use super::value::{Array, Value};
use crate::error::ModelError;
use crate::load::byte_level::{self, AddedToken, Document, Parts};
use crate::tokenizer::Tokenizer;

/// llama.cpp's token types: a token that is found in the text before it is cut into words, special or not.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The file's tokenizer.
///
/// # Errors
/// The metadata are damaged: of wrong types, of unequal lengths, with a token twice or a merge of no tokens.
pub fn tokenizer(file: &Container<'_>, architecture: GgufArchitecture, path: &Path) -> Result<Tokenizer, ModelError> {
    let missing = |reason: String| Ok(Tokenizer::Missing(format!("{reason}; put its tokenizer.json beside the file")));
    let kind = match text(file, "model").map_err(|error| error.at(path))? {
        None => return missing("the GGUF file holds none".to_owned()),
        Some(kind) => kind,
    };
    if kind != "gpt2" {
        return missing(format!("tokenizer.ggml.model `{kind}` is not read; `gpt2` (byte-level) is"));
    }
    let name = text(file, "pre").map_err(|error| error.at(path))?;
    let Some(pre) = pre_tokenizer(name, architecture) else {
        return missing(format!("tokenizer.ggml.pre `{}` is not known; known: {KNOWN}", name.unwrap_or_default()));
    };
    if let Some(Value::Bool(true)) = file.metadata.get("tokenizer.ggml.add_space_prefix") {
        return missing("tokenizer.ggml.add_space_prefix is true, which byte-level tokenizers do not do".to_owned());
    }
    if name.is_none_or(|name| name == "default") {
        tracing::warn!(
            "{}: the file does not say how its tokenizer cuts text into words; a tokenizer.json beside it would",
            path.display()
        );
    }
    let json = document(file, pre).map_err(|error| error.at(path))?;
    Tokenizer::from_json(path, &json)
}

fn document(file: &Container<'_>, pre: PreTokenizer) -> Result<Vec<u8>, GgufError> {
    let tokens = texts(file, "tokens")?;
    let mut vocab = BTreeMap::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(*token, id as u32).is_some() {
            return Err(GgufError::Duplicate { name: format!("token {token:?} of tokenizer.ggml.tokens") });
        }
    }
    let mut merges = Vec::new();
    for merge in texts(file, "merges")? {
        let Some(pair) = byte_level::merge(merge) else {
            return Err(GgufError::Contradiction {
                reason: format!("tokenizer.ggml.merges holds {merge:?}, not a pair"),
            });
        };
        merges.push(pair);
    }
    let document = Document::from(Parts {
        vocab,
        merges,
        added_tokens: added_tokens(file, &tokens)?,
        normalizer: pre.normalizer,
        pre_tokenizer: pre.pre_tokenizer,
        post_processor: post_processor(file, &tokens, pre.adds_bos)?,
        ignore_merges: pre.ignore_merges,
    });
    serde_json::to_vec(&document).map_err(|error| GgufError::Contradiction { reason: error.to_string() })
}

/// Tokens that are found in the text as a whole.
fn added_tokens<'a>(file: &Container<'a>, tokens: &[&'a str]) -> Result<Vec<AddedToken<'a>>, GgufError> {
    let mut added = Vec::new();
    let Some(types) = array(file, "token_type")? else {
        return Ok(added);
    };
    let wrong = || GgufError::Contradiction {
        reason: format!("tokenizer.ggml.token_type holds no {} whole numbers, one for each token", tokens.len()),
    };
    if types.count != tokens.len() as u64 {
        return Err(wrong());
    }
    for ((id, content), kind) in tokens.iter().enumerate().zip(types.integers().ok_or_else(wrong)?) {
        if !matches!(kind, CONTROL | USER_DEFINED) || content.is_empty() {
            continue;
        }
        added.push(AddedToken::plain(id as u32, content, kind == CONTROL));
    }
    Ok(added)
}

/// What stands around a text where special tokens are asked for.
fn post_processor(file: &Container<'_>, tokens: &[&str], adds_bos: bool) -> Result<Json, GgufError> {
    let bos =
        if flag(file, "add_bos_token")?.unwrap_or(adds_bos) { special(file, "bos_token_id", tokens)? } else { None };
    let eos = if flag(file, "add_eos_token")?.unwrap_or(false) { special(file, "eos_token_id", tokens)? } else { None };
    let mut around = serde_json::Map::new();
    for (id, token) in [bos, eos].into_iter().flatten() {
        around.insert(token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    }
    let piece =
        |token: Option<(u64, &str)>| token.map(|(_, token)| json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
    let text = |id: &str| [piece(bos), Some(json!({ "Sequence": { "id": id, "type_id": 0 } })), piece(eos)];
    let single: Vec<Json> = text("A").into_iter().flatten().collect();
    let pair: Vec<Json> = text("A").into_iter().chain(text("B")).flatten().collect();
    Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": around }))
}

/// The token that a key of the file names by its id.
fn special<'a>(file: &Container<'_>, key: &str, tokens: &[&'a str]) -> Result<Option<(u64, &'a str)>, GgufError> {
    let value = match file.metadata.get(format!("tokenizer.ggml.{key}").as_str()) {
        None => return Ok(None),
        Some(value) => value,
    };
    let id = match value {
        Value::Unsigned(id) => usize::try_from(*id).ok(),
        _ => None,
    };
    match id.and_then(|id| Some((id as u64, *tokens.get(id)?))) {
        Some(found) => Ok(Some(found)),
        None => Err(wrong(key, value, "the id of a token")),
    }
}

fn wrong(key: &str, value: &Value<'_>, wanted: &'static str) -> GgufError {
    GgufError::Value { key: format!("tokenizer.ggml.{key}"), found: value.describe(), wanted }
}

fn text<'a>(file: &Container<'a>, key: &str) -> Result<Option<&'a str>, GgufError> {
    match file.metadata.get(format!("tokenizer.ggml.{key}").as_str()) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(key, other, "a text")),
    }
}

fn flag(file: &Container<'_>, key: &str) -> Result<Option<bool>, GgufError> {
    match file.metadata.get(format!("tokenizer.ggml.{key}").as_str()) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(wrong(key, other, "true or false")),
    }
}

fn array<'a>(file: &Container<'a>, key: &str) -> Result<Option<Array<'a>>, GgufError> {
    match file.metadata.get(format!("tokenizer.ggml.{key}").as_str()) {
        None => Ok(None),
        Some(Value::Array(array)) => Ok(Some(*array)),
        Some(other) => Err(wrong(key, other, "an array")),
    }
}

fn texts<'a>(file: &Container<'a>, key: &str) -> Result<Vec<&'a str>, GgufError> {
    let Some(array) = array(file, key)? else {
        return Err(GgufError::Missing { key: format!("tokenizer.ggml.{key}") });
    };
    array.texts().ok_or_else(|| wrong(key, &Value::Array(array), "an array of texts"))
}
