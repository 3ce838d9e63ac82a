//! Which samples an evaluation is on: generated ones that were not trained on, or held-out rows of a run's file.

use std::path::Path;
use std::sync::Arc;

use numalign_checkpoint::Checkpoint;
use numalign_config::Recipe;
use numalign_coordinator::streams_of;
use numalign_data::doubts::DoubtTally;
use numalign_data::table::TableOptions;
use numalign_data::{Dataset, Domain, SampleStream, Side};

use crate::console::note;
use crate::error::CliError;
use crate::settings::RunSettings;

/// Generated samples of an evaluation, where nobody says how many.
const GENERATED: u64 = 1000;

/// Rows of an evaluation at most, where nobody says how many.
const MOST_ROWS: u64 = 10_000;

/// Samples to evaluate on: the first `count` of a stream.
pub struct HeldOut {
    pub stream: SampleStream,
    pub count: u64,
}

impl HeldOut {
    /// Of a run that was just trained, with its training samples; `None`, which is told, where no row of its file is held
    /// out.
    pub fn of_run(run: &RunSettings) -> Result<Option<(HeldOut, SampleStream)>, CliError> {
        let streams = streams_of(&run.config, run.files.clone())?;
        let Some(stream) = streams.held_out else {
            note!("no row is held out, so there is no evaluation; `numalign eval --dataset FILE` takes other rows");
            return Ok(None);
        };
        let count = run.config.run.eval_count.min(stream.file_len().unwrap_or(u64::MAX));
        Ok(Some((HeldOut { stream, count }, streams.train)))
    }

    /// Of the checkpoint read from `path`: the held-out rows of `dataset` if that is the file of its run, each row of any
    /// other file, or generated samples of `recipe`, which may have another seed than the checkpoint's.
    pub fn of_checkpoint(
        checkpoint: &Checkpoint,
        path: &Path,
        recipe: &Recipe,
        dataset: Option<&Path>,
        count: Option<u64>,
    ) -> Result<HeldOut, CliError> {
        let identity = &checkpoint.identity;
        let Some(file) = dataset else {
            if identity.dataset_digest.is_some() {
                let message =
                    format!("{} was trained from a file, and its held-out rows are in a file", path.display());
                return Err(CliError::usage(message)
                    .with_hint("give the run's file with --dataset, or another one with rows that it never saw"));
            }
            let stream = SampleStream::generated(recipe, Domain::Eval)?;
            return Ok(HeldOut { stream, count: count.unwrap_or(GENERATED) });
        };
        let all = Dataset::open_held_out(file, &identity.recipe, &TableOptions::default())?;
        let is_of_the_run = identity.dataset_digest == Some(all.digest().to_hex().to_string());
        let stream = if is_of_the_run && identity.recipe.dataset_eval_share.is_some() {
            SampleStream::held_out(Arc::new(all.shared_out(file, &identity.recipe)?), &identity.recipe)
        } else {
            if is_of_the_run {
                note!("warning: {} was trained on these rows", path.display());
            } else {
                for line in DoubtTally::of_rows(&all, Side::HeldOut, &identity.recipe).lines() {
                    note!("warning: {line}");
                }
            }
            Some(SampleStream::in_file_order(Arc::new(all), Side::HeldOut))
        };
        let stream = stream.ok_or_else(|| CliError::new(format!("no row of {} is held out", file.display())))?;
        let rows = stream.file_len().unwrap_or(0);
        Ok(HeldOut { stream, count: count.unwrap_or(MOST_ROWS).min(rows) })
    }
}
