//! The byte-level byte-pair encodings of GPT-2 and its relatives as a `tokenizer.json`: vocabulary, merges, and the cut of
//! a text into words before them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value as Json, json};

/// How Qwen 2 and 3 cut a text into words.
pub const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A `tokenizer.json`.
#[derive(Serialize)]
pub struct Document<'a> {
    version: &'static str,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Json,
    pre_tokenizer: Json,
    post_processor: Json,
    decoder: Json,
    model: Bpe<'a>,
}

/// What a [`Document`] is made of.
pub struct Parts<'a> {
    /// Tokens by their text.
    pub vocab: BTreeMap<&'a str, u32>,
    /// Pairs of tokens, the first merged first.
    pub merges: Vec<(&'a str, &'a str)>,
    /// Tokens that are found in the text as a whole.
    pub added_tokens: Vec<AddedToken<'a>>,
    /// `normalizer`.
    pub normalizer: Json,
    /// `pre_tokenizer`.
    pub pre_tokenizer: Json,
    /// `post_processor`.
    pub post_processor: Json,
    /// Words that are tokens as a whole are taken as they are.
    pub ignore_merges: bool,
}

/// A token that is found in the text before it is cut into words.
#[derive(Serialize)]
pub struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl<'a> AddedToken<'a> {
    /// A token that takes no white space with it and is looked for in the text as it is.
    pub fn plain(id: u32, content: &'a str, special: bool) -> Self {
        Self { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }
    }
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, u32>,
    merges: Vec<(&'a str, &'a str)>,
}

impl<'a> From<Parts<'a>> for Document<'a> {
    fn from(parts: Parts<'a>) -> Self {
        let Parts { vocab, merges, added_tokens, normalizer, pre_tokenizer, post_processor, ignore_merges } = parts;
        Self {
            version: "1.0",
            added_tokens,
            normalizer,
            pre_tokenizer,
            post_processor,
            decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
            model: Bpe { r#type: "BPE", ignore_merges, vocab, merges },
        }
    }
}

/// A line of `merges.txt` or its like as a pair; none where it is no pair.
pub fn merge(line: &str) -> Option<(&str, &str)> {
    // A token may begin with a space, and no token of this kind contains one.
    let (at, _) = line.char_indices().skip(1).find(|(_, character)| *character == ' ')?;
    Some((&line[..at], &line[at + 1..]))
}

/// One step after the other.
pub fn sequence(steps: Vec<Json>) -> Json {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// Matches of `pattern` apart from what lies between them.
pub fn split(pattern: &str) -> Json {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

/// Bytes as printable characters; with `gpt_2` after GPT-2's own cut into words.
pub fn bytes(gpt_2: bool, add_prefix_space: bool) -> Json {
    json!({ "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": gpt_2 })
}
