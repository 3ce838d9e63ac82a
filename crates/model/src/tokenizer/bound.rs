//! How many tokens a text can have at most, from its length alone.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Model, ModelWrapper};

use super::fingerprint::steps;

/// Tokens for each byte of a text, at most; none where only tokenising tells. In a byte-level encoding a token stands for
/// at least one byte. A normaliser may lengthen the text, and other encodings may have several tokens for a byte. Where a byte
/// has no token, a text may come to nothing, or be refused.
pub(super) fn tokens_per_byte(tokenizer: &tokenizers::Tokenizer) -> Option<usize> {
    if tokenizer.get_normalizer().is_some() || !matches!(tokenizer.get_model(), ModelWrapper::BPE(_)) {
        return None;
    }
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
    let steps = steps(&pre_tokenizer, "pretokenizers");
    if !steps.iter().any(|step| step["type"] == "ByteLevel") {
        return None;
    }
    let is_known = |byte: char| tokenizer.get_model().token_to_id(&byte.to_string()).is_some();
    if !ByteLevel::alphabet().into_iter().all(is_known) {
        return None;
    }
    // A space may be put before each piece that an earlier step cut, which has at least a byte.
    let adds_spaces = steps.iter().any(|step| step["add_prefix_space"] == true);
    Some(if adds_spaces { 2 } else { 1 })
}
