//! What can go wrong with data: settings that no sample can satisfy, and files that cannot be read.

use std::path::PathBuf;

use thiserror::Error;

use crate::grammar::GrammarError;

/// Why there is no sample stream.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum DataError {
    #[error("the range from min_val {min_val:?} to max_val {max_val:?} is empty or not finite")]
    BadRange { min_val: f64, max_val: f64 },
    #[error(
        "no number with {decimals} decimals lies from min_val {min_val:?} up to, but not including, max_val {max_val:?}"
    )]
    EmptyGrid { min_val: f64, max_val: f64, decimals: u32 },
    #[error(
        "numbers from {min_val:?} to {max_val:?} with {decimals} decimals have more digits than a 64-bit float holds"
    )]
    GridTooFine { min_val: f64, max_val: f64, decimals: u32 },
    #[error("mixed_tasks is empty: name at least one of min, max, mean, count")]
    NoTasks,
    #[error("mixed_max_numbers is 0: a question holds at least one number")]
    NoNumbers,
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} holds no samples", path.display())]
    EmptyFile { path: PathBuf },
    #[error("{}, line {line}: {problem}; the line begins {excerpt:?}", path.display())]
    BadLine {
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        problem: LineProblem,
        excerpt: String,
    },
}

/// What is wrong with one line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum LineProblem {
    #[error("blank line")]
    Blank,
    #[error("longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("not valid UTF-8 from byte {byte} on")]
    InvalidUtf8 { byte: usize },
    #[error("bad JSON: {reason}")]
    BadJson { reason: String },
    #[error("expected an object with the keys \"input\" and \"output\", found {found}")]
    NotAnObject { found: &'static str },
    #[error("missing key {key:?}")]
    MissingKey { key: &'static str },
    #[error("{reason}")]
    WrongKey { reason: String },
    #[error("{key:?} is {found}, expected {expected}")]
    WrongType { key: &'static str, found: &'static str, expected: &'static str },
    #[error("{key:?} is {text:?}, expected a decimal number, bare or as $$number&&")]
    NotANumber { key: &'static str, text: String },
    #[error("{key:?} is {text:?}, not finite as a 64-bit float")]
    NotFinite { key: &'static str, text: String },
    #[error("\"input\" is an empty text")]
    EmptyText,
    #[error("\"input\": {0}")]
    Grammar(GrammarError),
}
