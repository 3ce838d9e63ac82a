//! What the user sees of a run, on stderr: a bar with the time left on a terminal, elsewhere one plain line per epoch.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use numalign_config::{Arithmetic, Config, Recipe, Solver};
use numalign_data::shown::fixed;
use numalign_data::{Schedule, Unit};
use numalign_projector::schedule::learning_rate;
use numalign_projector::{Encoding, Layout, State, Trained};

use super::failures::Failure;
use super::losses::StepLosses;
use super::metrics::{Epoch, EpochSummary, MetricsFile};
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

fn banner(config: &Config, base: &WorkerReady) -> String {
    let recipe = &config.recipe;
    let layout = Layout::of(recipe, base.hidden_size, base.layer_norm_values.len());
    let trained: usize = Trained::of(recipe).ranges(layout).iter().map(ExactSizeIterator::len).sum();
    let millions = base.model_parameters as f64 / 1e6;
    let evaluation = match config.run.eval_every {
        0 => String::new(),
        every => {
            format!("\n  evaluates  every {every} epochs, on {} held-out samples", config.run.eval_samples)
        }
    };
    let products = match base.arithmetic {
        Arithmetic::F32 => String::new(),
        rounded => format!(", products in {rounded}"),
    };
    format!(
        "numalign {} · run {}\n  model      {} ({millions:.1} M frozen parameters, {} weights{products}), fingerprint {:.16}\n  \
         trains     {trained} floats of {}\n  stage      {}, {} encoding, range {} to {}\n  steps      {} ({} epochs of {}), \
         {} samples each in micro-batches of {}{evaluation}",
        env!("CARGO_PKG_VERSION"),
        config.run.run_id,
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
    )
}

/// What to say where there are more workers than micro-batches: which setting gives all of them work.
fn idle_workers(config: &Config) -> Option<String> {
    let (recipe, workers) = (&config.recipe, config.run.workers);
    let busy = recipe.micro_batches();
    if workers <= busy {
        return None;
    }
    // The largest that leaves everybody something to do, and divides the batch.
    let size = (1..=recipe.batch_size / workers).rev().find(|size| recipe.batch_size.is_multiple_of(*size));
    let remedy = match size {
        Some(size) => format!("micro_batch_size {size} gives every worker some"),
        None => format!("a batch_size of {workers} or more can give every worker some"),
    };
    let (idle, plural) = (workers - busy, if busy == 1 { "" } else { "es" });
    let verb = if idle == 1 { "has" } else { "have" };
    Some(format!(
        "  spare      {idle} of {workers} workers {verb} no work: a step has {busy} micro-batch{plural}; {remedy}"
    ))
}

fn collective_line(decision: &CollectiveDecision) -> String {
    match decision.backend {
        CollectiveBackend::Nccl => format!("  collective {}", decision.reason),
        CollectiveBackend::Grpc => format!("  collective gRPC through the coordinator ({})", decision.reason),
    }
}

/// Waiting for data, in percent of an epoch, that is worth a word on a terminal.
const NOTABLE_WAIT: f64 = 10.0;

/// One line; on a terminal, where a bar shows the rest and a line has 80 characters, only what changes.
fn epoch_line(summary: &EpochSummary, recipe: &Recipe, is_short: bool) -> String {
    let course = match summary.gathered_samples {
        Some(samples) => format!("{samples} samples gathered"),
        None => format!("loss {} | lr {:.2e}", fixed(summary.loss, 6), summary.learning_rate),
    };
    if is_short {
        let wait = match summary.data_wait_percent {
            percent if percent >= NOTABLE_WAIT => format!(" | waiting for data {percent:.0} %"),
            _ => String::new(),
        };
        let (epoch, step, speed) = (summary.epoch, summary.step, summary.samples_per_second);
        return format!(
            "epoch {epoch:>4}/{} | step {step:>6} | {course} | {speed:.0} samples/s{wait}",
            recipe.num_epochs
        );
    }
    format!(
        "epoch {:>4}/{} | step {:>6} | {course} | {:>8.1} samples/s | waiting for data {:.0} % | {:.2} ms/step | {} MiB | \
         {} worker{}",
        summary.epoch,
        recipe.num_epochs,
        summary.step,
        summary.samples_per_second,
        summary.data_wait_percent,
        summary.ms_per_step,
        summary.peak_rss_mib,
        summary.world,
        if summary.world == 1 { "" } else { "s" },
    )
}

