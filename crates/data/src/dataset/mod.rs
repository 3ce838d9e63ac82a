//! The samples of a file: read once, checked, split into training and held-out rows, and looked up by row.
//!
//! [`Dataset::open`] reads a [`crate::table`] as the recipe says: which columns, which rows are skipped, which are held out
//! ([`split`]). [`open_finding_stage`] also finds out which stage its inputs are for, and [`survey`] works out the settings that
//! follow from its content.

use std::collections::HashSet;
use std::path::Path;

use numalign_config::{MissingCells, Recipe, Stage};

use crate::error::DataError;
use crate::sample::Sample;
use crate::table::{RowText, Table, TableOptions};

mod handover;
mod rows;
pub mod split;
mod stage;
mod store;
pub mod survey;

pub use rows::SampleColumns;
pub use split::{Side, Split};
use stage::StageWatch;
pub use stage::open_finding_stage;
use store::{RowStore, RowWriter};

/// The rows of a file as samples, in file order, with the side of each.
#[derive(Debug)]
pub struct Dataset {
    store: RowStore,
    /// Places in the store.
    train: Vec<u32>,
    held_out: Vec<u32>,
    /// The row's number in the file of each place, where rows were skipped.
    numbers: Option<Vec<u32>>,
    skipped: Option<Skipped>,
    digest: blake3::Hash,
}

/// What became of reading a file.
enum Reading {
    Whole(Dataset),
    /// Its inputs are of another stage than the one it was read for.
    OtherStage(Stage),
}

/// Rows that were left out because of `dataset.missing: skip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub rows: u64,
    /// What was wrong with the first.
    pub first: String,
}

impl Dataset {
    /// Reads a file as `recipe` says.
    ///
    /// # Errors
    /// A file that cannot be read or holds no samples, the first row that is none, or too few rows to hold any out.
    pub fn open(path: &Path, recipe: &Recipe, options: &TableOptions) -> Result<Dataset, DataError> {
        Self::of_table(Table::open(path, options)?, path, recipe)
    }

