//! The samples of a run, generated or from files, and what there is to say about the files.

use std::path::Path;
use std::sync::Arc;

use numalign_checkpoint::SplitDigests;
use numalign_config::{Config, Recipe};
use numalign_data::dataset::survey::outside;
use numalign_data::doubts::DoubtTally;
use numalign_data::table::TableOptions;
use numalign_data::{Dataset, Domain, SampleStream, Side, Streams};

use crate::error::CoordinatorError;

/// What a run reads.
pub struct RunData {
    /// The samples.
    pub streams: Streams,
    /// The two parts, if rows are held out.
    pub split: Option<SplitDigests>,
    /// Lines for the user.
    pub messages: Vec<String>,
}

/// The files of a run, where they were read before.
#[derive(Debug, Clone, Default)]
pub struct OpenedFiles {
    /// `dataset.file`.
    pub rows: Option<Arc<Dataset>>,
    /// `dataset.eval_file`.
    pub held_out: Option<Arc<Dataset>>,
}

impl OpenedFiles {
    /// With those that the configuration names and that were not read before; none where it names none.
    fn completed(self, config: &Config) -> Result<Self, CoordinatorError> {
        let recipe = &config.recipe;
        let Some(path) = &config.run.dataset_file else { return Ok(Self::default()) };
        let rows = match self.rows {
            Some(rows) => rows,
            None => Arc::new(Dataset::open(path, recipe, &table_options(config))?),
        };
        let held_out = match (&config.run.dataset_eval_file, self.held_out) {
            (None, _) => None,
            (Some(_), Some(held_out)) => Some(held_out),
            (Some(file), None) => Some(Arc::new(Dataset::open_held_out(file, recipe, &eval_file_options(config))?)),
        };
        Ok(Self { rows: Some(rows), held_out })
    }

    fn streams(&self, recipe: &Recipe) -> Result<Streams, CoordinatorError> {
        let Some(rows) = &self.rows else {
            return Ok(Streams::new(SampleStream::generated(recipe, Domain::Train)?, recipe)?);
        };
        let mut streams = Streams::new(SampleStream::training(rows.clone(), recipe), recipe)?;
        streams.held_out = SampleStream::held_out(self.held_out.as_ref().unwrap_or(rows).clone(), recipe);
        Ok(streams)
    }
}

/// The samples of a run.
///
/// # Errors
/// A file that is at fault.
pub fn streams_of(config: &Config, files: OpenedFiles) -> Result<Streams, CoordinatorError> {
    files.completed(config)?.streams(&config.recipe)
}

impl RunData {
    /// Opens what the configuration names and `files` does not have.
    ///
    /// # Errors
    /// A file that is at fault, or evaluations during training without a row to evaluate on.
    pub fn open(config: &Config, files: OpenedFiles) -> Result<Self, CoordinatorError> {
        let recipe = &config.recipe;
        let files = files.completed(config)?;
        let streams = files.streams(recipe)?;
        let (Some(path), Some(dataset)) = (&config.run.dataset_file, &files.rows) else {
            return Ok(Self { streams, split: None, messages: Vec::new() });
        };
        let mut messages = told(config, path, dataset);
        let own = config.run.dataset_eval_file.as_ref().zip(files.held_out.as_ref());
        if let Some((file, held_out)) = own {
            messages.extend(told_of_eval_file(file, held_out, dataset));
        }
        if streams.held_out.is_none() && config.run.eval_every > 0 {
            return Err(CoordinatorError::Failed {
                reason: format!("no row of {} is held out, so eval_every has nothing to evaluate on", path.display()),
                hint: "set dataset.eval_share or dataset.eval_file, or eval_every to 0".to_owned(),
            });
        }
        let held_out = own.map_or(dataset, |(_, held_out)| held_out);
        let split = streams.held_out.as_ref().map(|_| split_of(dataset, held_out, own.is_some()));
        Ok(Self { streams, split, messages })
    }
}

/// How the configuration says that `dataset.file` is read.
pub fn table_options(config: &Config) -> TableOptions {
    let separator = config.run.dataset_separator.as_ref().and_then(|text| text.bytes().next());
    TableOptions { format: config.run.dataset_format, separator }
}

/// How `dataset.eval_file` is read, which may be of another format.
pub fn eval_file_options(config: &Config) -> TableOptions {
    TableOptions { format: None, ..table_options(config) }
}

/// The digests of the training rows of `dataset` and of the rows that `held_out` holds out.
pub fn split_of(dataset: &Dataset, held_out: &Dataset, held_out_file: bool) -> SplitDigests {
    let digest = |dataset: &Dataset, side| dataset.digest_of(side).to_hex().to_string();
    SplitDigests {
        train_rows: dataset.len(Side::Train),
        train_digest: digest(dataset, Side::Train),
        held_out_rows: held_out.len(Side::HeldOut),
        held_out_digest: digest(held_out, Side::HeldOut),
        held_out_file,
    }
}

/// Rows, passes, and what looks wrong.
fn told(config: &Config, path: &Path, dataset: &Dataset) -> Vec<String> {
    let recipe = &config.recipe;
    let (train, held_out) = (dataset.len(Side::Train), dataset.len(Side::HeldOut));
    let passes = recipe.total_steps() as f64 * recipe.batch_size as f64 / train as f64;
    let kept = match held_out {
        0 => format!("{train} rows"),
        held_out => format!("{} rows, {held_out} of them held out", train + held_out),
    };
    let mut lines = vec![format!(
        "dataset {}: {kept}; {} steps of {} samples are {passes:.2} passes over the training rows",
        path.display(),
        recipe.total_steps(),
        recipe.batch_size
    )];
    if held_out == 0 && config.run.dataset_eval_file.is_none() {
        lines.push(
            "no row is held out, so nothing is evaluated; hint: dataset.eval_share holds out a part of the rows, \
             dataset.eval_file names others"
                .to_owned(),
        );
    }
    if let Some(skipped) = dataset.skipped() {
        lines.push(format!("{} rows are skipped (dataset.missing: skip); the first: {}", skipped.rows, skipped.first));
    }
    if let Some(outside) = outside(dataset, recipe) {
        lines.push(format!(
            "warning: {} of {train} training rows have a value outside its range; the furthest is {:?}, and the range is {}; \
             hint: leave min_val and max_val out, and they are taken from the rows",
            outside.rows, outside.furthest, outside.range
        ));
    }
    let doubts = DoubtTally::of_texts(dataset, Side::Train, recipe);
    lines.extend(doubts.lines().into_iter().map(|line| format!("warning: {line}")));
    lines
}

fn told_of_eval_file(path: &Path, held_out: &Dataset, dataset: &Dataset) -> Vec<String> {
    let rows = held_out.len(Side::HeldOut);
    let mut lines = vec![format!("held-out rows: all {rows} of {}", path.display())];
    let shared = held_out.shared_with_training(Side::HeldOut, dataset);
    if shared > 0 {
        lines.push(format!("warning: {shared} of the {rows} held-out rows are among the training rows too"));
    }
    if let Some(skipped) = held_out.skipped() {
        lines.push(format!("{} rows of {} are skipped; the first: {}", skipped.rows, path.display(), skipped.first));
    }
    lines
}
