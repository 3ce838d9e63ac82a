//! What several unit tests start from.

use std::sync::Arc;
use std::time::Duration;

use numalign_config::{Arithmetic, Config, Recipe};
use numalign_data::Unit;
use numalign_projector::State;

use crate::machine::{Commit, Timing, WorkerReady};

/// Three epochs of two steps, two micro-batches each, with `more` keys.
pub(crate) fn config(more: &[(&str, &str)]) -> Config {
    let some =
        [("run_id", "mine"), ("num_epochs", "3"), ("num_batches", "2"), ("batch_size", "8"), ("micro_batch_size", "4")];
    let kept = some.iter().filter(|(key, _)| more.iter().all(|(other, _)| other != key));
    Config::with(&kept.chain(more).copied().collect::<Vec<_>>()).unwrap()
}

/// The commit of the step that follows `state`, with a loss.
pub(crate) fn commit_after(state: &State, recipe: &Recipe, loss: f32) -> Commit {
    let mut state = state.clone();
    let mut row = vec![0.0; state.layout().row_len()];
    *row.last_mut().unwrap() = loss;
    state.update(&row, recipe).unwrap();
    let timing = Timing { data_wait: Duration::from_millis(500), peak_rss_mib: 77, ..Timing::default() };
    let unit = Unit::Step(state.step() - 1);
    Commit { unit, state: Arc::new(state), loss, timing, world: 1, features: None, audited: None }
}

/// A worker on a CPU whose small model is loaded.
pub(crate) fn worker_ready() -> WorkerReady {
    WorkerReady {
        base_fingerprint: "0123456789abcdef0123".to_owned(),
        tokenizer_fingerprint: None,
        arithmetic: Arithmetic::F32,
        longest_text: 0,
        hidden_size: 2,
        model_parameters: 1_500_000,
        weights: "random".to_owned(),
        device: "cpu".to_owned(),
        trial_digest: vec![1],
        layer_norms: Vec::new(),
        layer_norm_values: Vec::new(),
        nccl: Err("no GPU".to_owned()),
    }
}
