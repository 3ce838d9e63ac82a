//! `metrics.jsonl`, the record of a run, and the figures of the epoch in progress.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use numalign_checkpoint::{open_regular, write_atomically};
use numalign_config::Recipe;
use numalign_projector::State;
use numalign_projector::schedule::learning_rate;

use crate::machine::Commit;

/// The file. A line that cannot be written is lost, and told once.
pub struct MetricsFile {
    path: PathBuf,
    file: Option<File>,
    is_told: bool,
}

impl MetricsFile {
    /// Opens `metrics.jsonl` in the run's folder; a failure is a warning, since the record is not part of the promise.
    pub fn open(folder: &Path) -> Self {
        let mut metrics = Self { path: folder.join("metrics.jsonl"), file: None, is_told: false };
        match open_regular(&metrics.path, true) {
            Ok(file) => metrics.file = Some(file),
            Err(error) => metrics.tell(&error),
        }
        metrics
    }

    /// Appends one line, in one write.
    pub fn record(&mut self, line: &serde_json::Value) {
        let Some(file) = &mut self.file else {
            return;
        };
        let length = file.metadata().map(|metadata| metadata.len());
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            // Half a line would spoil the next one.
            if let Ok(length) = length {
                let _ = file.set_len(length);
            }
            self.tell(&error);
        }
    }

    /// The run goes on from `state`: what the file says of a later one goes, and a last line that was cut off in the
    /// middle.
    pub fn cut_after(&mut self, state: &State) {
        if self.file.is_none() {
            return;
        }
        if let Err(error) = self.rewrite(state) {
            self.tell(&error);
        }
    }

    fn rewrite(&mut self, state: &State) -> std::io::Result<()> {
        let before = std::fs::read(&self.path)?;
        let after = kept_lines(&before, state);
        if before == after {
            return Ok(());
        }
        write_atomically(&self.path, &after).map_err(std::io::Error::other)?;
        self.file = Some(open_regular(&self.path, true)?);
        Ok(())
    }

    fn tell(&mut self, error: &dyn std::fmt::Display) {
        if !self.is_told {
            self.is_told = true;
            tracing::warn!("cannot write {}: {error}; the run goes on, this record has gaps", self.path.display());
        }
    }
}

/// The whole lines of `bytes` that do not tell of what comes after `state`.
fn kept_lines(bytes: &[u8], state: &State) -> Vec<u8> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    // A line that is none of ours stays.
    lines
        .filter(|line| serde_json::from_slice(line).map_or(true, |record| is_of(&record, state)))
        .flatten()
        .copied()
        .collect()
}

/// Whether a record tells of `state` or what led to it.
fn is_of(record: &serde_json::Value, state: &State) -> bool {
    let Some(step) = record["step"].as_u64() else {
        return true;
    };
    if step != state.step() {
        return step < state.step();
    }
    match record["kind"].as_str() {
        Some("evaluation") => state.evaluations().list().last().is_some_and(|made| made.step == step),
        Some("solution") => state.solve().is_some_and(|solve| solve.solved.is_some()),
        _ => true,
    }
}

/// Figures of the epoch in progress.
pub struct Epoch {
    /// When it began; evaluations and solutions do not count.
    pub since: Instant,
    /// Steps so far.
    pub steps: u64,
    loss: f64,
    data_wait: Duration,
    peak_rss_mib: u64,
}

impl Epoch {
    /// An epoch that begins at `now`.
    pub fn starting(now: Instant) -> Self {
        Self { since: now, steps: 0, loss: 0.0, data_wait: Duration::ZERO, peak_rss_mib: 0 }
    }

    /// Takes in one committed unit.
    pub fn add(&mut self, commit: &Commit) {
        self.steps += 1;
        self.loss += f64::from(commit.loss);
        self.data_wait += commit.timing.data_wait;
        self.peak_rss_mib = self.peak_rss_mib.max(commit.timing.peak_rss_mib);
    }

    /// The figures after the last unit of the epoch, at `now`; `gathered` are the chunks of a round so far.
    pub fn summary(&self, now: Instant, recipe: &Recipe, commit: &Commit, gathered: Option<u64>) -> EpochSummary {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64().max(1e-9);
        let step = commit.state.step();
        EpochSummary {
            epoch: step / recipe.num_batches,
            step,
            loss: self.loss / self.steps as f64,
            learning_rate: learning_rate(recipe, step - 1),
            gathered_samples: gathered.map(|chunks| chunks * recipe.batch_size as u64),
            steps_per_second: self.steps as f64 / seconds,
            samples_per_second: self.steps as f64 * recipe.batch_size as f64 / seconds,
            // What ranks say of themselves adds up to more where they say nonsense.
            data_wait_percent: (100.0 * self.data_wait.as_secs_f64() / seconds).clamp(0.0, 100.0),
            ms_per_step: 1e3 * seconds / self.steps as f64,
            peak_rss_mib: self.peak_rss_mib,
            world: commit.world,
        }
    }
}

/// A finished epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochSummary {
    /// Its number, from 1.
    pub epoch: u64,
    /// Committed updates after it.
    pub step: u64,
    /// Mean loss; NaN if samples were gathered.
    pub loss: f64,
    /// Learning rate of the last update.
    pub learning_rate: f64,
    /// Samples gathered for the solver, if the epoch gathers.
    pub gathered_samples: Option<u64>,
    /// Steps per second.
    pub steps_per_second: f64,
    /// Samples per second.
    pub samples_per_second: f64,
    /// Share of the time that the slowest rank waited for samples.
    pub data_wait_percent: f64,
    /// Milliseconds per unit.
    pub ms_per_step: f64,
    /// Largest peak memory of a worker, in MiB.
    pub peak_rss_mib: u64,
    /// World size.
    pub world: usize,
}

impl EpochSummary {
    /// The line in `metrics.jsonl`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "kind": "epoch", "epoch": self.epoch, "step": self.step, "loss": self.loss, "lr": self.learning_rate,
            "samples_per_s": self.samples_per_second, "data_wait_percent": self.data_wait_percent,
            "ms_per_step": self.ms_per_step, "peak_rss_mib": self.peak_rss_mib, "world": self.world,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..2 {
            MetricsFile::open(folder.path()).record(&serde_json::json!({ "number": number }));
        }
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert_eq!(text, "{\"number\":0}\n{\"number\":1}\n");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        MetricsFile::open(&folder.path().join("missing")).record(&serde_json::json!({}));
    }

    #[test]
    fn a_resumed_run_mends_a_torn_line_and_cuts_what_comes_after_its_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let zero = "{\"kind\":\"epoch\",\"step\":0}\nno JSON\n";
        let later = "{\"kind\":\"evaluation\",\"step\":0}\n{\"kind\":\"epoch\",\"step\":2}\n{\"kind\":\"ep";
        std::fs::write(&path, format!("{zero}{later}")).unwrap();
        let mut metrics = MetricsFile::open(folder.path());
        metrics.cut_after(&State::initial(2, 0));
        metrics.record(&serde_json::json!({ "step": 1 }));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{zero}{{\"step\":1}}\n"));
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        std::fs::write(&outside, "").unwrap();
        let inside = folder.path().join("run");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("metrics.jsonl")).unwrap();
        MetricsFile::open(&inside).record(&serde_json::json!({ "step": 1 }));
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "");
    }
}
