//! The JSON of a model folder as Python reads it: `NaN`, `Infinity` and `-Infinity` may stand in the place of a number.

use serde_json::Value;

/// Parses `text`. Python's three words become texts of the same letters, so that a key which counts and holds one is
/// refused like any other text.
///
/// # Errors
/// Text that is not JSON besides.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => match quoted(text) {
            Some(quoted) => serde_json::from_str(&quoted),
            None => Err(error),
        },
    }
}

/// `text` with Python's words in quotes; none where it has none.
fn quoted(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 16);
    let (mut rest, mut is_text, mut found) = (text, false, false);
    while let Some(character) = rest.chars().next() {
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| !is_text && rest.starts_with(word));
        let taken = match (word, character) {
            (Some(word), _) => {
                found = true;
                out.push_str(&format!("\"{word}\""));
                rest = &rest[word.len()..];
                continue;
            }
            // An escaped quote does not end a text.
            (None, '\\') if is_text => rest.chars().take(2).map(char::len_utf8).sum(),
            (None, '"') => {
                is_text = !is_text;
                1
            }
            (None, other) => other.len_utf8(),
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pythons_words_are_read_and_texts_stay_as_they_are() {
        let text = r#"{"a": [0.0, Infinity, -Infinity], "b": NaN, "c": "NaN \" Infinity", "é\\": 1}"#;
        let expected = json!({"a": [0.0, "Infinity", "-Infinity"], "b": "NaN", "c": "NaN \" Infinity", "é\\": 1});
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("{\"a\": \"NaN\"}").unwrap(), json!({"a": "NaN"}));
        for bad in ["", "{", "{\"a\": nan}", "{\"a\": NaN", "\"\\", "NaNNaN"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
