//! What can go wrong with a table, or with one of its rows.

use std::path::PathBuf;

use thiserror::Error;

use super::cell::CellProblem;
use crate::grammar::GrammarError;
use crate::number::NumberError;

/// Why a table, or its next row, cannot be read.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum TableError {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} is {found}", path.display())]
    Foreign { path: PathBuf, found: &'static str },
    #[error("{} cannot be read as Parquet: {reason}", path.display())]
    Parquet { path: PathBuf, reason: String },
    #[error("cannot write {}: {reason}", path.display())]
    Unwritable { path: PathBuf, reason: String },
    #[error("{}: Parquet is read from its end; give a file, not a stream", path.display())]
    NotSeekable { path: PathBuf },
    #[error("{}: {reason}", path.display())]
    Header { path: PathBuf, reason: String },
    #[error("{}, line {line}: {problem}; the line begins {excerpt:?}", path.display())]
    Line {
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        problem: RowProblem,
        excerpt: String,
    },
}

impl TableError {
    /// The line that it is about, counted from 1.
    pub fn line(&self) -> Option<u64> {
        match self {
            TableError::Line { line, .. } => Some(*line),
            _ => None,
        }
    }

    /// Whether nothing can be read behind it.
    pub fn ends_the_table(&self) -> bool {
        match self {
            TableError::Line { problem, .. } => matches!(problem, RowProblem::TooLong { .. }),
            _ => true,
        }
    }
}

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum RowProblem {
    #[error("blank line")]
    Blank,
    #[error("longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("not valid UTF-8 from byte {byte} on; save the file as UTF-8")]
    InvalidUtf8 { byte: usize },
    #[error("bad JSON: {reason}")]
    BadJson { reason: String },
    #[error("expected an object with the columns as keys, found {found}")]
    NotAnObject { found: &'static str },
    #[error("duplicate key {key:?}")]
    DuplicateKey { key: String },
    #[error("it has {found} fields and the header {expected}")]
    FieldCount { expected: usize, found: usize },
    #[error("missing column {column:?}; it has {found}")]
    NoColumn { column: String, found: String },
    #[error("column {column:?} {problem}")]
    Cell { column: String, problem: CellProblem },
    #[error("the input is empty")]
    EmptyInput,
    #[error("the input is {text:?}: {problem}")]
    NotANumber { text: String, problem: NumberError },
    #[error("the input: {0}")]
    Grammar(GrammarError),
}
