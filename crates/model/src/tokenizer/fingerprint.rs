//! The tokenizer's fingerprint: BLAKE3 over what determines its token ids, in a canonical form.
//!
//! Covered are the vocabulary, the merges, the normaliser, the pre-tokenizer, the added tokens with those properties that
//! count, `split_special_tokens`, and what stands around a text if special tokens are added. Not covered is what changes no
//! id: the layout of `tokenizer.json`, stored truncation and padding, the decoder, offsets, chat templates, whether an
//! added token stands in the vocabulary too, and the template of special tokens where none are added. So a file that
//! another version of `tokenizers` saved again has the same fingerprint, and so has a GGUF file made of a folder. Two
//! descriptions that give the same ids in different ways (a vocabulary compiled in, and the same one in a file) have
//! different ones.

use serde_json::{Map, Value as Json, json};
use tokenizers::ModelWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Around;

/// Another purpose has other digests of the same bytes.
const CONTEXT: &str = "numalign 2026-11 tokenizer";

/// The fingerprint of a tokenizer that is described by a text of its own.
pub(super) fn of_words(words: &str) -> blake3::Hash {
    digest(&json!(words))
}

/// The fingerprint of `tokenizer`, read from `document`; `around` is what it adds to every text, if it does.
///
/// # Errors
/// A document that is no `tokenizer.json`.
pub(super) fn of_file(
    tokenizer: &tokenizers::Tokenizer,
    document: &[u8],
    around: Option<&Around>,
) -> Result<blake3::Hash, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Document {
        model: Map<String, Json>,
    }
    let Document { mut model } = serde_json::from_slice(document)?;
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer())?;
    let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    added.sort_by_key(|(id, _)| *id);
    if let Some(Json::Object(vocab)) = model.get_mut("vocab") {
        for (id, token) in &added {
            vocab.insert(token.content.clone(), json!(id));
        }
    }
    let model = match tokenizer.get_model() {
        ModelWrapper::BPE(_) => byte_pairs(model, &pre_tokenizer),
        ModelWrapper::WordPiece(_) => without_nulls(model, "WordPiece"),
        ModelWrapper::WordLevel(_) => without_nulls(model, "WordLevel"),
        ModelWrapper::Unigram(_) => without_nulls(model, "Unigram"),
    };
    let splits_special = tokenizer.get_encode_special_tokens();
    let has_normalizer = tokenizer.get_normalizer().is_some();
    let added: Vec<Json> = added
        .iter()
        .map(|(id, token)| {
            let (normalized, special) = (token.normalized && has_normalizer, token.special && splits_special);
            json!([id, token.content, token.single_word, token.lstrip, token.rstrip, normalized, special])
        })
        .collect();
    Ok(digest(&json!({
        "model": model,
        "normalizer": one_step(serde_json::to_value(tokenizer.get_normalizer())?, "normalizers"),
        "pre_tokenizer": one_step(pre_tokenizer, "pretokenizers"),
        "added_tokens": added,
        "split_special_tokens": splits_special,
        "around": around.map(|around| json!([around.before, around.after])),
    })))
}

/// serde_json's maps are sorted, so equal values have equal texts.
fn digest(value: &Json) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(value.to_string().as_bytes());
    hasher.finalize()
}

fn without_nulls(mut model: Map<String, Json>, kind: &str) -> Json {
    model.retain(|_, value| !value.is_null());
    model.insert("type".to_owned(), kind.into());
    Json::Object(model)
}

/// A byte-pair encoding: merges as pairs, without fields that say what is so anyway.
fn byte_pairs(mut model: Map<String, Json>, pre_tokenizer: &Json) -> Json {
    if let Some(Json::Array(merges)) = model.get_mut("merges") {
        for merge in merges {
            if let Some((left, right)) = merge.as_str().and_then(|line| line.split_once(' ')) {
                *merge = json!([left, right]);
            }
        }
    }
    // Dropout is left out of the tokenizer itself.
    model.remove("dropout");
    let is_complete = match model.get("vocab") {
        Some(Json::Object(vocab)) => ByteLevel::alphabet().iter().all(|byte| vocab.contains_key(&byte.to_string())),
        _ => false,
    };
    if is_complete && steps(pre_tokenizer, "pretokenizers").iter().any(|step| step["type"] == "ByteLevel") {
        // Every byte has its token, so that nothing is unknown.
        for name in ["unk_token", "fuse_unk", "byte_fallback"] {
            model.remove(name);
        }
    }
    model.retain(|_, value| !(value.is_null() || *value == json!(false) || *value == json!("")));
    model.insert("type".to_owned(), "BPE".into());
    Json::Object(model)
}

/// The steps of a normaliser or pre-tokenizer, those of a sequence in a sequence too.
pub(super) fn steps(step: &Json, name: &str) -> Vec<Json> {
    match (step.is_null(), &step["type"], &step[name]) {
        (true, ..) => Vec::new(),
        (_, Json::String(kind), Json::Array(inner)) if kind == "Sequence" => {
            inner.iter().flat_map(|step| steps(step, name)).collect()
        }
        _ => vec![step.clone()],
    }
}

/// A sequence of steps in one form, without what concerns offsets only.
fn one_step(step: Json, name: &str) -> Json {
    let mut all = steps(&step, name);
    for step in &mut all {
        if let Json::Object(fields) = step {
            fields.remove("trim_offsets");
        }
    }
    Json::Array(all)
}