    /// As [`Dataset::open`], of the rows that `table` has left; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn of_table(table: Table, path: &Path, recipe: &Recipe) -> Result<Dataset, DataError> {
        Self::whole(table, path, recipe)?.shared_out(path, recipe)
    }

    /// Reads a file of held-out rows alone, all of them on that side.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_held_out(path: &Path, recipe: &Recipe, options: &TableOptions) -> Result<Dataset, DataError> {
        let mut dataset = Self::whole(Table::open(path, options)?, path, recipe)?;
        dataset.held_out = std::mem::take(&mut dataset.train);
        Ok(dataset)
    }

    /// The same rows, of which the recipe's share is held out; `path` is named in errors.
    ///
    /// # Errors
    /// Too few rows to hold any out.
    pub fn shared_out(mut self, path: &Path, recipe: &Recipe) -> Result<Dataset, DataError> {
        let all = 0..self.store.len() as u32;
        let Some(share) = recipe.dataset_eval_share else {
            (self.train, self.held_out) = (all.collect(), Vec::new());
            return Ok(self);
        };
        let split = Split::new(recipe.seed, share);
        let marks: Vec<u64> = all.clone().map(|place| split.mark(self.store.content(place as usize))).collect();
        let held_out = split
            .held_out(&marks)
            .ok_or_else(|| DataError::NothingToHoldOut { path: path.to_path_buf(), rows: self.store.len() as u64 })?;
        let side = |wanted: bool| all.clone().filter(|place| held_out[*place as usize] == wanted).collect();
        (self.train, self.held_out) = (side(false), side(true));
        Ok(self)
    }

    /// All rows, on the training side.
    fn whole(table: Table, path: &Path, recipe: &Recipe) -> Result<Dataset, DataError> {
        match Self::read(table, path, recipe, None)? {
            Reading::Whole(dataset) => Ok(dataset),
            // Nobody watches.
            Reading::OtherStage(_) => Err(DataError::EmptyFile { path: path.to_path_buf() }),
        }
    }

    /// All rows, on the training side, unless `watch` sees one that is of another stage.
    fn read(mut table: Table, path: &Path, recipe: &Recipe, watch: Option<&StageWatch>) -> Result<Reading, DataError> {
        let columns = SampleColumns::of(recipe)?;
        let mut writer = RowWriter::new();
        let mut hasher = blake3::Hasher::new();
        let (mut number, mut numbers) = (0u64, Vec::new());
        let mut skipped: Option<Skipped> = None;
        while let Some(row) = table.next() {
            number += 1;
            let row = row?;
            if let Some(stage) = watch.and_then(|watch| watch.contradicted_by(&row)) {
                return Ok(Reading::OtherStage(stage));
            }
            let sample = match columns.sample(&row, recipe.stage) {
                Ok(sample) => sample,
                Err(problem) => {
                    let error = DataError::row(path, &table, &row, problem);
                    if recipe.dataset_missing != MissingCells::Skip || !error.is_of_a_cell() {
                        return Err(error);
                    }
                    match &mut skipped {
                        Some(skipped) => skipped.rows += 1,
                        None => skipped = Some(Skipped { rows: 1, first: error.to_string() }),
                    }
                    continue;
                }
            };
            let content = sample.content_bytes();
            hasher.update(&content);
            numbers.push(u32::try_from(number).map_err(|_| DataError::TooManyRows { path: path.to_path_buf() })?);
            writer.push(&content).map_err(|source| DataError::RowFile { source })?;
        }
        let store = writer.finish().map_err(|source| DataError::RowFile { source })?;
        if store.len() == 0 {
            return Err(match skipped {
                Some(Skipped { rows, first }) => DataError::AllSkipped { path: path.to_path_buf(), rows, first },
                None => DataError::EmptyFile { path: path.to_path_buf() },
            });
        }
        let train = (0..store.len() as u32).collect();
        let numbers = skipped.is_some().then_some(numbers);
        let digest = hasher.finalize();
        Ok(Reading::Whole(Dataset { store, train, held_out: Vec::new(), numbers, skipped, digest }))
    }

    /// Rows on that side.
    pub fn len(&self, side: Side) -> u64 {
        self.places(side).len() as u64
    }

    /// Whether that side has no rows.
    pub fn is_empty(&self, side: Side) -> bool {
        self.places(side).is_empty()
    }

    fn places(&self, side: Side) -> &[u32] {
        match side {
            Side::Train => &self.train,
            Side::HeldOut => &self.held_out,
        }
    }

    /// Row `row` of that side (below [`Dataset::len`]) under the stream index `index`.
    pub fn sample(&self, side: Side, row: u64, index: u64) -> Sample {
        Sample { index, ..self.store.sample(self.places(side)[row as usize] as usize) }
    }

    /// The number in the file, counted from 1, of row `row` of that side.
    pub fn number(&self, side: Side, row: u64) -> u64 {
        let place = self.places(side)[row as usize];
        self.numbers.as_ref().map_or(u64::from(place) + 1, |numbers| numbers[place as usize].into())
    }

    /// BLAKE3 over [`Sample::content_bytes`] of every row in file order: what the file says, however it is formatted.
    pub fn digest(&self) -> blake3::Hash {
        self.digest
    }

    /// The same over the rows of one side.
    pub fn digest_of(&self, side: Side) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for place in self.places(side) {
            hasher.update(self.store.content(*place as usize));
        }
        hasher.finalize()
    }

    /// The rows that were left out; `None` if there are none.
    pub fn skipped(&self) -> Option<&Skipped> {
        self.skipped.as_ref()
    }

    /// Rows of `side` whose content is that of a training row of `other`.
    pub fn shared_with_training(&self, side: Side, other: &Dataset) -> u64 {
        let digest = |dataset: &Dataset, place: &u32| blake3::hash(dataset.store.content(*place as usize));
        let trained: HashSet<blake3::Hash> = other.train.iter().map(|place| digest(other, place)).collect();
        self.places(side).iter().filter(|place| trained.contains(&digest(self, place))).count() as u64
    }
}

/// Whether two recipes make the same dataset of a file.
pub fn reads_alike(one: &Recipe, other: &Recipe) -> bool {
    let read_as = |recipe: &Recipe| {
        let share = recipe.dataset_eval_share.map(f64::to_bits);
        (recipe.stage, recipe.seed, recipe.dataset_missing, recipe.dataset_decimal_comma, share)
    };
    let texts = |recipe: &Recipe| (recipe.dataset_input.clone(), recipe.dataset_output.clone());
    read_as(one) == read_as(other) && texts(one) == texts(other)
}

/// How the recipe's `dataset.input` is read; the column `input` where it is not set.
pub(crate) fn input_of(recipe: &Recipe) -> Result<RowText, DataError> {
    let text = recipe.dataset_input.as_deref().unwrap_or(DEFAULT_INPUT);
    RowText::parse(text).map_err(|error| DataError::Template { text: text.to_string(), error })
}

/// The column of a sample's input where no other is named.
pub const DEFAULT_INPUT: &str = "input";
/// The column of a sample's target where no other is named.
pub const DEFAULT_OUTPUT: &str = "output";

#[cfg(test)]
mod tests;
