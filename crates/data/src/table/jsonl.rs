//! JSONL: one object per line, its keys the columns.
//!
//! Lines end with LF or CRLF, the last one with or without; a byte order mark at the start is skipped, and so are blank
//! lines at the end.

use std::fmt;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::cell::Cell;
use super::error::{RowProblem, TableError};
use super::{ReadRows, Row};
use crate::text::excerpt;

/// Bytes that a line may have, without its line ending.
pub const MOST_LINE_BYTES: usize = 1 << 20;
/// Characters of a bad line that an error message shows.
const SHOWN_CHARS: usize = 60;
/// Characters of a nested value that are kept for messages.
const SHOWN_OF_NESTED: usize = 200;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The rows of a JSONL file.
pub(super) struct Rows<R> {
    reader: R,
    path: PathBuf,
    line: u64,
    /// The first of the blank lines that came last.
    blank: Option<u64>,
    /// Those of the row before, so that equal rows share them.
    names: Arc<[String]>,
}

impl<R: BufRead> Rows<R> {
    pub(super) fn new(reader: R, path: &Path) -> Self {
        Rows { reader, path: path.to_path_buf(), line: 0, blank: None, names: Arc::new([]) }
    }
}

impl<R: BufRead> ReadRows for Rows<R> {
    fn next_row(&mut self) -> Result<Option<Row>, TableError> {
        let mut buffer = Vec::new();
        loop {
            let read = read_line(&mut self.reader, &mut buffer)
                .map_err(|source| TableError::Io { path: self.path.clone(), source })?;
            if !read {
                return Ok(None);
            }
            self.line += 1;
            let mut content = without_line_ending(&buffer);
            if self.line == 1 {
                content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
            }
            if content.trim_ascii().is_empty() {
                self.blank = self.blank.or(Some(self.line));
                continue;
            }
            let refused = |line, problem, content: &[u8]| {
                Err(TableError::Line { path: self.path.clone(), line, problem, excerpt: line_excerpt(content) })
            };
            if let Some(line) = self.blank.take() {
                return refused(line, RowProblem::Blank, b"");
            }
            return match parse(content) {
                Ok((names, cells)) => {
                    if *names != *self.names {
                        self.names = names.into();
                    }
                    Ok(Some(Row { line: self.line, names: self.names.clone(), cells }))
                }
                Err(problem) => refused(self.line, problem, content),
            };
        }
    }
}

/// Reads the next line with its ending into `buffer`; false at the end. Of a line that is too long, only as much is read as
/// shows that it is.
fn read_line(reader: &mut impl BufRead, buffer: &mut Vec<u8>) -> std::io::Result<bool> {
    let longest = BYTE_ORDER_MARK.len() + MOST_LINE_BYTES + b"\r\n".len();
    buffer.clear();
    Ok(reader.take(longest as u64).read_until(b'\n', buffer)? > 0)
}

fn without_line_ending(line: &[u8]) -> &[u8] {
    match line {
        [content @ .., b'\r', b'\n'] | [content @ .., b'\n'] => content,
        _ => line,
    }
}

fn line_excerpt(content: &[u8]) -> String {
    // A character has at most four bytes.
    let start = &content[..content.len().min(4 * SHOWN_CHARS + 1)];
    excerpt(&String::from_utf8_lossy(start), SHOWN_CHARS)
}

/// The keys and values of one line, without its line ending, in its order.
pub(super) fn parse(line: &[u8]) -> Result<(Vec<String>, Vec<Cell>), RowProblem> {
    if line.len() > MOST_LINE_BYTES {
        return Err(RowProblem::TooLong { limit: MOST_LINE_BYTES });
    }
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => return Err(RowProblem::InvalidUtf8 { byte: error.valid_up_to() }),
    };
    let found = match text.trim_start().chars().next() {
        Some('{') | None => None,
        Some('[') => Some("a list"),
        Some('"') => Some("a string"),
        Some('n') => Some("null"),
        Some('t' | 'f') => Some("a boolean"),
        _ => Some("a number"),
    };
    if let Some(found) = found {
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| bad_json(&error))?;
        return Err(RowProblem::NotAnObject { found });
    }
    let Object(fields) = serde_json::from_str(text).map_err(|error| bad_json(&error))?;
    let (mut names, mut cells) = (Vec::with_capacity(fields.len()), Vec::with_capacity(fields.len()));
    for (name, value) in fields {
        if names.contains(&name) {
            return Err(RowProblem::DuplicateKey { key: name });
        }
        names.push(name);
        cells.push(cell(value));
    }
    Ok((names, cells))
}

fn cell(value: Value) -> Cell {
    match value {
        Value::Null => Cell::Missing,
        Value::Bool(value) => Cell::Bool(value),
        Value::String(text) => Cell::Text(text),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Cell::Whole(whole),
            None => Cell::Number(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::Array(_) => Cell::Nested { kind: "a list", shown: excerpt(&value.to_string(), SHOWN_OF_NESTED) },
        Value::Object(_) => Cell::Nested { kind: "an object", shown: excerpt(&value.to_string(), SHOWN_OF_NESTED) },
    }
}

/// The parser's message with the column only: its line number would be taken for the file's.
fn bad_json(error: &serde_json::Error) -> RowProblem {
    let message = error.to_string();
    let text = message.strip_suffix(&format!(" at line {} column {}", error.line(), error.column()));
    RowProblem::BadJson { reason: format!("{} at column {}", text.unwrap_or(&message), error.column()) }
}

/// An object with its keys in their order, none of them dropped.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}
