//! `metrics.jsonl`, the record of a run, and the figures of the epoch in progress.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use numalign_checkpoint::{open_regular, write_atomically};
use numalign_config::Recipe;
use numalign_projector::State;
use numalign_projector::schedule::learning_rate;

use super::record::{MetricsEvent, Record};
use crate::machine::Commit;

/// The file. A line that cannot be written is lost, and told once.
pub struct MetricsFile {
    path: PathBuf,
    run_id: String,
    file: Option<File>,
    is_told: bool,
}

impl MetricsFile {
    /// Opens `metrics.jsonl` in the folder of the run `run_id`; a failure is a warning, since the record is not part of the promise.
    pub fn open(folder: &Path, run_id: &str) -> Self {
        let path = folder.join("metrics.jsonl");
        let mut metrics = Self { path, run_id: run_id.to_owned(), file: None, is_told: false };
        match open_regular(&metrics.path, true) {
            Ok(file) => metrics.file = Some(file),
            Err(error) => metrics.tell(&error),
        }
        metrics
    }

    /// Appends one line, in one write.
    pub fn record(&mut self, event: MetricsEvent) {
        let Some(file) = &mut self.file else {
            return;
        };
        let line = match serde_json::to_string(&Record::new(&self.run_id, SystemTime::now(), event)) {
            Ok(line) => line,
            Err(error) => return self.tell(&error),
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

    /// The record of the run that was here before goes.
    pub fn clear(&mut self) {
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.set_len(0)) {
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
    /// When it began, or this process went on with it; evaluations and solutions do not count.
    pub since: Instant,
    /// Steps since then.
    pub steps: u64,
    /// Sum over `losses` steps, those before `since` among them.
    loss: f64,
    losses: u64,
    data_wait: Duration,
    peak_rss_mib: u64,
}

impl Epoch {
    /// An epoch that begins at `now`.
    pub fn starting(now: Instant) -> Self {
        Self { since: now, steps: 0, loss: 0.0, losses: 0, data_wait: Duration::ZERO, peak_rss_mib: 0 }
    }

    /// An epoch that goes on at `now` after steps with these losses.
    pub fn continuing(now: Instant, losses: &[f32]) -> Self {
        let mut epoch = Self::starting(now);
        for loss in losses {
            epoch.loss += f64::from(*loss);
            epoch.losses += 1;
        }
        epoch
    }

    /// Takes in one committed unit.
    pub fn add(&mut self, commit: &Commit) {
        self.steps += 1;
        self.loss += f64::from(commit.loss);
        self.losses += 1;
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
            loss: self.loss / self.losses as f64,
            losses: self.losses,
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
    /// Steps that it is the mean of.
    pub losses: u64,
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
    pub fn event(&self) -> MetricsEvent {
        MetricsEvent::Epoch {
            epoch: self.epoch,
            step: self.step,
            loss: Some(self.loss).filter(|loss| loss.is_finite()),
            steps: self.losses,
            lr: self.learning_rate,
            samples_per_s: self.samples_per_second,
            data_wait_percent: self.data_wait_percent,
            ms_per_step: self.ms_per_step,
            peak_rss_mib: self.peak_rss_mib,
            world: self.world,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(step: u64) -> MetricsEvent {
        MetricsEvent::Step { step, loss: Some(0.5), lr: 0.003 }
    }

    fn steps(text: &str) -> Vec<u64> {
        text.lines().map(|line| serde_json::from_str::<Record>(line).unwrap().event.step()).collect()
    }

    #[test]
    fn lines_are_appended_until_another_run_begins() {
        let folder = tempfile::tempdir().unwrap();
        let read = || std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        for step in 1..3 {
            MetricsFile::open(folder.path(), "mine").record(event(step));
        }
        assert_eq!(steps(&read()), [1, 2]);
        assert!(read().lines().all(|line| line.contains(r#""run_id":"mine""#)));
        let mut metrics = MetricsFile::open(folder.path(), "mine");
        metrics.clear();
        metrics.record(event(3));
        assert_eq!(steps(&read()), [3]);
    }

    #[test]
    fn an_epoch_that_goes_on_has_the_mean_of_all_its_steps() {
        let start = Instant::now();
        let epoch = Epoch::continuing(start, &[0.5, 0.25]);
        assert_eq!((epoch.steps, epoch.losses, epoch.loss), (0, 2, 0.75));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        MetricsFile::open(&folder.path().join("missing"), "mine").record(event(1));
    }

    #[test]
    fn a_resumed_run_mends_a_torn_line_and_cuts_what_comes_after_its_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let zero = "{\"kind\":\"epoch\",\"step\":0}\nno JSON\n";
        let later = "{\"kind\":\"evaluation\",\"step\":0}\n{\"kind\":\"epoch\",\"step\":2}\n{\"kind\":\"ep";
        std::fs::write(&path, format!("{zero}{later}")).unwrap();
        let mut metrics = MetricsFile::open(folder.path(), "mine");
        metrics.cut_after(&State::initial(2, 0));
        metrics.record(event(1));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(steps(text.strip_prefix(zero).unwrap()), [1]);
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        std::fs::write(&outside, "").unwrap();
        let inside = folder.path().join("run");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("metrics.jsonl")).unwrap();
        MetricsFile::open(&inside, "mine").record(event(1));
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "");
    }
}
