//! What the user sees of a run, on stderr: a bar with the time left on a terminal, elsewhere one plain line per epoch.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use numalign_config::{Config, Solver};
use numalign_data::shown::fixed;
use numalign_data::{Schedule, Unit};
use numalign_projector::State;
use numalign_projector::schedule::learning_rate;

use super::failures::Failure;
use super::lines::{banner, collective_line, epoch_line, evaluation, idle_workers, solution};
use super::losses::StepLosses;
use super::metrics::{Epoch, MetricsFile};
use super::record::MetricsEvent;
use crate::machine::collective::{CollectiveBackend, CollectiveDecision};
use crate::machine::{Commit, WorkerReady};
use crate::stderr;

/// Prints and records the course of a run.
pub struct Console {
    config: Arc<Config>,
    bar: Option<ProgressBar>,
    metrics: MetricsFile,
    losses: StepLosses,
    epoch: Epoch,
    /// Steps per second of the last whole epoch; zero before its end.
    last_rate: f64,
    /// The backend that was printed last.
    backend: Option<CollectiveBackend>,
    loss: f32,
    /// Mean absolute error of the best constant prediction in an evaluation, in value units.
    constant: Option<f64>,
}

impl Console {
    /// A console whose record goes to the run's folder. `constant` is the mean absolute error, in value units, of the best
    /// constant prediction in an evaluation.
    pub fn new(config: Arc<Config>, folder: &Path, constant: Option<f64>) -> Self {
        Self {
            bar: None,
            constant,
            metrics: MetricsFile::open(folder, &config.run.run_id),
            losses: StepLosses::open(folder),
            config,
            epoch: Epoch::starting(Instant::now()),
            last_rate: 0.0,
            backend: None,
            loss: f32::NAN,
        }
    }

