//! `tokenizer.ggml.pre`: how a text is cut into words before byte-pair encoding, as `tokenizer.json` says it.
//!
//! Patterns are those of the models' own `tokenizer.json`; `default` has none, and is what llama.cpp does.

use serde_json::{Value as Json, json};

use super::names::GgufArchitecture;
use crate::load::byte_level::{QWEN_2, bytes, sequence, split};

/// Text before the encoding, in the words of `tokenizer.json`.
pub struct PreTokenizer {
    /// `normalizer`.
    pub normalizer: Json,
    /// `pre_tokenizer`.
    pub pre_tokenizer: Json,
    /// `ignore_merges`: words that are tokens as a whole are taken as they are.
    pub ignore_merges: bool,
    /// Whether a text begins with a beginning-of-text token where the file does not say.
    pub adds_bos: bool,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kinds that are known, for messages.
pub const KNOWN: &str = "default, gpt-2, llama-bpe, qwen2, smollm, tekken";

/// The pre-tokenizer called `name`; where the file names none, that of the architecture. None for unknown names.
pub fn pre_tokenizer(name: Option<&str>, architecture: GgufArchitecture) -> Option<PreTokenizer> {
    let name = name.unwrap_or(match architecture {
        GgufArchitecture::Gpt2 => "gpt-2",
        GgufArchitecture::Qwen2 | GgufArchitecture::Qwen3 => "qwen2",
        GgufArchitecture::Llama => "default",
    });
    let plain = |pre_tokenizer: Json| PreTokenizer {
        normalizer: Json::Null,
        pre_tokenizer,
        ignore_merges: false,
        adds_bos: false,
    };
    Some(match name {
        "gpt-2" => plain(bytes(true, false)),
        "smollm" => plain(sequence(vec![json!({ "type": "Digits", "individual_digits": true }), bytes(true, false)])),
        "llama-bpe" | "llama3" | "llama-v3" => PreTokenizer {
            ignore_merges: true,
            adds_bos: true,
            ..plain(sequence(vec![split(LLAMA_3), bytes(false, false)]))
        },
        "qwen2" => PreTokenizer {
            normalizer: json!({ "type": "NFC" }),
            ..plain(sequence(vec![split(QWEN_2), bytes(false, false)]))
        },
        "tekken" => PreTokenizer {
            ignore_merges: true,
            adds_bos: true,
            ..plain(sequence(vec![split(TEKKEN), bytes(false, false)]))
        },
        "default" => {
            let punctuation = split(r"[\p{P}\$\+<=>\^~\|]+");
            let gpt_2 = split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)");
            plain(sequence(vec![punctuation, gpt_2, split(r"\p{N}+"), split("[0-9][0-9][0-9]"), bytes(false, false)]))
        }
        _ => return None,
    })
}
