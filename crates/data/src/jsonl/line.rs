//! One line of a JSONL file as a sample, and back: `{"input": …, "output": …}`.
//!
//! | stage | input |
//! |---|---|
//! | `nn` | a number, or a string that is a number, bare or as `$$number&&` |
//! | `text` | a string, used as it is; a number becomes its shortest text |
//! | `mixed` | a string that follows the grammar of marked numbers; it may hold none |
//!
//! The output is a number, or a string that is one, as in `nn`. Numbers are finite, texts are not empty.

use numalign_config::Stage;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::error::LineProblem;
use crate::grammar::{self, NumberError};
use crate::sample::{Input, Sample};
use crate::text::excerpt;

/// Bytes that a line may have, without its line ending.
pub const MOST_LINE_BYTES: usize = 1 << 20;
/// Characters of a bad value that an error message shows.
const SHOWN_CHARS: usize = 60;

/// Characters of a message about a key that are shown.
const SHOWN_OF_KEYS: usize = 100;

/// The line as JSON. Keys may be missing here, so that JSON errors come first.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, deserialize_with = "present")]
    input: Option<Field>,
    #[serde(default, deserialize_with = "present")]
    output: Option<Field>,
}

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Field {
    Number(f64),
    Text(String),
    Other(serde_json::Value),
}

impl Field {
    /// What the value is, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Field::Number(_) => "a number",
            Field::Text(_) => "a string",
            Field::Other(serde_json::Value::Null) => "null",
            Field::Other(serde_json::Value::Bool(_)) => "a boolean",
            Field::Other(serde_json::Value::Array(_)) => "an array",
            Field::Other(_) => "an object",
        }
    }
}

/// A key that is there, even with `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Field>, D::Error> {
    Field::deserialize(deserializer).map(Some)
}

/// The values of `input` and `output`.
fn parse_object(line: &str) -> Result<(Field, Field), LineProblem> {
    let found = match line.trim_start().chars().next() {
        Some('{') => None,
        Some('[') => Some("an array"),
        Some('"') => Some("a string"),
        Some('n') => Some("null"),
        Some('t' | 'f') => Some("a boolean"),
        _ => Some("a number"),
    };
    // A derived struct would take an array for its fields in order.
    if let Some(found) = found {
        serde_json::from_str::<IgnoredAny>(line).map_err(|error| json_problem(&error))?;
        return Err(LineProblem::NotAnObject { found });
    }
    let Line { input, output } = serde_json::from_str(line).map_err(|error| json_problem(&error))?;
    let input = input.ok_or(LineProblem::MissingKey { key: "input" })?;
    let output = output.ok_or(LineProblem::MissingKey { key: "output" })?;
    Ok((input, output))
}

/// The parser's message with the column only: its line number would be taken for the file's.
fn json_problem(error: &serde_json::Error) -> LineProblem {
    let message = error.to_string();
    let text = message.strip_suffix(&format!(" at line {} column {}", error.line(), error.column()));
    let (text, column) = (text.unwrap_or(&message), error.column());
    if !error.is_data() {
        return LineProblem::BadJson { reason: format!("{text} at column {column}") };
    }
    let text = text.replacen(" field ", " key ", 1).replace('`', "\"");
    LineProblem::WrongKey { reason: format!("{} at column {column}", excerpt(&text, SHOWN_OF_KEYS)) }
}

/// Reads one line, without its line ending; the sample's index is 0.
///
/// # Errors
/// What is wrong with the line.
pub fn parse_line(line: &[u8], stage: Stage) -> Result<Sample, LineProblem> {
    if line.len() > MOST_LINE_BYTES {
        return Err(LineProblem::TooLong { limit: MOST_LINE_BYTES });
    }
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => {
            return Err(LineProblem::InvalidUtf8 { byte: error.valid_up_to() });
        }
    };
    if text.trim().is_empty() {
        return Err(LineProblem::Blank);
    }
    let (input, output) = parse_object(text)?;
    let input = match stage {
        Stage::Nn => Input::Number(number("input", input)?),
        Stage::Text => Input::Text(plain_text(input)?),
        Stage::Mixed => Input::Text(marked_text(input)?),
    };
    Ok(Sample { index: 0, input, target: number("output", output)? })
}

