//! Tables: the rows of a JSONL, CSV or Parquet file, one after another, each with named cells.
//!
//! [`Table::open`] finds the format by the file's ending or takes it from [`TableOptions`]; the table is an iterator over
//! [`Row`]s. A row that cannot be read is an error of its own, and reading goes on behind it where the format allows it
//! ([`TableError::ends_the_table`]).

mod cell;
mod csv;
mod error;
mod input;
mod jsonl;
mod parquet;
mod parquet_writer;
mod sniff;
mod template;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use numalign_config::TableFormat;

pub use cell::{Cell, CellProblem};
pub use error::{RowProblem, TableError};
pub use input::input_of;
pub use jsonl::MOST_LINE_BYTES;
pub use parquet_writer::{AddedColumns, ParquetWriter};
pub use template::{RowText, Template, TemplateError};

/// What is known of a file before it is opened.
#[derive(Debug, Clone, Default)]
pub struct TableOptions {
    /// The file's ending decides where there is none, and its first bytes where the ending says nothing.
    pub format: Option<TableFormat>,
    /// Of CSV; the header decides where there is none.
    pub separator: Option<u8>,
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its place in the file, counted from 1: the line on which it begins, or with Parquet its number among the rows.
    pub line: u64,
    names: Arc<[String]>,
    cells: Vec<Cell>,
}

impl Row {
    /// The cell of that column; `None` where the row has no such column.
    pub fn get(&self, column: &str) -> Option<&Cell> {
        let place = self.names.iter().position(|name| name == column)?;
        self.cells.get(place)
    }

    /// All cells with their columns' names, in the file's order.
    pub fn cells(&self) -> impl Iterator<Item = (&str, &Cell)> {
        self.names.iter().map(String::as_str).zip(&self.cells)
    }
}

/// The row of one JSON object, which stands on line `line`.
///
/// # Errors
/// What is wrong with it.
pub fn json_row(line: u64, object: &[u8]) -> Result<Row, RowProblem> {
    let (names, cells) = jsonl::parse(object)?;
    Ok(Row { line, names: names.into(), cells })
}

/// The rows of one format.
trait ReadRows {
    /// The next row, in the file's order; `None` behind the last.
    fn next_row(&mut self) -> Result<Option<Row>, TableError>;
}

/// The rows of a file, in its order.
pub struct Table {
    format: TableFormat,
    columns: Option<Arc<[String]>>,
    rows: Box<dyn ReadRows + Send>,
    ended: bool,
}

impl Table {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that cannot be opened, that is no regular one, or that is plainly of another format or encoding; a header
    /// that cannot be read.
    pub fn open(path: &Path, options: &TableOptions) -> Result<Table, TableError> {
        let io_error = |source| TableError::Io { path: path.to_path_buf(), source };
        sniff::regular(path).map_err(io_error)?;
        let mut file = BufReader::new(File::open(path).map_err(io_error)?);
        let format = match options.format.or_else(|| format_of(path)) {
            Some(format) => format,
            None => sniff::format(file.fill_buf().map_err(io_error)?),
        };
        if format == TableFormat::Parquet {
            let (columns, rows) = parquet::rows(file.into_inner(), path)?;
            return Ok(Table { format, columns: Some(columns), rows: Box::new(rows), ended: false });
        }
        Table::read(file, path, &TableOptions { format: Some(format), ..options.clone() })
    }

    /// Reads JSONL or CSV from anything, such as standard input; `path` only names it in errors. Parquet is read from its
    /// end, which a stream does not have.
    ///
    /// # Errors
    /// As [`Table::open`].
    pub fn read(
        mut reader: impl BufRead + Send + 'static,
        path: &Path,
        options: &TableOptions,
    ) -> Result<Table, TableError> {
        let io_error = |source| TableError::Io { path: path.to_path_buf(), source };
        let start = reader.fill_buf().map_err(io_error)?;
        let format = options.format.or_else(|| format_of(path)).unwrap_or_else(|| sniff::format(start));
        if let Some(found) = sniff::foreign(start) {
            return Err(TableError::Foreign { path: path.to_path_buf(), found });
        }
        match format {
            TableFormat::Jsonl => {
                let rows = jsonl::Rows::new(reader, path);
                Ok(Table { format, columns: None, rows: Box::new(rows), ended: false })
            }
            TableFormat::Csv => {
                let (columns, rows) = csv::rows(reader, path, options.separator)?;
                Ok(Table { format, columns: Some(columns), rows: Box::new(rows), ended: false })
            }
            TableFormat::Parquet => Err(TableError::NotSeekable { path: path.to_path_buf() }),
        }
    }

    /// How the file is read.
    pub fn format(&self) -> TableFormat {
        self.format
    }

    /// The names of the columns; `None` with JSONL, where each row has its own.
    pub fn columns(&self) -> Option<&[String]> {
        self.columns.as_deref()
    }
}

impl Iterator for Table {
    type Item = Result<Row, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.rows.next_row().transpose();
        self.ended = match &row {
            None => true,
            Some(row) => row.as_ref().is_err_and(TableError::ends_the_table),
        };
        row
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("format", &self.format).field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// The format that a file's ending stands for; `None` if it stands for none.
fn format_of(path: &Path) -> Option<TableFormat> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match ending.as_str() {
        "jsonl" | "ndjson" | "json" => Some(TableFormat::Jsonl),
        "csv" | "tsv" => Some(TableFormat::Csv),
        "parquet" | "pq" => Some(TableFormat::Parquet),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
