//! What the user sees of a run, and `metrics.jsonl`. Called by the shell.
//!
//! On a terminal a bar with the time left; elsewhere one plain line per epoch. Everything goes to stderr.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use numalign_config::{Config, Solver, Unit};
use numalign_projector::{Encoding, Layout, State, Trained, schedule::learning_rate};

use crate::collective::{Choice, Way};
use crate::failures::Failure;
use crate::machine::{Commit, Readiness};
use crate::stderr;

/// Figures of the epoch in progress.
struct Epoch {
    since: Instant,
    steps: u64,
    loss: f64,
    compute: Duration,
    data_wait: Duration,
    peak_rss_mib: u64,
}

impl Epoch {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            steps: 0,
            loss: 0.0,
            compute: Duration::ZERO,
            data_wait: Duration::ZERO,
            peak_rss_mib: 0,
        }
    }
}

/// Prints and records the course of a run.
pub struct Progress {
    config: Arc<Config>,
    bar: Option<ProgressBar>,
    metrics: Option<File>,
    epoch: Epoch,
    /// Steps per second of the last whole epoch; zero before its end.
    last_rate: f64,
    /// As last told.
    collective: Option<Way>,
    pub loss: f32,
}

impl Progress {
    /// Opens `metrics.jsonl` in the run's folder; a failure is a warning, since the record is not part of the promise.
    pub fn new(config: Arc<Config>, folder: &Path) -> Self {
        let path = folder.join("metrics.jsonl");
        let metrics = match File::options().create(true).append(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::warn!("cannot write {}: {error}", path.display());
                None
            }
        };
        Self { config, bar: None, metrics, epoch: Epoch::new(), last_rate: 0.0, collective: None, loss: f32::NAN }
    }

    /// A line for the user.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| stderr::note(line)),
            None => stderr::note(line),
        }
    }

    /// The banner, once the frozen model is known.
    pub fn banner(&self, base: &Readiness) {
        let recipe = &self.config.recipe;
        let layout = Layout::of(recipe, base.hidden_size, base.layer_norm_values.len());
        let trained: usize = Trained::of(recipe).ranges(layout).iter().map(ExactSizeIterator::len).sum();
        let millions = base.model_parameters as f64 / 1e6;
        let evaluation = match self.config.run.eval_every {
            0 => String::new(),
            every => {
                format!("\n  evaluates  every {every} epochs, on {} held-out samples", self.config.run.eval_samples)
            }
        };
        self.say(&format!(
            "numalign {} · run {}\n  model      {} ({millions:.1} M frozen parameters, {} weights), fingerprint {:.16}\n  \
             trains     {trained} floats of {}\n  stage      {}, {} encoding, range {} to {}\n  steps      {} ({} epochs of {}), \
             {} samples each in micro-batches of {}{evaluation}",
            env!("CARGO_PKG_VERSION"),
            self.config.run.run_id,
            recipe.model_name,
            base.weights,
            base.base_fingerprint,
            layout.len(),
            recipe.stage,
            recipe.value_encoding,
            recipe.min_val,
            recipe.max_val,
            recipe.total_steps(),
            recipe.num_epochs,
            recipe.num_batches,
            recipe.batch_size,
            recipe.micro_batch_size,
        ));
    }

    /// The first generation begins at `step` with these workers: host and device of each, and how many micro-batches it has.
    pub fn start(&mut self, step: u64, workers: &[(String, usize)]) {
        for (rank, (place, micro_batches)) in workers.iter().enumerate() {
            self.say(&format!(
                "  rank {rank:<5} {place}, {micro_batches} of {} micro-batches",
                self.config.recipe.micro_batches()
            ));
        }

        self.epoch = Epoch::new();
        if stderr::is_quiet() || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(self.config.recipe.total_steps()), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}  {elapsed}  ETA {eta}") {
            bar.set_style(style);
        }
        bar.set_position(step);
        self.bar = Some(bar);
    }

    /// A generation begins; a line where it reduces in another way than the one before.
    pub fn reduced_by(&mut self, choice: &Choice) {
        // The reason may name another worker each time; what matters is the way.
        if self.collective == Some(choice.way) {
            return;
        }
        let line = match choice.way {
            Way::Nccl => choice.reason.clone(),
            Way::Grpc => format!("gRPC through the coordinator ({})", choice.reason),
        };
        self.say(&format!("  collective {line}"));
        self.collective = Some(choice.way);
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
                bar.set_message(format!("gathering {gathered} of {} batches", recipe.units().chunks()));
            }
            return;
        }
        let epoch = &mut self.epoch;
        epoch.steps += 1;
        epoch.loss += f64::from(commit.loss);
        epoch.compute += commit.timing.compute;
        epoch.data_wait += commit.timing.data_wait;
        epoch.peak_rss_mib = epoch.peak_rss_mib.max(commit.timing.peak_rss_mib);
        self.loss = commit.loss;
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(match gathered {
                Some(_) => "gathering".to_owned(),
                None => format!("loss {:.6}", commit.loss),
            });
        }
        if !step.is_multiple_of(recipe.num_batches) {
            return;
        }
        let seconds = epoch.since.elapsed().as_secs_f64().max(1e-9);
        let (steps, loss) = (epoch.steps, epoch.loss / epoch.steps as f64);
        let data_wait = 100.0 * epoch.data_wait.as_secs_f64() / seconds;
        let ms_per_step = 1e3 * seconds / steps as f64;
        let samples_per_s = steps as f64 * recipe.batch_size as f64 / seconds;
        let peak = epoch.peak_rss_mib;
        let rate = learning_rate(recipe, step - 1);
        self.last_rate = steps as f64 / seconds;
        self.epoch = Epoch::new();
        let course = match gathered {
            Some(gathered) => format!("{} samples gathered", gathered * recipe.batch_size as u64),
            None => format!("loss {loss:.6} | lr {rate:.2e}"),
        };
        self.say(&format!(
            "epoch {:>4}/{} | step {step:>6} | {course} | {samples_per_s:>8.1} samples/s | \
             waiting for data {data_wait:.0} % | {ms_per_step:.2} ms/step | {peak} MiB | {} worker{}",
            step / recipe.num_batches,
            recipe.num_epochs,
            commit.world,
            if commit.world == 1 { "" } else { "s" },
        ));
        self.record(&serde_json::json!({
            "kind": "epoch", "epoch": step / recipe.num_batches, "step": step, "loss": loss, "lr": rate,
            "samples_per_s": samples_per_s, "data_wait_percent": data_wait, "ms_per_step": ms_per_step,
            "peak_rss_mib": peak, "world": commit.world,
        }));
    }

    /// A round was solved.
    pub fn solved(&mut self, state: &State) {
        let Some(solved) = state.solve().and_then(|solve| solve.solved) else {
            return;
        };
        let recipe = &self.config.recipe;
        let samples = recipe.units().chunks() * recipe.batch_size as u64;
        let held_out = solved.held_out_error * Encoding::of(recipe).scale;
        let percent = 100.0 * held_out / recipe.range();
        let step = state.step();
        self.say(&format!(
            "step {step:>6} | output projector solved on {samples} samples | ridge {:.1e} | held out: {percent:.4} % of the range",
            solved.ridge,
        ));
        self.record(&serde_json::json!({
            "kind": "solution", "step": step, "samples": samples, "ridge": solved.ridge,
            "held_out_percent_of_range": percent,
        }));
        self.epoch.since = Instant::now();
    }

    /// The projectors were tried on held-out samples.
    fn evaluated(&mut self, state: &State) {
        let (evaluations, recipe) = (state.evaluations(), &self.config.recipe);
        let (Some(latest), Some(best)) = (evaluations.list().last(), evaluations.best()) else {
            return;
        };
        let percent = |error: f64| 100.0 * error / recipe.range();
        let (step, samples, right) = (latest.step, latest.samples, latest.right_percent());
        let right_text = right.map_or_else(String::new, |right| format!(" | choice accuracy {right:.1} %"));
        let standing = match best.step == step {
            true => "the best so far".to_owned(),
            false => format!("best: {:.4} % at step {}", percent(best.mae), best.step),
        };
        self.say(&format!(
            "step {step:>6} | {samples} held-out samples | error {:.4} % of the range{right_text} | {standing}",
            percent(latest.mae),
        ));
        self.record(&serde_json::json!({
            "kind": "evaluation", "step": step, "epoch": step / recipe.num_batches, "samples": samples,
            "mse": latest.mse, "mae": latest.mae, "mae_percent_of_range": percent(latest.mae), "right_percent": right,
            "best_step": best.step,
        }));
        self.epoch.since = Instant::now();
    }

    fn record(&mut self, line: &serde_json::Value) {
        if let Some(file) = &mut self.metrics
            && let Err(error) = writeln!(file, "{line}")
        {
            tracing::warn!("metrics.jsonl: {error}; no more lines are written");
            self.metrics = None;
        }
    }

    /// Steps per second of late: of the last whole epoch, or of the first one so far.
    pub fn steps_per_second(&self) -> f64 {
        if self.last_rate > 0.0 {
            return self.last_rate;
        }
        self.epoch.steps as f64 / self.epoch.since.elapsed().as_secs_f64().max(1e-9)
    }

    /// The run goes on after a failure: a line of the record.
    pub fn recovered(&mut self, failure: &Failure) {
        let seconds = failure.recovery.unwrap_or_default().as_secs_f64();
        tracing::info!("recovered in {seconds:.3} s: {}", failure.text);
        self.record(&serde_json::json!({
            "kind": "failure", "step": failure.step, "text": failure.text, "recovery_ms": seconds * 1e3,
        }));
    }

    /// The run ended; the bar goes.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
