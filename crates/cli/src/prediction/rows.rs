//! The rows of a file or of standard input, each with what is asked in it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use numalign_config::{Recipe, TableFormat};
use numalign_data::dataset::SampleColumns;
use numalign_data::table::{Cell, MOST_LINE_BYTES, Row, RowText, Table, TableOptions, json_row};
use numalign_data::{DecimalMark, Input};

use super::{Files, RowFormat};
use crate::error::CliError;

/// One row.
pub struct AskedRow {
    /// Its line in the file, from 1; with Parquet its number among the rows.
    pub line: u64,
    /// How it is written again.
    pub content: RowContent,
    /// What is asked, or why that is not known.
    pub input: Result<Input, String>,
}

/// What a row holds.
pub enum RowContent {
    /// An object, as it was written.
    Json(String),
    Cells(Vec<(String, Cell)>),
    Line(String),
    /// It cannot be read as a row.
    Unreadable,
}

/// The rows, one after another.
pub struct Rows {
    source: Source,
    asks: Asks,
    path: PathBuf,
    pub format: RowFormat,
}

enum Source {
    Table(Table),
    Text(TextLines),
}

/// How a row becomes an input.
struct Asks {
    recipe: Recipe,
    text: RowText,
    mark: DecimalMark,
}

impl Rows {
    /// Opens a file or standard input.
    pub fn open(files: &Files<'_>, recipe: &Recipe) -> Result<Self, CliError> {
        let path = files.input;
        let is_stdin = path == Path::new("-");
        let known = files.format.or_else(|| format_of(path));
        let asks = Asks::of(recipe)?;
        if let (Some(RowFormat::Table(TableFormat::Parquet)), false) = (known, is_stdin) {
            let options = TableOptions { format: Some(TableFormat::Parquet), ..TableOptions::default() };
            let table = Table::open(path, &options)?;
            return Ok(Self {
                source: Source::Table(table),
                asks,
                path: path.to_owned(),
                format: known.unwrap_or(RowFormat::Lines),
            });
        }
        let mut reader: Box<dyn BufRead + Send> = match is_stdin {
            true => Box::new(BufReader::new(std::io::stdin())),
            false => Box::new(BufReader::new(File::open(path).map_err(|error| unreadable(path, &error))?)),
        };
        let path = if is_stdin { Path::new("standard input") } else { path };
        let start = reader.fill_buf().map_err(|error| unreadable(path, &error))?;
        let format = known.unwrap_or_else(|| guessed(start));
        let source = match format {
            RowFormat::Table(format @ (TableFormat::Csv | TableFormat::Parquet)) => {
                let options = TableOptions { format: Some(format), ..TableOptions::default() };
                Source::Table(Table::read(reader, path, &options)?)
            }
            RowFormat::Table(TableFormat::Jsonl) | RowFormat::Lines => Source::Text(TextLines::new(reader)),
        };
        Ok(Self { source, asks, path: path.to_owned(), format })
    }

    /// The names of the columns, where all rows have the same.
    pub fn columns(&self) -> Option<Vec<String>> {
        match (&self.source, self.format) {
            (Source::Table(table), _) => table.columns().map(<[String]>::to_vec),
            (Source::Text(_), RowFormat::Lines) => Some(vec!["input".to_owned()]),
            (Source::Text(_), RowFormat::Table(_)) => None,
        }
    }

    /// The next row; none at the end.
    ///
    /// # Errors
    /// Nothing more can be read.
    pub fn next_row(&mut self) -> Result<Option<AskedRow>, CliError> {
        match &mut self.source {
            Source::Table(table) => match table.next() {
                None => Ok(None),
                Some(Ok(row)) => {
                    let cells = row.cells().map(|(name, cell)| (name.to_owned(), cell.clone())).collect();
                    let input = self.asks.of_row(&row);
                    Ok(Some(AskedRow { line: row.line, content: RowContent::Cells(cells), input }))
                }
                Some(Err(error)) if error.ends_the_table() => Err(error.into()),
                Some(Err(error)) => {
                    let line = error.line().unwrap_or(0);
                    Ok(Some(AskedRow { line, content: RowContent::Unreadable, input: Err(error.to_string()) }))
                }
            },
            Source::Text(lines) => {
                let Some(text) = lines.next_line().map_err(|error| unreadable(&self.path, &error))? else {
                    return Ok(None);
                };
                Ok(Some(self.asks.of_line(lines.line, text, self.format)))
            }
        }
    }
}

impl Asks {
    fn of(recipe: &Recipe) -> Result<Self, CliError> {
        let text = SampleColumns::of(recipe)?.input;
        let mark = DecimalMark::of(recipe.dataset_decimal_comma);
        Ok(Self { recipe: recipe.clone(), text, mark })
    }

    fn of_row(&self, row: &Row) -> Result<Input, String> {
        numalign_data::table::input_of(row, &self.text, self.recipe.stage, self.mark)
            .map_err(|problem| problem.to_string())
    }

