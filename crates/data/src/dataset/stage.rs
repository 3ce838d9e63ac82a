//! The stage that a file's inputs are for, found while its rows are read.

use std::path::Path;

use numalign_config::{Recipe, Stage};

use super::{Dataset, Reading, input_of};
use crate::error::DataError;
use crate::grammar;
use crate::number::DecimalMark;
use crate::table::{Cell, Row, RowText, Table, TableOptions};

/// Notices rows whose input is not of the stage that a file is read for.
pub(super) struct StageWatch {
    column: String,
    mark: DecimalMark,
    stage: Stage,
}

impl StageWatch {
    /// The stage of the whole file, where `row` shows that it is not the one that was supposed. What is wrong with a row is
    /// said elsewhere.
    pub(super) fn contradicted_by(&self, row: &Row) -> Option<Stage> {
        let cell = row.get(&self.column)?;
        let stage = match self.stage {
            Stage::Mixed => return None,
            _ if matches!(cell, Cell::Missing) => return None,
            // A number that is not finite is a missing one (pandas), not a text.
            Stage::Nn if matches!(cell, Cell::Number(_)) || cell.number(self.mark).is_ok() => return None,
            _ if cell.text().is_ok_and(|text| grammar::with_marks(&text).contains(grammar::OPEN)) => Stage::Mixed,
            _ => Stage::Text,
        };
        (stage != self.stage).then_some(stage)
    }
}

/// As [`Dataset::open`], with the stage that the file's inputs are for, whatever `recipe` says: `nn` where each is a lone
/// number, `mixed` where one has marked numbers, else `text`.
///
/// # Errors
/// As [`Dataset::open`].
pub fn open_finding_stage(path: &Path, recipe: &Recipe, options: &TableOptions) -> Result<(Dataset, Stage), DataError> {
    let column = match input_of(recipe)? {
        RowText::Template(template) => {
            let stage = if template.marked().next().is_some() { Stage::Mixed } else { Stage::Text };
            return Ok((Dataset::open(path, &Recipe { stage, ..recipe.clone() }, options)?, stage));
        }
        RowText::Column(column) => column,
    };
    // Most files are of one kind: if it is another than this, their first row says so.
    let mut watch = StageWatch { column, mark: DecimalMark::of(recipe.dataset_decimal_comma), stage: Stage::Nn };
    loop {
        let recipe = Recipe { stage: watch.stage, ..recipe.clone() };
        match Dataset::read(Table::open(path, options)?, path, &recipe, Some(&watch))? {
            Reading::Whole(dataset) => return Ok((dataset.shared_out(path, &recipe)?, watch.stage)),
            Reading::OtherStage(stage) => watch.stage = stage,
        }
    }
}
