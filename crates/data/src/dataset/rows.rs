//! A row of a table as a sample: the input as [`table::input_of`] makes it of the recipe's columns, and the target, a finite
//! number.

use numalign_config::{Recipe, Stage};

use super::{DEFAULT_OUTPUT, input_of};
use crate::error::DataError;
use crate::number::DecimalMark;
use crate::sample::Sample;
use crate::table::{self, Cell, CellProblem, Row, RowProblem, RowText};

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