    fn of_line(&self, line: u64, bytes: Result<Vec<u8>, String>, format: RowFormat) -> AskedRow {
        let text = bytes.and_then(|bytes| {
            String::from_utf8(bytes)
                .map_err(|error| format!("not valid UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
        });
        let text = match text {
            Ok(text) => text,
            Err(problem) => return AskedRow { line, content: RowContent::Unreadable, input: Err(problem) },
        };
        if format == RowFormat::Lines {
            let input = numalign_data::question(&text, self.recipe.stage, self.mark);
            let input = input.map_err(|error| error.to_string());
            return AskedRow { line, content: RowContent::Line(text), input };
        }
        match json_row(line, text.as_bytes()) {
            Ok(row) => AskedRow { line, content: RowContent::Json(text), input: self.of_row(&row) },
            Err(problem) => AskedRow { line, content: RowContent::Unreadable, input: Err(problem.to_string()) },
        }
    }
}

/// Lines of a bounded length, without their endings; blank ones at the end are no lines.
struct TextLines {
    reader: Box<dyn BufRead + Send>,
    /// Of the line that came last, from 1.
    line: u64,
    /// Blank lines that came, and are lines if another one follows; then that one.
    blank: u64,
    held: Option<Result<Vec<u8>, String>>,
}

impl TextLines {
    fn new(reader: Box<dyn BufRead + Send>) -> Self {
        Self { reader, line: 0, blank: 0, held: None }
    }

    fn next_line(&mut self) -> std::io::Result<Option<Result<Vec<u8>, String>>> {
        while self.held.is_none() {
            match self.read()? {
                None => return Ok(None),
                Some(Ok(bytes)) if bytes.trim_ascii().is_empty() => self.blank += 1,
                Some(line) => self.held = Some(line),
            }
        }
        self.line += 1;
        if self.blank > 0 {
            self.blank -= 1;
            return Ok(Some(Ok(Vec::new())));
        }
        Ok(self.held.take())
    }

    fn read(&mut self) -> std::io::Result<Option<Result<Vec<u8>, String>>> {
        let mut bytes = Vec::new();
        let most = MOST_LINE_BYTES as u64 + 2;
        if (&mut self.reader).take(most).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        let is_whole = bytes.ends_with(b"\n") || (bytes.len() as u64) < most;
        if !is_whole {
            self.skip_line()?;
            return Ok(Some(Err(format!("longer than {MOST_LINE_BYTES} bytes"))));
        }
        let content = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let content = content.strip_suffix(b"\r").unwrap_or(content);
        let is_first = self.line == 0 && self.blank == 0;
        let content = if is_first { content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content) } else { content };
        Ok(Some(Ok(content.to_vec())))
    }

    fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let (length, is_end) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(place) => (place + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(length);
            if is_end {
                return Ok(());
            }
        }
    }
}

fn format_of(path: &Path) -> Option<RowFormat> {
    let ending = path.extension()?.to_string_lossy().to_ascii_lowercase();
    Some(match ending.as_str() {
        "jsonl" | "ndjson" | "json" => RowFormat::Table(TableFormat::Jsonl),
        "csv" | "tsv" => RowFormat::Table(TableFormat::Csv),
        "parquet" | "pq" => RowFormat::Table(TableFormat::Parquet),
        "txt" => RowFormat::Lines,
        _ => return None,
    })
}

/// By how the content begins.
fn guessed(start: &[u8]) -> RowFormat {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    match start.trim_ascii_start().first() {
        Some(b'{') => RowFormat::Table(TableFormat::Jsonl),
        _ => RowFormat::Lines,
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new(format!("cannot read {}: {error}", path.display())).with_hint("check the path; - is standard input")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let mut lines = TextLines::new(Box::new(std::io::Cursor::new(text.to_vec())));
        let mut found = Vec::new();
        while let Ok(Some(line)) = lines.next_line() {
            found.push((lines.line, line.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())));
        }
        found
    }

    fn ok(line: u64, text: &str) -> (u64, Result<String, String>) {
        (line, Ok(text.to_owned()))
    }

    #[test]
    fn lines_keep_their_numbers() {
        assert_eq!(lines(b"\xef\xbb\xbfa\r\nb"), [ok(1, "a"), ok(2, "b")]);
        assert_eq!(lines(b"a\n\n \nb\n\n\n"), [ok(1, "a"), ok(2, ""), ok(3, ""), ok(4, "b")]);
        assert_eq!(lines(b"\n\n"), []);
        let long = [&vec![b'x'; 3 << 20][..], b"\nafter\n"].concat();
        let found = lines(&long);
        assert!(found[0].1.is_err() && found[1] == ok(2, "after") && found.len() == 2);
    }

    #[test]
    fn the_format_follows_the_name_then_the_content() {
        assert_eq!(format_of(Path::new("a.CSV")), Some(RowFormat::Table(TableFormat::Csv)));
        assert_eq!(format_of(Path::new("-")), None);
        assert_eq!(guessed(b" {\"input\": 1}"), RowFormat::Table(TableFormat::Jsonl));
        assert_eq!(guessed(b"12.5\n"), RowFormat::Lines);
    }
}
