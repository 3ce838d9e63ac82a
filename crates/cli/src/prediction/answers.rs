//! Rows with their predictions, as they are written: JSONL, CSV or Parquet.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use numalign_config::TableFormat;
use numalign_data::shown::shortest;
use numalign_data::table::{AddedColumns, Cell, ParquetWriter};
use serde_json::{Map, Value};

use super::rows::{AskedRow, RowContent, Rows};
use super::{Files, RowFormat};
use crate::error::CliError;
use crate::output;

/// The columns that are added; those of these names in the input are replaced.
const ADDED: AddedColumns = AddedColumns { number: "prediction", text: "error" };

/// Where the answers go.
pub enum Answers {
    /// Standard output where there is no file.
    Lines {
        file: Option<File>,
        layout: Layout,
    },
    Parquet {
        writer: Box<ParquetWriter>,
        columns: Vec<String>,
    },
}

/// How rows become text.
pub enum Layout {
    Jsonl,
    Csv { separator: u8, columns: Vec<String>, is_begun: bool },
}

impl Answers {
    /// Makes the output file, where one is named.
    pub fn create(files: &Files<'_>, rows: &Rows) -> Result<Self, CliError> {
        let Some(path) = files.output else {
            return Ok(Self::Lines { file: None, layout: layout(files, rows)? });
        };
        let same = |other: &Path| other.canonicalize().ok();
        if same(path).is_some() && same(path) == same(files.input) {
            return Err(CliError::usage(format!("{} is the input too", path.display()))
                .with_hint("name another file with --out"));
        }
        if matches!(ending(path).as_str(), "parquet" | "pq") {
            let stored = rows.format == RowFormat::Table(TableFormat::Parquet);
            let columns = if stored { Vec::new() } else { shared_columns(rows)? };
            let writer = match stored {
                true => ParquetWriter::of_file(path, files.input, ADDED)?,
                false => ParquetWriter::of_texts(path, &columns, ADDED)?,
            };
            return Ok(Self::Parquet { writer: Box::new(writer), columns });
        }
        let layout = layout(files, rows)?;
        let file = File::create(path);
        let file = file.map_err(|error| CliError::new(format!("cannot write {}: {error}", path.display())))?;
        Ok(Self::Lines { file: Some(file), layout })
    }

    /// Writes rows with their predictions.
    pub fn write(&mut self, rows: &[AskedRow], predictions: &[Result<f64, String>]) -> Result<(), CliError> {
        let (file, layout) = match self {
            Self::Lines { file, layout } => (file, layout),
            Self::Parquet { writer, columns } => {
                for (row, prediction) in rows.iter().zip(predictions) {
                    let (number, error) = (prediction.as_ref().ok(), prediction.as_ref().err());
                    writer.push(kept_texts(row, columns.len()), number.copied(), error.cloned())?;
                }
                return Ok(());
            }
        };
        let bytes = match layout {
            Layout::Jsonl => {
                let pairs = rows.iter().zip(predictions);
                let lines: Vec<String> = pairs.map(|(row, prediction)| json_line(row, prediction)).collect();
                lines.concat().into_bytes()
            }
            Layout::Csv { separator, columns, is_begun } => {
                let mut writer = csv::WriterBuilder::new().delimiter(*separator).from_writer(Vec::new());
                if !std::mem::replace(is_begun, true) {
                    writer.write_record(columns.iter().map(String::as_str).chain([ADDED.number, ADDED.text]))?;
                }
                for (row, prediction) in rows.iter().zip(predictions) {
                    writer.write_record(csv_record(row, prediction, columns.len()))?;
                }
                writer.into_inner().map_err(|error| CliError::new(error.to_string()))?
            }
        };
        match file {
            Some(file) => Ok(file.write_all(&bytes)?),
            None => output::write(&bytes),
        }
    }

    /// Everything is written, and the header where there were no rows.
    pub fn finish(mut self) -> Result<(), CliError> {
        self.write(&[], &[])?;
        match self {
            Self::Parquet { writer, .. } => Ok(writer.finish()?),
            Self::Lines { .. } => Ok(()),
        }
    }
}

/// As `--out` ends; else as the input is written, and JSONL where that is plain lines or Parquet.
fn layout(files: &Files<'_>, rows: &Rows) -> Result<Layout, CliError> {
    let wanted = files.output.map(ending).unwrap_or_default();
    let is_csv = match wanted.as_str() {
        "csv" | "tsv" => true,
        "jsonl" | "ndjson" | "json" => false,
        _ => rows.format == RowFormat::Table(TableFormat::Csv),
    };
    if !is_csv {
        return Ok(Layout::Jsonl);
    }
    let is_tab = wanted == "tsv" || (wanted.is_empty() && ending(files.input) == "tsv");
    Ok(Layout::Csv { separator: if is_tab { b'\t' } else { b',' }, columns: shared_columns(rows)?, is_begun: false })
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

/// The columns that all rows have, but for those that are added.
fn shared_columns(rows: &Rows) -> Result<Vec<String>, CliError> {
    let Some(columns) = rows.columns() else {
        return Err(CliError::usage("JSONL has no columns that all rows share, which CSV and Parquet need")
            .with_hint("let --out end in .jsonl"));
    };
    Ok(columns.into_iter().filter(|name| !is_added(name)).collect())
}

fn is_added(column: &str) -> bool {
    column == ADDED.number || column == ADDED.text
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
        Ok(value) => field(ADDED.number, &Value::from(*value)),
        Err(problem) => field(ADDED.text, &Value::from(problem.as_str())),
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

/// The row's fields in the order of the `columns` that are kept, then prediction and error.
fn csv_record(row: &AskedRow, prediction: &Result<f64, String>, columns: usize) -> Vec<String> {
    let mut fields: Vec<String> = kept_texts(row, columns).into_iter().map(Option::unwrap_or_default).collect();
    match prediction {
        Ok(value) => fields.extend([shortest(*value), String::new()]),
        Err(problem) => fields.extend([String::new(), problem.clone()]),
    }
    fields
}

/// The row's cells as texts, one for each of the `columns` that are kept; none of a row that cannot be read.
fn kept_texts(row: &AskedRow, columns: usize) -> Vec<Option<String>> {
    match &row.content {
        RowContent::Cells(cells) => {
            cells.iter().filter(|(name, _)| !is_added(name)).map(|(_, cell)| text_of(cell)).collect()
        }
        RowContent::Line(text) => vec![Some(text.clone())],
        RowContent::Json(_) | RowContent::Unreadable => vec![None; columns],
    }
}

fn text_of(cell: &Cell) -> Option<String> {
    match cell {
        Cell::Missing => None,
        Cell::Text(text) => Some(text.clone()),
        Cell::Whole(value) => Some(value.to_string()),
        Cell::Number(value) => Some(shortest(*value)),
        Cell::Bool(value) => Some(value.to_string()),
        Cell::Nested { shown, .. } => Some(shown.clone()),
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
        assert_eq!(csv_record(&row, &Ok(0.5), 2), ["9007199254740993", "", "0.5", ""]);
        assert_eq!(csv_record(&row, &Err("why".to_owned()), 2), ["9007199254740993", "", "", "why"]);
        let unread = AskedRow { content: RowContent::Unreadable, ..row };
        assert_eq!(csv_record(&unread, &Err("why".to_owned()), 2), ["", "", "", "why"]);
    }
}