    /// Prints a line for the user.
    pub fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| stderr::note(line)),
            None => stderr::note(line),
        }
    }

    /// The run replaces another one: the record of that one goes.
    pub fn replace_record(&mut self) {
        self.metrics.clear();
        self.losses.clear();
    }

    /// Prints the banner, once the frozen model is known.
    pub fn banner(&self, base: &WorkerReady) {
        self.print(&banner(&self.config, base));
    }

    /// The first generation begins with `state` and these workers: device and host of each, and its number of micro-batches.
    pub fn start(&mut self, state: &State, workers: &[(String, usize)]) {
        self.metrics.cut_after(state);
        let all = self.config.recipe.micro_batches();
        for (rank, (device, micro_batches)) in workers.iter().enumerate() {
            self.print(&format!("  rank {rank:<5} {device}, {micro_batches} of {all} micro-batches"));
        }
        if let Some(line) = idle_workers(&self.config) {
            self.print(&line);
        }
        self.continue_epoch(state);
        if stderr::is_quiet() || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(self.config.recipe.total_steps()), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}  {elapsed}  ETA {eta}") {
            bar.set_style(style);
        }
        bar.set_position(state.step());
        self.bar = Some(bar);
    }

    /// The epoch in progress, with the losses of its steps that are made.
    fn continue_epoch(&mut self, state: &State) {
        let epoch_start = state.step() - state.step() % self.config.recipe.num_batches;
        self.epoch = Epoch::continuing(Instant::now(), &self.losses.of(epoch_start..state.step()));
    }

    /// The run goes back to `state`: the record of what came after it goes.
    pub fn rolled_back(&mut self, state: &State) {
        self.metrics.cut_after(state);
        self.continue_epoch(state);
        if let Some(bar) = &self.bar {
            bar.set_position(state.step());
        }
    }

    /// A generation begins; prints a line if its backend is another one than before.
    pub fn collective(&mut self, decision: &CollectiveDecision) {
        // The reason may name another worker each time; what matters is the backend.
        if self.backend == Some(decision.backend) {
            return;
        }
        self.print(&collective_line(decision));
        self.backend = Some(decision.backend);
    }

    /// A step, a chunk of a round, or an evaluation was committed.
    pub fn committed(&mut self, commit: &Commit) {
        if commit.unit == Unit::Evaluate {
            return self.evaluated(&commit.state);
        }
        let recipe = &self.config.recipe;
        let step = commit.state.step();
        let gathered = commit.state.position().gathered.filter(|_| commit.features.is_some());
        if let (Some(gathered), Solver::Alternate) = (gathered, recipe.solver) {
            if let Some(bar) = &self.bar {
                bar.set_message(format!("gathering {gathered} of {} batches", Schedule::of(recipe).chunks()));
            }
            return;
        }
        self.epoch.add(commit);
        self.loss = commit.loss;
        if let Unit::Step(index) = commit.unit {
            self.losses.keep(index, commit.loss);
            let every = self.config.run.log_every;
            if every > 0 && step.is_multiple_of(every) {
                let (loss, lr) = (Some(f64::from(commit.loss)), learning_rate(recipe, index));
                self.metrics.record(MetricsEvent::Step { step, loss, lr });
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(match gathered {
                Some(_) => "gathering".to_owned(),
                None => format!("loss {}", fixed(commit.loss.into(), 6)),
            });
        }
        if !step.is_multiple_of(recipe.num_batches) {
            return;
        }
        let now = Instant::now();
        let summary = self.epoch.summary(now, recipe, commit, gathered);
        self.last_rate = summary.steps_per_second;
        self.epoch = Epoch::starting(now);
        self.print(&epoch_line(&summary, &self.config.recipe, self.bar.is_some()));
        self.metrics.record(summary.event());
    }

    /// A round was solved.
    pub fn solved(&mut self, state: &State) {
        let Some((line, record)) = solution(state, &self.config.recipe) else {
            return;
        };
        self.print(&line);
        self.metrics.record(record);
        self.epoch.since = Instant::now();
    }

    /// The projectors were evaluated on held-out samples.
    fn evaluated(&mut self, state: &State) {
        let Some((line, record)) = evaluation(state, &self.config.recipe, self.constant) else {
            return;
        };
        self.print(&line);
        self.metrics.record(record);
        self.epoch.since = Instant::now();
    }

    /// Steps per second: of the last whole epoch, or of the first one so far.
    pub fn steps_per_second(&self) -> f64 {
        if self.last_rate > 0.0 {
            return self.last_rate;
        }
        self.epoch.steps as f64 / self.epoch.since.elapsed().as_secs_f64().max(1e-9)
    }

    /// The loss of the last step; NaN before the first.
    pub fn loss(&self) -> f32 {
        self.loss
    }

    /// The run continues after a failure.
    pub fn recovered(&mut self, failure: &Failure) {
        let seconds = failure.recovery.unwrap_or_default().as_secs_f64();
        tracing::info!("recovered in {seconds:.3} s: {}", failure.text);
        self.metrics.record(MetricsEvent::Failure {
            step: failure.step,
            text: failure.text.clone(),
            recovery_ms: seconds * 1e3,
        });
    }

    /// Removes the bar: the run ended.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{commit_after, config};

    #[test]
    fn a_console_records_each_epoch_once() {
        let folder = tempfile::tempdir().unwrap();
        let config = Arc::new(config(&[("log_every", "3")]));
        let mut console = Console::new(config.clone(), folder.path(), None);
        assert!(console.loss().is_nan());
        let mut state = Arc::new(State::initial(2, 0));
        for step in 0..4 {
            let commit = commit_after(&state, &config.recipe, step as f32);
            console.committed(&commit);
            state = commit.state;
        }
        assert_eq!(console.loss(), 3.0);
        assert!(console.steps_per_second() > 0.0);
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let lines: Vec<_> = lines.into_iter().filter(|line| line["kind"] == "epoch").collect();
        let found: Vec<_> = lines.iter().map(|line| (&line["kind"], &line["epoch"], &line["loss"])).collect();
        assert_eq!(found, [(&"epoch".into(), &1.into(), &0.5.into()), (&"epoch".into(), &2.into(), &2.5.into())]);
        assert!(text.contains(r#""kind":"step","step":3,"loss":2.0,"lr":"#) && text.lines().count() == 3, "{text}");
    }

    #[test]
    fn a_console_that_goes_on_within_an_epoch_knows_the_steps_before() {
        let folder = tempfile::tempdir().unwrap();
        let config = Arc::new(config(&[("num_batches", "4")]));
        let mut state = Arc::new(State::initial(2, 0));
        for step in 0..4 {
            // Another process each time.
            let mut console = Console::new(config.clone(), folder.path(), None);
            console.start(&state, &[]);
            let commit = commit_after(&state, &config.recipe, step as f32);
            console.committed(&commit);
            state = commit.state;
        }
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert!(text.contains(r#""kind":"epoch","epoch":1,"step":4,"loss":1.5,"steps":4,"#), "{text}");
    }
}
