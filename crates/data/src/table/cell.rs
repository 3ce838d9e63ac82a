//! One cell of a table: what it holds, and how it is read as a text or as a number.

use std::borrow::Cow;

use thiserror::Error;

use crate::grammar;
use crate::number::{DecimalMark, NumberError, NumberRule};
use crate::text::excerpt;

/// Characters of a bad cell that a message shows.
const SHOWN_CHARS: usize = 60;

/// What a cell holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// JSON's and Parquet's null, an empty field of CSV.
    Missing,
    /// A text; with CSV every field is one.
    Text(String),
    /// A whole number as such, so that a long identifier keeps its digits.
    Whole(i64),
    /// Any other number; of Parquet's it may be infinite or no number.
    Number(f64),
    /// True or false.
    Bool(bool),
    /// A list or an object, as JSON or as Parquet shows it.
    Nested {
        /// `a list` or `an object`.
        kind: &'static str,
        /// What is shown of it.
        shown: String,
    },
}

/// Why a cell is not what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum CellProblem {
    #[error("is empty")]
    Missing,
    #[error("is {found}, expected {expected}")]
    WrongType { found: &'static str, expected: &'static str },
    #[error("is {text:?}, expected a decimal number, bare or as $$number&&")]
    NotANumber { text: String },
    #[error("is {text:?}, not finite as a 64-bit float")]
    NotFinite { text: String },
    #[error("is {text:?}: {rule}")]
    Refused { text: String, rule: NumberRule },
    #[error("holds {mark:?}, and the template marks its numbers itself")]
    Marked { mark: &'static str },
}

impl Cell {
    /// What the cell is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Cell::Missing => "empty",
            Cell::Text(_) => "a text",
            Cell::Whole(_) | Cell::Number(_) => "a number",
            Cell::Bool(_) => "a boolean",
            Cell::Nested { kind, .. } => kind,
        }
    }

    /// As a text: a number in its shortest form.
    ///
    /// # Errors
    /// An empty cell, a list or an object, or a number that is not finite.
    pub fn text(&self) -> Result<Cow<'_, str>, CellProblem> {
        match self {
            Cell::Missing => Err(CellProblem::Missing),
            Cell::Text(text) => Ok(Cow::Borrowed(text)),
            Cell::Whole(value) => Ok(Cow::Owned(value.to_string())),
            Cell::Number(value) if value.is_finite() => Ok(Cow::Owned(grammar::shortest_value(*value))),
            Cell::Number(value) => Err(CellProblem::NotFinite { text: value.to_string() }),
            Cell::Bool(value) => Ok(Cow::Borrowed(if *value { "true" } else { "false" })),
            Cell::Nested { kind, .. } => Err(CellProblem::WrongType { found: kind, expected: "a text or a number" }),
        }
    }

    /// As a finite number: one, or a text that is one and writes its decimals with `mark`.
    ///
    /// # Errors
    /// Anything else.
    pub fn number(&self, mark: DecimalMark) -> Result<f64, CellProblem> {
        match self {
            Cell::Missing => Err(CellProblem::Missing),
            Cell::Whole(value) => Ok(*value as f64),
            Cell::Number(value) if value.is_finite() => Ok(*value),
            Cell::Number(value) => Err(CellProblem::NotFinite { text: value.to_string() }),
            Cell::Text(text) => grammar::parse_value(text, mark).map_err(|error| {
                let text = excerpt(text, SHOWN_CHARS);
                match error {
                    NumberError::NotDecimal => CellProblem::NotANumber { text },
                    NumberError::NotFinite => CellProblem::NotFinite { text },
                    NumberError::Refused(rule) => CellProblem::Refused { text, rule },
                }
            }),
            Cell::Bool(_) | Cell::Nested { .. } => {
                Err(CellProblem::WrongType { found: self.kind(), expected: "a number or a string that is a number" })
            }
        }
    }
}
