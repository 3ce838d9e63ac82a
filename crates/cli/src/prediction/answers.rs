//! Rows with their predictions, as they are written: JSONL or CSV.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use numalign_config::TableFormat;
use numalign_data::table::Cell;
use serde_json::{Map, Value};

use super::rows::{AskedRow, RowContent, Rows};
use super::{Files, RowFormat};
use crate::error::CliError;
use crate::output;

/// The columns that are added; those of these names in the input are replaced.
const PREDICTION: &str = "prediction";
const ERROR: &str = "error";

/// Where the answers go.
pub struct Answers {
    file: Option<File>,
    layout: Layout,
}

enum Layout {
    Jsonl,
    Csv { separator: u8, columns: Vec<String>, is_begun: bool },
}

impl Answers {
    /// Makes the output file, where one is named.
    pub fn create(files: &Files<'_>, rows: &Rows) -> Result<Self, CliError> {
        let layout = layout(files, rows)?;
        let file = match files.output {
            Some(path) => {
                let same = |other: &Path| other.canonicalize().ok();
                if same(path).is_some() && same(path) == same(files.input) {
                    return Err(CliError::usage(format!("{} is the input too", path.display()))
                        .with_hint("name another file with --out"));
                }
                let file = File::create(path);
                Some(file.map_err(|error| CliError::new(format!("cannot write {}: {error}", path.display())))?)
            }
            None => None,
        };
        Ok(Self { file, layout })
    }

    /// Writes rows with their predictions.
    pub fn write(&mut self, rows: &[AskedRow], predictions: &[Result<f64, String>]) -> Result<(), CliError> {
        let bytes = match &mut self.layout {
            Layout::Jsonl => {
                let pairs = rows.iter().zip(predictions);
                let lines: Vec<String> = pairs.map(|(row, prediction)| json_line(row, prediction)).collect();
                lines.concat().into_bytes()
            }
            Layout::Csv { separator, columns, is_begun } => {
                let mut writer = csv::WriterBuilder::new().delimiter(*separator).from_writer(Vec::new());
                if !std::mem::replace(is_begun, true) {
                    writer.write_record(columns.iter().map(String::as_str).chain([PREDICTION, ERROR]))?;
                }
                for (row, prediction) in rows.iter().zip(predictions) {
                    writer.write_record(csv_record(row, prediction, columns))?;
                }
                writer.into_inner().map_err(|error| CliError::new(error.to_string()))?
            }
        };
        match &mut self.file {
            Some(file) => Ok(file.write_all(&bytes)?),
            None => output::write(&bytes),
        }
    }

    /// Everything is written, and the header where there were no rows.
    pub fn finish(mut self) -> Result<(), CliError> {
        self.write(&[], &[])
    }
}

/// As `--out` ends; else as the input is written, and JSONL where that is plain lines or Parquet.
fn layout(files: &Files<'_>, rows: &Rows) -> Result<Layout, CliError> {
    let ending = |path: &Path| path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    let wanted = files.output.and_then(ending).unwrap_or_default();
    let is_csv = match wanted.as_str() {
        "csv" | "tsv" => true,
        "jsonl" | "ndjson" | "json" => false,
        "parquet" | "pq" => {
            return Err(
                CliError::usage("predictions are written as JSONL or CSV").with_hint("let --out end in .jsonl or .csv")
            );
        }
        _ => rows.format == RowFormat::Table(TableFormat::Csv),
    };
    if !is_csv {
        return Ok(Layout::Jsonl);
    }
    let Some(columns) = rows.columns() else {
        return Err(CliError::usage("JSONL has no columns that all rows share, which CSV needs")
            .with_hint("let --out end in .jsonl"));
    };
    let is_tab = wanted == "tsv" || (wanted.is_empty() && ending(files.input).as_deref() == Some("tsv"));
    let columns = columns.into_iter().filter(|name| !is_added(name)).collect();
    Ok(Layout::Csv { separator: if is_tab { b'\t' } else { b',' }, columns, is_begun: false })
}

fn is_added(column: &str) -> bool {
    column == PREDICTION || column == ERROR
}

/// The row as one line, its ending with it.
fn json_line(row: &AskedRow, prediction: &Result<f64, String>) -> String {
    let mut fields = match &row.content {
        RowContent::Json(text) => without_added(text),
        RowContent::Cells(cells) => {
            let kept = cells.iter().filter(|(name, _)| !is_added(name));
            kept.map(|(name, cell)| field(name, &json_of(cell))).collect::<Vec<_>>().join(", ")
        }
        RowContent::Line(text) => field("input", &Value::from(text.as_str())),
        RowContent::Unreadable => field("line", &Value::from(row.line)),
    };
    if !fields.is_empty() {
        fields.push_str(", ");
    }
    fields += &match prediction {
        Ok(value) => field(PREDICTION, &Value::from(*value)),
        Err(problem) => field(ERROR, &Value::from(problem.as_str())),
    };
    format!("{{{fields}}}\n")
}

