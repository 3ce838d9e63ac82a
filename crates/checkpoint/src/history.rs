//! What a checkpoint of a run with `eval_every` holds besides: its evaluations (metadata `history` and `best`),
//! and the names of the best one's tensors.

use numalign_projector::{Evaluation, Evaluations};
use serde::{Deserialize, Serialize};

/// What the names of the best evaluation's tensors begin with.
pub(crate) const BEST_PREFIX: &str = "best.";

/// One evaluation; errors in value units.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    step: u64,
    samples: u64,
    mse: f64,
    mae: f64,
    /// Stage mixed: questions whose answer is one of their numbers, and those answered nearest to it.
    #[serde(default, skip_serializing_if = "is_zero")]
    questions: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    right: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

pub(crate) fn to_json(evaluation: &Evaluation) -> String {
    let Evaluation { step, samples, mse, mae, questions, right } = *evaluation;
    match serde_json::to_string(&Entry { step, samples, mse, mae, questions, right }) {
        Ok(text) => text,
        // Whole numbers and finite floats have a JSON form.
        Err(error) => format!("no JSON form: {error}"),
    }
}

pub(crate) fn list_to_json(evaluations: &Evaluations) -> String {
    let list: Vec<String> = evaluations.list().iter().map(to_json).collect();
    format!("[{}]", list.join(","))
}

pub(crate) fn list_from_json(text: &str) -> Result<Vec<Evaluation>, String> {
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(|error| format!("history cannot be read: {error}"))?;
    let mut list = Vec::with_capacity(entries.len());
    for Entry { step, samples, mse, mae, questions, right } in entries {
        list.push(Evaluation { step, samples, mse, mae, questions, right });
    }
    Ok(list)
}
