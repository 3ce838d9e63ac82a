//! Shortens texts for messages.

/// The first `most_chars` characters of `text`, with an ellipsis if more follow.
pub(crate) fn excerpt(text: &str, most_chars: usize) -> String {
    match text.char_indices().nth(most_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}
