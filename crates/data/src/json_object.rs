//! One JSON object with exactly the keys `input` and `output`. Called by `json_line`, which gives the values
//! meaning.
//!
//! Reading into a map would let a repeated key pass unseen and would blur "not an object" with "wrong type", so
//! the object is read entry by entry.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{LineProblem, excerpt};

const KEYS: [&str; 2] = ["input", "output"];
/// Characters of an unknown key that an error message shows.
const SHOWN_CHARS: usize = 40;

/// The value of a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Field {
    Number(f64),
    Text(String),
    /// Neither; what it is, in words.
    Other(&'static str),
}

/// The values of `input` and `output`.
pub(crate) fn parse(line: &str) -> Result<(Field, Field), LineProblem> {
    let entries = match serde_json::from_str::<Json>(line) {
        Ok(Json::Object(entries)) => entries,
        Ok(Json::Field(Field::Number(_))) => {
            return Err(LineProblem::NotAnObject { found: "a number" });
        }
        Ok(Json::Field(Field::Text(_))) => {
            return Err(LineProblem::NotAnObject { found: "a string" });
        }
        Ok(Json::Field(Field::Other(found))) => return Err(LineProblem::NotAnObject { found }),
        Err(error) => {
            return Err(LineProblem::BadJson { reason: reason(&error) });
        }
    };
    let mut values = [None, None];
    for (key, field) in entries {
        let Some(place) = KEYS.iter().position(|known| *known == key) else {
            return Err(LineProblem::UnknownKey { key: excerpt(&key, SHOWN_CHARS) });
        };
        if values[place].replace(field).is_some() {
            return Err(LineProblem::DuplicateKey { key: KEYS[place] });
        }
    }
    match values {
        [Some(input), Some(output)] => Ok((input, output)),
        [None, _] => Err(LineProblem::MissingKey { key: KEYS[0] }),
        [_, None] => Err(LineProblem::MissingKey { key: KEYS[1] }),
    }
}

/// The parser's message with the column only: its line number would be taken for the file's.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    match message.strip_suffix(&position) {
        Some(text) => format!("{text} at column {}", error.column()),
        None => message,
    }
}

/// Any JSON value; what lies inside an entry's array or object is checked and dropped.
enum Json {
    Object(Vec<(String, Field)>),
    Field(Field),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Field(Field::Other("null")))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Field(Field::Other("a boolean")))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Field(Field::Number(value as f64)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Field(Field::Number(value as f64)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Field(Field::Number(value)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Field(Field::Text(text.to_string())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Json::Field(Field::Other("an array")))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, value)) = entries.next_entry::<String, Json>()? {
            let field = match value {
                Json::Field(field) => field,
                Json::Object(_) => Field::Other("an object"),
            };
            fields.push((key, field));
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_values_in_any_order() {
        let expected = Ok((Field::Number(1.0), Field::Text("é\"".to_string())));
        assert_eq!(parse(r#"{"input": 1, "output": "é\""}"#), expected);
        assert_eq!(parse(r#"{"output":"\u00e9\"","input":1e0}"#), expected);
    }

    #[test]
    fn says_what_is_wrong() {
        let cases = [
            ("5", "expected an object with the keys \"input\" and \"output\", found a number"),
            ("\"a\"", "expected an object with the keys \"input\" and \"output\", found a string"),
            ("[{}]", "expected an object with the keys \"input\" and \"output\", found an array"),
            ("null", "expected an object with the keys \"input\" and \"output\", found null"),
            ("{}", "missing key \"input\""),
            ("{\"input\": 1}", "missing key \"output\""),
            ("{\"input\": 1, \"input\": 1, \"output\": 2}", "duplicate key \"input\""),
            ("{\"input\": 1, \"inp\\u0075t\": 1, \"output\": 2}", "duplicate key \"input\""),
            ("{\"x\": 1}", "unknown key \"x\", expected \"input\" and \"output\""),
            ("{\"input\": 1, \"output\": NaN}", "bad JSON: expected value at column 24"),
            ("{\"input\": 1} {}", "bad JSON: trailing characters at column 14"),
            ("{\"input\": 1", "bad JSON: EOF while parsing an object at column 11"),
            ("{\"input\": \"\\ud800\"}", "bad JSON: unexpected end of hex escape at column 18"),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line).unwrap_err().to_string(), expected, "{line}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = format!("{{\"input\": {}", "{\"a\": ".repeat(50_000));
        assert!(matches!(parse(&deep), Err(LineProblem::BadJson { .. })));
        let deep = format!("{{\"input\": {}", "[".repeat(50_000));
        assert!(matches!(parse(&deep), Err(LineProblem::BadJson { .. })));
    }
}
