//! A row of a table as a sample: the input as [`table::input_of`] makes it of the recipe's columns, and the target, a finite
//! number.

use std::path::{Path, PathBuf};

use numalign_config::{Recipe, Stage};

use super::{DEFAULT_OUTPUT, input_of};
use crate::error::DataError;
use crate::number::DecimalMark;
use crate::sample::Sample;
use crate::table::{self, Cell, CellProblem, Row, RowProblem, RowText, Table};

/// Which cells of a row make a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleColumns {
    /// The input.
    pub input: RowText,
    /// The column of the target.
    pub output: String,
    /// How texts write decimals.
    pub mark: DecimalMark,
}

impl SampleColumns {
    /// As the recipe says.
    ///
    /// # Errors
    /// A template that is none.
    pub fn of(recipe: &Recipe) -> Result<Self, DataError> {
        let output = recipe.dataset_output.as_deref().unwrap_or(DEFAULT_OUTPUT).to_string();
        Ok(Self { input: input_of(recipe)?, output, mark: DecimalMark::of(recipe.dataset_decimal_comma) })
    }

    /// The sample of a row, with the index 0.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub fn sample(&self, row: &Row, stage: Stage) -> Result<Sample, RowProblem> {
        if let (Stage::Mixed, RowText::Column(name)) = (stage, &self.input)
            && let cell @ (Cell::Whole(_) | Cell::Number(_)) = row.cell(name)?
        {
            let problem = CellProblem::WrongType { found: cell.kind(), expected: "a string" };
            return Err(RowProblem::Cell { column: name.clone(), problem });
        }
        let input = table::input_of(row, &self.input, stage, self.mark)?;
        let problem = |problem| RowProblem::Cell { column: self.output.clone(), problem };
        let target = row.cell(&self.output)?.number(self.mark).map_err(problem)?;
        Ok(Sample { index: 0, input, target })
    }
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
