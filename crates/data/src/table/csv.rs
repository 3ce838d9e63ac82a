//! CSV: a header with the columns' names, then a row per record.
//!
//! Fields may be quoted (`"a, b"`, `""` for a quote, line breaks inside); lines end with LF or CRLF; a byte order mark at the
//! start and blank lines are skipped. An empty field is a missing cell. A line `sep=;` before the header names the separator.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use csv::{ByteRecord, Reader, ReaderBuilder};

use super::cell::Cell;
use super::error::{RowProblem, TableError};
use super::{MOST_LINE_BYTES, ReadRows, Row};
use crate::text::excerpt;

/// Characters of a bad record that an error message shows.
const SHOWN_CHARS: usize = 60;
/// In the order of preference where a header holds as many of one as of another.
const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The columns and rows of a CSV file.
pub(super) fn rows<R: BufRead>(
    mut reader: R,
    path: &Path,
    separator: Option<u8>,
) -> Result<(Arc<[String]>, Rows<R>), TableError> {
    let io_error = |source| TableError::Io { path: path.to_path_buf(), source };
    let mut start = reader.fill_buf().map_err(io_error)?;
    let declared = declared_separator(start);
    let lines_before = u64::from(declared.is_some());
    if let Some((_, length)) = declared {
        reader.consume(length);
        start = reader.fill_buf().map_err(io_error)?;
    }
    let separator = separator.or(declared.map(|(separator, _)| separator)).unwrap_or_else(|| detected(start));
    let is_crlf = start.iter().position(|byte| *byte == b'\n').is_some_and(|at| at > 0 && start[at - 1] == b'\r');
    let progress = Arc::new(Progress::default());
    let bounded = Bounded { reader, progress: progress.clone() };
    let reader = ReaderBuilder::new().delimiter(separator).has_headers(false).flexible(true).from_reader(bounded);
    let path = path.to_path_buf();
    let mut rows = Rows { reader, path, columns: Arc::new([]), progress, is_crlf, lines_before, line: 0, last_line: 0 };
    let mut header = ByteRecord::new();
    if !rows.read(&mut header)? {
        return Err(TableError::Header { path: rows.path, reason: "it holds no samples".to_string() });
    }
    rows.columns =
        columns(&header, separator).map_err(|reason| TableError::Header { path: rows.path.clone(), reason })?;
    Ok((rows.columns.clone(), rows))
}

/// The names of the header, spaces around them dropped.
fn columns(header: &ByteRecord, separator: u8) -> Result<Arc<[String]>, String> {
    let mut names: Vec<String> = Vec::with_capacity(header.len());
    for (place, field) in header.iter().enumerate() {
        let Ok(name) = std::str::from_utf8(field) else {
            return Err(format!("the name of column {} is not valid UTF-8; save the file as UTF-8", place + 1));
        };
        let name = name.trim().to_string();
        // The index that pandas writes has no name; nobody can ask for it.
        if !name.is_empty() && names.contains(&name) {
            let shown = char::from(separator).escape_default();
            return Err(format!("two columns are called {name:?} (separator '{shown}'); rename one"));
        }
        names.push(name);
    }
    Ok(names.into())
}

/// The separator that a first line such as `sep=;` names, which Excel writes and reads, and the bytes of that line.
fn declared_separator(start: &[u8]) -> Option<(u8, usize)> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let (key, rest) = text.split_at_checked(4)?;
    let (separator, rest) = rest.split_first()?;
    let ending = match rest {
        [b'\n', ..] => 1,
        [b'\r', b'\n', ..] => 2,
        _ => return None,
    };
    let before = start.len() - text.len();
    key.eq_ignore_ascii_case(b"sep=").then_some((*separator, before + 4 + 1 + ending))
}

/// The separator that the first line holds most often outside quotes.
fn detected(start: &[u8]) -> u8 {
    let mut counts = [0usize; SEPARATORS.len()];
    let mut quoted = false;
    for byte in start {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            _ if quoted => {}
            byte => {
                if let Some(place) = SEPARATORS.iter().position(|separator| separator == byte) {
                    counts[place] += 1;
                }
            }
        }
    }
    let mut best = 0;
    for place in 1..counts.len() {
        if counts[place] > counts[best] {
            best = place;
        }
    }
    SEPARATORS[best]
}

