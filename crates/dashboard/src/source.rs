//! What a command has to tell of a run, so that the page can show it: the one thing in which `launch`, `coordinator` and
//! `watch` differ.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

/// What does not change while a run is shown.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Facts {
    /// Name of the run.
    pub run_id: String,
    /// Name of the frozen model.
    pub model: String,
    /// The stage.
    pub stage: String,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Samples of a step.
    pub batch_size: u64,
    /// Every key with its value as one phrase.
    pub settings: BTreeMap<String, String>,
}

/// A checkpoint in the run's folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointFact {
    /// Name of the file.
    pub file: String,
    /// Committed updates.
    pub step: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Seconds since 1970 at which it was written.
    pub written: u64,
    /// BLAKE3 over the state, in hex.
    pub state_digest: String,
}

/// A run as the page reads it. Every method but [`RunSource::facts`] and [`RunSource::folder`] may take a while, and is
/// called where that hurts nobody.
pub trait RunSource: Send + Sync {
    /// What does not change.
    fn facts(&self) -> &Facts;

    /// The run's folder, with its `metrics.jsonl`.
    fn folder(&self) -> &Path;

    /// The error of the best constant prediction on the held-out samples, in percent of the range; none where only the
    /// record of an evaluation tells it. Asked until it is known.
    fn constant_percent_of_range(&self) -> Option<f64>;

    /// The checkpoints in the folder, oldest first.
    fn checkpoints(&self) -> Vec<CheckpointFact>;
}
