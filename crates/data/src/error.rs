//! What can go wrong with data: settings that no sample can satisfy, and files that cannot be read.

use std::path::{Path, PathBuf};

use numalign_config::TableFormat;
use thiserror::Error;

use crate::table::{Row, RowProblem, Table, TableError, TemplateError};
use crate::text::excerpt;

/// Characters of a bad row that a message shows.
const SHOWN_CHARS: usize = 60;

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
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{}, {what} {line}: {problem}; it begins {excerpt:?}", path.display())]
    BadRow {
        path: PathBuf,
        /// `line`, or `row`.
        what: &'static str,
        /// Counted from 1.
        line: u64,
        problem: Box<RowProblem>,
        excerpt: String,
    },
    #[error("dataset.input {text:?} is no template: {error}")]
    Template { text: String, error: TemplateError },
    #[error("all {rows} rows of {} were skipped; the first: {first}", path.display())]
    AllSkipped { path: PathBuf, rows: u64, first: String },
    #[error("{} has more rows than can be counted", path.display())]
    TooManyRows { path: PathBuf },
    #[error(
        "no row of {} can be held out for the evaluation: {rows} rows, and all of them say the same", path.display()
    )]
    NothingToHoldOut { path: PathBuf, rows: u64 },
    #[error("the rows cannot be kept in a temporary file")]
    RowFile { source: std::io::Error },
    #[error("{} holds no samples", path.display())]
    EmptyFile { path: PathBuf },
}

impl DataError {
    /// A row that is no sample.
    pub(crate) fn row(path: &Path, table: &Table, row: &Row, problem: RowProblem) -> Self {
        let what = if table.format() == TableFormat::Parquet { "row" } else { "line" };
        let cells: Vec<String> =
            row.cells().take(5).filter_map(|(_, cell)| Some(cell.text().ok()?.into_owned())).collect();
        let excerpt = excerpt(&cells.join(" | "), SHOWN_CHARS);
        Self::BadRow { path: path.to_path_buf(), what, line: row.line, problem: Box::new(problem), excerpt }
    }

    /// Whether one cell is at fault, not the row as a whole: what `dataset.missing: skip` skips.
    pub(crate) fn is_of_a_cell(&self) -> bool {
        matches!(self, Self::BadRow { problem, .. } if matches!(**problem, RowProblem::Cell { .. }))
    }

    /// What the person at the keyboard can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BadRow { problem, .. } if matches!(**problem, RowProblem::NoColumn { .. }) => {
                "name the columns with dataset.input and dataset.output (docs/DATA.md)"
            }
            Self::BadRow { problem, .. } if matches!(**problem, RowProblem::Cell { .. }) => {
                "repair the row, or set dataset.missing to skip to leave such rows out"
            }
            Self::BadRow { problem, .. }
                if matches!(**problem, RowProblem::Grammar(_) | RowProblem::NotANumber { .. }) =>
            {
                "repair the row; a marked number looks like $$12.5&&, and dataset.decimal_comma holds for all texts of the file"
            }
            Self::Table(TableError::Line {
                problem: RowProblem::BadJson { .. } | RowProblem::NotAnObject { .. },
                ..
            }) => "JSONL has one object on each line; `jq -c .` writes objects so, and `jq -c '.[]'` those of a list",
            Self::Table(TableError::Io { .. }) => "check the path and its permissions",
            Self::NothingToHoldOut { .. } => "set dataset.eval_share to 0 to train on all rows",
            Self::RowFile { .. } => "free some space, or set TMPDIR to a folder on another disk",
            Self::Template { .. } => "a template looks like \"Aged $${age}&&, {sex}.\" (docs/DATA.md)",
            _ => {
                "a row has the columns input and output, as in {\"input\": …, \"output\": …}; `numalign generate` writes \
                 examples (docs/DATA.md)"
            }
        }
    }
}
