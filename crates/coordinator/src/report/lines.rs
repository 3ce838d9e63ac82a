//! The lines that the console prints, as pure functions: banner, epochs, solutions, evaluations.

use numalign_config::{Arithmetic, Config, Recipe};
use numalign_data::Schedule;
use numalign_data::shown::fixed;
use numalign_projector::{Encoding, Layout, State, Trained};

use super::metrics::EpochSummary;
use super::record::MetricsEvent;
use crate::machine::WorkerReady;
use crate::machine::collective::{CollectiveBackend, CollectiveDecision};

/// What a run is, before its first step; `base` is what its first worker told of the model.
pub fn banner(config: &Config, base: &WorkerReady) -> String {
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
pub fn idle_workers(config: &Config) -> Option<String> {
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

/// Which all-reduce is in use, and why.
pub fn collective_line(decision: &CollectiveDecision) -> String {
    match decision.backend {
        CollectiveBackend::Nccl => format!("  collective {}", decision.reason),
        CollectiveBackend::Grpc => format!("  collective gRPC through the coordinator ({})", decision.reason),
    }
}

/// Waiting for data, in percent of an epoch, that is worth a word on a terminal.
const NOTABLE_WAIT: f64 = 10.0;

/// One line; on a terminal, where a bar shows the rest and a line has 80 characters, only what changes.
pub fn epoch_line(summary: &EpochSummary, recipe: &Recipe, is_short: bool) -> String {
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
pub fn solution(state: &State, recipe: &Recipe) -> Option<(String, MetricsEvent)> {
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
pub fn evaluation(state: &State, recipe: &Recipe, constant: Option<f64>) -> Option<(String, MetricsEvent)> {
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
    use std::time::{Duration, Instant};

    use super::*;
    use crate::fixtures::{commit_after, config, worker_ready};
    use crate::report::metrics::Epoch;

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
        let first = commit_after(&State::initial(2, 0), recipe, 0.5);
        let second = commit_after(&first.state, recipe, 0.25);
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
