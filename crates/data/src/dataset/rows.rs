//! A row of a table as a sample.
//!
//! | stage | input |
//! |---|---|
//! | `nn` | a number, or a string that is a number, bare or as `$$number&&` |
//! | `text` | a string, used as it is; a number becomes its shortest text |
//! | `mixed` | a string that follows the grammar of marked numbers; it may hold none |
//!
//! The output is a number, or a string that is one, as in `nn`. Numbers are finite, texts are not empty.

use std::path::{Path, PathBuf};

use numalign_config::{Recipe, Stage};

use super::{DEFAULT_OUTPUT, input_of};
use crate::error::DataError;
use crate::grammar;
use crate::sample::{Input, Sample};
use crate::table::{Cell, CellProblem, Row, RowProblem, RowText, Table};

/// Which cells of a row make a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleColumns {
    /// The input.
    pub input: RowText,
    /// The column of the target.
    pub output: String,
}

impl SampleColumns {
    /// As the recipe says.
    ///
    /// # Errors
    /// A template that is none.
    pub fn of(recipe: &Recipe) -> Result<Self, DataError> {
        let output = recipe.dataset_output.as_deref().unwrap_or(DEFAULT_OUTPUT).to_string();
        Ok(Self { input: input_of(recipe)?, output })
    }

    /// The sample of a row, with the index 0.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub fn sample(&self, row: &Row, stage: Stage) -> Result<Sample, RowProblem> {
        let input = self.input(row, stage)?;
        let target = number(row, &self.output)?;
        Ok(Sample { index: 0, input, target })
    }

    /// The input of a row, which may lack the target's column.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub fn input(&self, row: &Row, stage: Stage) -> Result<Input, RowProblem> {
        if let (Stage::Nn, RowText::Column(name)) = (stage, &self.input) {
            return Ok(Input::Number(number(row, name)?));
        }
        if let (Stage::Mixed, RowText::Column(name)) = (stage, &self.input)
            && let cell @ (Cell::Whole(_) | Cell::Number(_)) = row.cell(name)?
        {
            let problem = CellProblem::WrongType { found: cell.kind(), expected: "a string" };
            return Err(RowProblem::Cell { column: name.clone(), problem });
        }
        let text = self.input.of(row)?;
        let refused = |problem: String| RowProblem::Input { problem };
        match stage {
            Stage::Nn => {
                let value = grammar::parse_value(&text);
                value
                    .map(Input::Number)
                    .map_err(|_| refused(format!("{text:?} is no lone number, as stage nn reads it")))
            }
            Stage::Text | Stage::Mixed => {
                if text.is_empty() {
                    return Err(refused("an empty text".to_string()));
                }
                if stage == Stage::Mixed {
                    grammar::parse(&text).map_err(|error| refused(error.to_string()))?;
                }
                Ok(Input::Text(text))
            }
        }
    }
}

fn number(row: &Row, column: &str) -> Result<f64, RowProblem> {
    row.cell(column)?.number().map_err(|problem| RowProblem::Cell { column: column.to_string(), problem })
}

/// The samples of a table with their rows' numbers, counted from 1.
pub struct RowSamples<'a> {
    table: Table,
    path: PathBuf,
    columns: &'a SampleColumns,
    stage: Stage,
    number: u64,
}

impl<'a> RowSamples<'a> {
    /// Of the rows that `table` has left; `path` is named in errors.
    pub fn new(table: Table, path: &Path, columns: &'a SampleColumns, stage: Stage) -> Self {
        Self { table, path: path.to_path_buf(), columns, stage, number: 0 }
    }
}

impl Iterator for RowSamples<'_> {
    type Item = (u64, Result<Sample, DataError>);

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.table.next()?;
        self.number += 1;
        let sample = match row {
            Ok(row) => self
                .columns
                .sample(&row, self.stage)
                .map_err(|problem| DataError::row(&self.path, &self.table, &row, problem)),
            Err(error) => Err(DataError::Table(error)),
        };
        Some((self.number, sample))
    }
}