/// The rows of a CSV file.
pub(super) struct Rows<R> {
    reader: Reader<Bounded<R>>,
    path: PathBuf,
    columns: Arc<[String]>,
    progress: Arc<Progress>,
    /// The header ends with CRLF, and so do the records.
    is_crlf: bool,
    /// Before the header.
    lines_before: u64,
    /// On which the record that was read last begins, counted from 1.
    line: u64,
    /// On which it ends.
    last_line: u64,
}

impl<R: BufRead> Rows<R> {
    /// Reads the next record; false at the end.
    fn read(&mut self, record: &mut ByteRecord) -> Result<bool, TableError> {
        self.progress.allowance.store(MOST_LINE_BYTES, Ordering::Relaxed);
        let line = self.last_line + 1;
        let read = self.reader.read_byte_record(record).map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => TableError::Line {
                path: self.path.clone(),
                line,
                problem: RowProblem::TooLong { limit: MOST_LINE_BYTES },
                excerpt: "a quote that is never closed?".to_string(),
            },
            csv::ErrorKind::Io(source) => TableError::Io { path: self.path.clone(), source },
            other => TableError::Header { path: self.path.clone(), reason: format!("{other:?}") },
        })?;
        // The parser's own position of a record counts neither the blank lines before it nor the LF of the CRLF before it.
        let is_line_counted = self.is_crlf || self.progress.is_at_end.load(Ordering::Relaxed);
        self.last_line = self.lines_before + self.reader.position().line() - u64::from(!is_line_counted);
        let inside: usize = record.iter().map(|field| field.iter().filter(|byte| **byte == b'\n').count()).sum();
        self.line = self.last_line.saturating_sub(inside as u64);
        Ok(read)
    }

    fn cells(&self, record: &ByteRecord) -> Result<Vec<Cell>, RowProblem> {
        if record.len() != self.columns.len() {
            return Err(RowProblem::FieldCount { expected: self.columns.len(), found: record.len() });
        }
        let cell = |field: &[u8]| match std::str::from_utf8(field) {
            Ok("") => Ok(Cell::Missing),
            Ok(text) => Ok(Cell::Text(text.to_string())),
            Err(error) => Err(RowProblem::InvalidUtf8 { byte: error.valid_up_to() }),
        };
        record.iter().map(cell).collect()
    }
}

impl<R: BufRead> ReadRows for Rows<R> {
    fn next_row(&mut self) -> Result<Option<Row>, TableError> {
        let mut record = ByteRecord::new();
        if !self.read(&mut record)? {
            return Ok(None);
        }
        let line = self.line;
        let cells = self.cells(&record).map_err(|problem| TableError::Line {
            path: self.path.clone(),
            line,
            problem,
            excerpt: record_excerpt(&record),
        })?;
        Ok(Some(Row { line, names: self.columns.clone(), cells }))
    }
}

fn record_excerpt(record: &ByteRecord) -> String {
    let shown: Vec<String> = record
        .iter()
        .take(5)
        .map(|field| String::from_utf8_lossy(&field[..field.len().min(200)]).into_owned())
        .collect();
    excerpt(&shown.join(" | "), SHOWN_CHARS)
}

/// What the parser has read of the file.
#[derive(Default)]
struct Progress {
    /// Bytes that may still be read for the present record.
    allowance: AtomicUsize,
    /// Nothing is left to read.
    is_at_end: AtomicBool,
}

/// Stops reading where one record takes more than is allowed, as behind a quote that is never closed.
struct Bounded<R> {
    reader: R,
    progress: Arc<Progress>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.progress.allowance.load(Ordering::Relaxed);
        if allowed == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.reader.read(buffer)?;
        self.progress.is_at_end.store(read == 0, Ordering::Relaxed);
        self.progress.allowance.store(allowed.saturating_sub(read), Ordering::Relaxed);
        Ok(read)
    }
}