/// The line of a sample, without a line ending: `{"input": …, "output": …}`. A number is written in the fewest
/// digits that read back to the same bits.
pub fn write_line(sample: &Sample) -> String {
    let input = match &sample.input {
        Input::Number(value) => serde_json::Value::from(*value),
        Input::Text(text) => serde_json::Value::from(text.as_str()),
    };
    format!("{{\"input\": {input}, \"output\": {}}}", serde_json::Value::from(sample.target))
}

fn number(key: &'static str, field: Field) -> Result<f64, LineProblem> {
    let text = match field {
        Field::Number(value) if value.is_finite() => return Ok(value),
        Field::Number(value) => {
            return Err(LineProblem::NotFinite { key, text: value.to_string() });
        }
        Field::Text(text) => text,
        Field::Other(_) => {
            let found = field.kind();
            return Err(LineProblem::WrongType { key, found, expected: "a number or a string that is a number" });
        }
    };
    grammar::parse_value(&text).map_err(|error| {
        let text = excerpt(&text, SHOWN_CHARS);
        match error {
            NumberError::NotDecimal => LineProblem::NotANumber { key, text },
            NumberError::NotFinite => LineProblem::NotFinite { key, text },
        }
    })
}

fn plain_text(field: Field) -> Result<String, LineProblem> {
    match field {
        Field::Text(text) if text.is_empty() => Err(LineProblem::EmptyText),
        Field::Text(text) => Ok(text),
        Field::Number(_) => number("input", field).map(grammar::shortest_value),
        Field::Other(_) => {
            Err(LineProblem::WrongType { key: "input", found: field.kind(), expected: "a string or a number" })
        }
    }
}