fn field(name: &str, value: &Value) -> String {
    format!("{}: {value}", Value::from(name))
}

/// What stands between the braces of an object, as it was written; where it has keys that are added, without them.
fn without_added(object: &str) -> String {
    let parsed: Map<String, Value> = serde_json::from_str(object).unwrap_or_default();
    if parsed.keys().any(|name| is_added(name)) {
        let kept = parsed.iter().filter(|(name, _)| !is_added(name));
        return kept.map(|(name, value)| field(name, value)).collect::<Vec<_>>().join(", ");
    }
    let inside = object.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    inside.unwrap_or_default().trim().to_owned()
}

fn json_of(cell: &Cell) -> Value {
    match cell {
        Cell::Missing => Value::Null,
        Cell::Text(text) => Value::from(text.as_str()),
        Cell::Whole(value) => Value::from(*value),
        Cell::Number(value) => Value::from(*value),
        Cell::Bool(value) => Value::from(*value),
        Cell::Nested { shown, .. } => Value::from(shown.as_str()),
    }
}

/// The row's fields in the order of `columns`, then prediction and error.
fn csv_record(row: &AskedRow, prediction: &Result<f64, String>, columns: &[String]) -> Vec<String> {
    let mut fields: Vec<String> = match &row.content {
        RowContent::Cells(cells) => {
            cells.iter().filter(|(name, _)| !is_added(name)).map(|(_, cell)| text_of(cell)).collect()
        }
        RowContent::Line(text) => vec![text.clone()],
        RowContent::Json(_) | RowContent::Unreadable => vec![String::new(); columns.len()],
    };
    match prediction {
        Ok(value) => fields.extend([value.to_string(), String::new()]),
        Err(problem) => fields.extend([String::new(), problem.clone()]),
    }
    fields
}

fn text_of(cell: &Cell) -> String {
    match cell {
        Cell::Missing => String::new(),
        Cell::Text(text) => text.clone(),
        Cell::Whole(value) => value.to_string(),
        Cell::Number(value) => value.to_string(),
        Cell::Bool(value) => value.to_string(),
        Cell::Nested { shown, .. } => shown.clone(),
    }
}

#[cfg(test)]
mod tests {
    use numalign_data::Input;

    use super::*;

    fn row(content: RowContent) -> AskedRow {
        AskedRow { line: 7, content, input: Ok(Input::Number(1.0)) }
    }

    #[test]
    fn an_object_keeps_what_was_written() {
        let line = |object: &str| json_line(&row(RowContent::Json(object.to_owned())), &Ok(0.1));
        assert_eq!(line("{\"id\":17,\"a\":[1, {}]}"), "{\"id\":17,\"a\":[1, {}], \"prediction\": 0.1}\n");
        assert_eq!(line(" {} "), "{\"prediction\": 0.1}\n");
        assert_eq!(line("{\"prediction\": 3, \"id\": 1}"), "{\"id\": 1, \"prediction\": 0.1}\n");
        let unread = json_line(&row(RowContent::Unreadable), &Err("bad \"JSON\"".to_owned()));
        assert_eq!(unread, "{\"line\": 7, \"error\": \"bad \\\"JSON\\\"\"}\n");
        let text = json_line(&row(RowContent::Line("a \"b\"".to_owned())), &Ok(2.0));
        assert_eq!(text, "{\"input\": \"a \\\"b\\\"\", \"prediction\": 2.0}\n");
    }

    #[test]
    fn cells_become_fields_of_either_format() {
        let cells = vec![
            ("id".to_owned(), Cell::Whole(9_007_199_254_740_993)),
            ("error".to_owned(), Cell::Text("old".to_owned())),
            ("x".to_owned(), Cell::Missing),
        ];
        let row = row(RowContent::Cells(cells));
        assert_eq!(json_line(&row, &Ok(0.5)), "{\"id\": 9007199254740993, \"x\": null, \"prediction\": 0.5}\n");
        let columns = ["id".to_owned(), "x".to_owned()];
        assert_eq!(csv_record(&row, &Ok(0.5), &columns), ["9007199254740993", "", "0.5", ""]);
        assert_eq!(csv_record(&row, &Err("why".to_owned()), &columns), ["9007199254740993", "", "", "why"]);
    }
}