/// Line and record of a round's solution.
fn solution(state: &State, recipe: &Recipe) -> Option<(String, MetricsEvent)> {
    let solved = state.solve()?.solved?;
    let samples = Schedule::of(recipe).chunks() * recipe.batch_size as u64;
    let held_out = solved.held_out_error * Encoding::of(recipe).scale;
    let percent = 100.0 * held_out / recipe.range();
    let step = state.step();
    let line = format!(
        "step {step:>6} | output projector solved on {samples} samples | ridge {:.1e} | held out: {percent:.4} % of the range",
        solved.ridge,
    );
    let record = MetricsEvent::Solution { step, samples, ridge: solved.ridge, held_out_percent_of_range: percent };
    Some((line, record))
}

/// Line and record of the latest evaluation. `constant` is the best constant prediction's error in value units.
fn evaluation(state: &State, recipe: &Recipe, constant: Option<f64>) -> Option<(String, MetricsEvent)> {
    let evaluations = state.evaluations();
    let (latest, best) = (evaluations.list().last()?, evaluations.best()?);
    let percent = |error: f64| 100.0 * error / recipe.range();
    let (step, samples, right) = (latest.step, latest.samples, latest.right_percent());
    let right_text = right.map_or_else(String::new, |right| format!(" | choice accuracy {right:.1} %"));
    let standing = match best.step == step {
        true => "the best so far".to_owned(),
        false => format!("best: {:.4} % at step {}", percent(best.mae), best.step),
    };
    let line = format!(
        "step {step:>6} | {samples} held-out samples | error {:.4} % of the range{right_text} | {standing}",
        percent(latest.mae),
    );
    let record = MetricsEvent::Evaluation {
        step,
        epoch: step / recipe.num_batches,
        samples,
        mse: latest.mse,
        mae: latest.mae,
        mae_percent_of_range: percent(latest.mae),
        baseline_mae_percent_of_range: constant.map(percent),
        right_percent: right,
        best_step: best.step,
    };
    Some((line, record))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fixtures::worker_ready;
    use crate::machine::Timing;

    fn config(more: &[(&str, &str)]) -> Config {
        let some = [
            ("run_id", "mine"),
            ("num_epochs", "3"),
            ("num_batches", "2"),
            ("batch_size", "8"),
            ("micro_batch_size", "4"),
        ];
        let kept = some.iter().filter(|(key, _)| more.iter().all(|(other, _)| other != key));
        Config::with(&kept.chain(more).copied().collect::<Vec<_>>()).unwrap()
    }

    /// The commit that follows `state`, with a loss.
    fn commit(state: &State, recipe: &Recipe, loss: f32) -> Commit {
        let mut state = state.clone();
        let mut row = vec![0.0; state.layout().row_len()];
        *row.last_mut().unwrap() = loss;
        state.update(&row, recipe).unwrap();
        let timing = Timing { data_wait: Duration::from_millis(500), peak_rss_mib: 77, ..Timing::default() };
        let unit = Unit::Step(state.step() - 1);
        Commit { unit, state: Arc::new(state), loss, timing, world: 1, features: None, audited: None }
    }

    #[test]
    fn the_banner_names_model_stage_and_amount_of_work() {
        let config = config(&[("eval_every", "2"), ("eval_samples", "16")]);
        let text = banner(&config, &worker_ready());
        for part in [
            " · run mine\n",
            "(1.5 M frozen parameters, random weights), fingerprint 0123456789abcdef\n",
            "  steps      6 (3 epochs of 2), 8 samples each in micro-batches of 4\n",
            "  evaluates  every 2 epochs, on 16 held-out samples",
        ] {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
    }

    #[test]
    fn an_epoch_is_summed_up_after_its_last_step() {
        let config = config(&[]);
        let (recipe, start) = (&config.recipe, Instant::now());
        let first = commit(&State::initial(2, 0), recipe, 0.5);
        let second = commit(&first.state, recipe, 0.25);
        let mut epoch = Epoch::starting(start);
        epoch.add(&first);
        epoch.add(&second);
        let summary = epoch.summary(start + Duration::from_secs(4), recipe, &second, None);
        assert_eq!((summary.epoch, summary.step, summary.loss), (1, 2, 0.375));
        assert_eq!((summary.steps_per_second, summary.samples_per_second), (0.5, 4.0));
        assert_eq!((summary.data_wait_percent, summary.ms_per_step), (25.0, 2000.0));
        let short = epoch_line(&summary, recipe, true);
        assert!(short.len() <= 100 && short.ends_with(" | 4 samples/s | waiting for data 25 %"), "{short}");
        let calm = epoch_line(&EpochSummary { data_wait_percent: 0.4, ..summary.clone() }, recipe, true);
        assert!(calm.len() <= 80 && calm.ends_with(" | 4 samples/s"), "{calm}");
        let line = epoch_line(&summary, recipe, false);
        assert!(line.starts_with("epoch    1/3 | step      2 | loss 0.375000 | lr "), "{line}");
        assert!(
            line.ends_with("|      4.0 samples/s | waiting for data 25 % | 2000.00 ms/step | 77 MiB | 1 worker"),
            "{line}"
        );
        let gathering = EpochSummary { gathered_samples: Some(32), world: 2, ..summary };
        let line = epoch_line(&gathering, recipe, false);
        assert!(line.contains("| 32 samples gathered |") && line.ends_with("2 workers"), "{line}");
    }

    #[test]
    fn a_console_records_each_epoch_once() {
        let folder = tempfile::tempdir().unwrap();
        let config = Arc::new(config(&[("log_every", "3")]));
        let mut console = Console::new(config.clone(), folder.path(), None);
        assert!(console.loss().is_nan());
        let mut state = Arc::new(State::initial(2, 0));
        for step in 0..4 {
            let commit = commit(&state, &config.recipe, step as f32);
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
            let commit = commit(&state, &config.recipe, step as f32);
            console.committed(&commit);
            state = commit.state;
        }
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert!(text.contains(r#""kind":"epoch","epoch":1,"step":4,"loss":1.5,"steps":4,"#), "{text}");
    }

    #[test]
    fn workers_without_work_are_told_what_gives_them_some() {
        let line = |more: &[(&str, &str)]| idle_workers(&config(more));
        assert_eq!(line(&[("workers", "2")]), None);
        assert_eq!(
            line(&[("workers", "3")]).unwrap(),
            "  spare      1 of 3 workers has no work: a step has 2 micro-batches; micro_batch_size 2 gives every worker some"
        );
        let one = line(&[("workers", "2"), ("micro_batch_size", "8")]).unwrap();
        assert!(one.ends_with("a step has 1 micro-batch; micro_batch_size 4 gives every worker some"), "{one}");
        let many = line(&[("workers", "9")]).unwrap();
        assert!(many.ends_with("a batch_size of 9 or more can give every worker some"), "{many}");
    }

    #[test]
    fn the_backend_is_told_with_its_reason() {
        let decision = |backend, reason: &str| CollectiveDecision { backend, reason: reason.to_owned() };
        let grpc = collective_line(&decision(CollectiveBackend::Grpc, "collective: grpc"));
        assert_eq!(grpc, "  collective gRPC through the coordinator (collective: grpc)");
        let nccl = collective_line(&decision(CollectiveBackend::Nccl, "NCCL 2.30.7 on one GPU"));
        assert_eq!(nccl, "  collective NCCL 2.30.7 on one GPU");
    }

    #[test]
    fn without_a_solution_or_an_evaluation_nothing_is_said() {
        let config = config(&[]);
        let state = State::initial(2, 0);
        assert!(solution(&state, &config.recipe).is_none());
        assert!(evaluation(&state, &config.recipe, None).is_none());
    }
}