fn marked_text(field: Field) -> Result<String, LineProblem> {
    match field {
        Field::Text(text) if text.is_empty() => Err(LineProblem::EmptyText),
        Field::Text(text) => {
            grammar::parse(&text).map_err(LineProblem::Grammar)?;
            Ok(text)
        }
        other => Err(LineProblem::WrongType { key: "input", found: other.kind(), expected: "a string" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem(line: impl AsRef<[u8]>, stage: Stage) -> LineProblem {
        parse_line(line.as_ref(), stage).unwrap_err()
    }

    fn line(input: &str, output: &str) -> String {
        format!("{{\"input\": {input}, \"output\": {output}}}")
    }

    #[test]
    fn reads_what_each_stage_takes() {
        let cases = [
            (Stage::Nn, "1.5", "2", Input::Number(1.5), 2.0),
            (Stage::Nn, "\"1.5\"", "\"$$-2e1&&\"", Input::Number(1.5), -20.0),
            (Stage::Nn, "\"$$3&&\"", "18446744073709551616", Input::Number(3.0), 18446744073709551616.0),
            (Stage::Text, "\"$$ any &\"", "\"7\"", Input::Text("$$ any &".into()), 7.0),
            (Stage::Text, "0.10", "0.1", Input::Text("0.1".into()), 0.1),
            (Stage::Mixed, "\"a $$1&&\\n\"", "1", Input::Text("a $$1&&\n".into()), 1.0),
            (Stage::Mixed, "\"none\"", "1", Input::Text("none".into()), 1.0),
        ];
        for (stage, input, output, expected, target) in cases {
            let sample = parse_line(line(input, output).as_bytes(), stage).unwrap();
            assert_eq!(sample, Sample { index: 0, input: expected, target });
        }
        let turned = parse_line(b" {\"output\":1,\"input\":2} ", Stage::Nn).unwrap();
        assert_eq!((turned.input, turned.target), (Input::Number(2.0), 1.0));
    }

    #[test]
    fn says_what_is_wrong_with_a_value() {
        let cases = [
            (Stage::Nn, line("null", "1"), "\"input\" is null, expected a number or a string that is a number"),
            (Stage::Nn, line("[1, [2]]", "1"), "\"input\" is an array, expected a number or a string that is a number"),
            (Stage::Nn, line("\" 1\"", "1"), "\"input\" is \" 1\", expected a decimal number, bare or as $$number&&"),
            (Stage::Text, line("true", "1"), "\"input\" is a boolean, expected a string or a number"),
            (Stage::Text, line("\"\"", "1"), "\"input\" is an empty text"),
            (Stage::Mixed, line("5", "1"), "\"input\" is a number, expected a string"),
            (Stage::Mixed, line("\"$$5\"", "1"), "\"input\": the `$$` at byte 0 has no closing `&&`: \"$$5\""),
            (
                Stage::Nn,
                line("1", "{\"a\": 1}"),
                "\"output\" is an object, expected a number or a string that is a number",
            ),
            (Stage::Nn, line("1", "\"1e999\""), "\"output\" is \"1e999\", not finite as a 64-bit float"),
            (
                Stage::Nn,
                line("1", "\"nan\""),
                "\"output\" is \"nan\", expected a decimal number, bare or as $$number&&",
            ),
            (Stage::Nn, line("1", "1e999"), "bad JSON: number out of range at column 28"),
        ];
        for (stage, line, expected) in cases {
            assert_eq!(problem(&line, stage).to_string(), expected, "{line}");
        }
    }

    #[test]
    fn says_what_is_wrong_with_a_line() {
        assert_eq!(problem("  ", Stage::Nn), LineProblem::Blank);
        assert_eq!(problem(b"{\"input\": \"\xff", Stage::Text), LineProblem::InvalidUtf8 { byte: 11 });
        let long = line(&format!("\"{}\"", "x".repeat(MOST_LINE_BYTES)), "1");
        assert_eq!(problem(long, Stage::Text), LineProblem::TooLong { limit: MOST_LINE_BYTES });
        assert!(problem("[".repeat(100_000), Stage::Nn).to_string().len() < 200);
    }

    #[test]
    fn reads_both_values_in_any_order() {
        let expected = Ok((Field::Number(1.0), Field::Text("é\"".to_string())));
        assert_eq!(parse_object(r#"{"input": 1, "output": "é\""}"#), expected);
        assert_eq!(parse_object(r#"{"output":"\u00e9\"","input":1e0}"#), expected);
    }

    #[test]
    fn says_what_is_wrong_with_an_object() {
        let cases = [
            ("5", "expected an object with the keys \"input\" and \"output\", found a number"),
            ("\"a\"", "expected an object with the keys \"input\" and \"output\", found a string"),
            ("[{}]", "expected an object with the keys \"input\" and \"output\", found an array"),
            ("null", "expected an object with the keys \"input\" and \"output\", found null"),
            ("{}", "missing key \"input\""),
            ("{\"input\": 1}", "missing key \"output\""),
            ("{\"input\": 1, \"input\": 1, \"output\": 2}", "duplicate key \"input\" at column 20"),
            ("{\"input\": 1, \"inp\\u0075t\": 1, \"output\": 2}", "duplicate key \"input\" at column 25"),
            ("{\"x\": 1}", "unknown key \"x\", expected \"input\" or \"output\" at column 4"),
            ("{\"input\": 1, \"output\": NaN}", "bad JSON: expected value at column 24"),
            ("{\"input\": 1} {}", "bad JSON: trailing characters at column 14"),
            ("{\"input\": 1", "bad JSON: EOF while parsing an object at column 11"),
            ("{\"input\": \"\\ud800\"}", "bad JSON: unexpected end of hex escape at column 18"),
        ];
        for (line, expected) in cases {
            assert_eq!(parse_object(line).unwrap_err().to_string(), expected, "{line}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = format!("{{\"input\": {}", "{\"a\": ".repeat(50_000));
        assert!(matches!(parse_object(&deep), Err(LineProblem::BadJson { .. })));
        let deep = format!("{{\"input\": {}", "[".repeat(50_000));
        assert!(matches!(parse_object(&deep), Err(LineProblem::BadJson { .. })));
    }

    proptest! {
        #[test]
        fn any_number_and_text_survives(value: u64, target: u64, text in ".{1,40}", lines in "(\\PC|[\\n\\t\"\\\\]){1,20}") {
            let (value, target) = (f64::from_bits(value), f64::from_bits(target));
            prop_assume!(value.is_finite() && target.is_finite());
            let number = Sample { index: 0, input: Input::Number(value), target };
            let read_back = parse_line(write_line(&number).as_bytes(), Stage::Nn).unwrap();
            prop_assert_eq!(read_back.content_bytes(), number.content_bytes());
            for text in [text, lines] {
                let sample = Sample { index: 0, input: Input::Text(text), target };
                let read_back = parse_line(write_line(&sample).as_bytes(), Stage::Text).unwrap();
                prop_assert_eq!(read_back.content_bytes(), sample.content_bytes());
            }
        }
    }
}
