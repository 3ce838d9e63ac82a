//! What a checkpoint of a run with a solver holds besides: where the solver stands (metadata `solve`), and in the middle
//! of a round its sums (tensors `solve.*`).

use numalign_config::{Recipe, Solver};
use numalign_data::Schedule;
use numalign_projector::{Features, Gram, Layout, Round, SolveState, Solved, State, Sums};
use serde::{Deserialize, Serialize};

use crate::tensor::{Tensor, TensorMap};

const GRAM_HIGH: &str = "solve.gram_high";
const GRAM_LOW: &str = "solve.gram_low";
const HELD_OUT: &str = "solve.held_out";

/// Larger sums over several places or folds are not stored, and a probe has none: a run that goes on gathers their round
/// again. Those over one place without folds always are.
const MOST_STORED: u64 = 64 << 20;

/// Whether a checkpoint in the middle of a round holds the round's sums.
pub(crate) fn stores_sums(recipe: &Recipe, layout: Layout) -> bool {
    let is_one = layout.places() == 1 && recipe.ridge_folds == 0;
    recipe.probe.is_none() && (is_one || Sums::stored_bytes(layout.read_width(), recipe.ridge_folds) <= MOST_STORED)
}

/// The metadata entry. Numbers of samples follow from the recipe; they are there for the reader.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Rounds solved.
    rounds: u64,
    /// Samples of the solver's own stream in those rounds; the sample digest does not cover them. With `exact` there is no such
    /// stream.
    solve_samples: u64,
    /// λ of the latest solution.
    #[serde(skip_serializing_if = "Option::is_none")]
    ridge: Option<f64>,
    /// Mean absolute error in encoded units on held-out samples of the latest round.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out_error: Option<f64>,
    /// Chunks gathered in the round in progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<u64>,
    /// Digest over their features, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    features_digest: Option<String>,
}

pub(crate) fn to_json(recipe: &Recipe, state: &SolveState) -> String {
    let rounds = state.solved.map_or(0, |solved| solved.rounds);
    let of_a_round = match recipe.solver {
        Solver::Alternate => Schedule::of(recipe).chunks() * recipe.batch_size as u64,
        Solver::Adam | Solver::Exact => 0,
    };
    let entry = Entry {
        rounds,
        solve_samples: rounds * of_a_round,
        ridge: state.solved.map(|solved| solved.ridge),
        held_out_error: state.solved.map(|solved| solved.held_out_error),
        chunks: state.round.map(|round| round.chunks),
        features_digest: state.round.map(|round| blake3::Hash::from_bytes(round.digest).to_hex().to_string()),
    };
    match serde_json::to_string(&entry) {
        Ok(text) => text,
        // Whole numbers, finite floats and text have a JSON form.
        Err(error) => format!("no JSON form: {error}"),
    }
}

pub(crate) fn from_json(text: &str) -> Result<SolveState, String> {
    let entry: Entry = serde_json::from_str(text).map_err(|error| format!("solve cannot be read: {error}"))?;
    let round = match (entry.chunks, entry.features_digest) {
        (Some(chunks), Some(digest)) => {
            let digest = blake3::Hash::from_hex(&digest).map_err(|_| format!("features_digest is `{digest}`"))?;
            Some(Round { chunks, digest: *digest.as_bytes() })
        }
        _ => None,
    };
    let solved = match (entry.ridge, entry.held_out_error) {
        (Some(ridge), Some(held_out_error)) => Some(Solved { rounds: entry.rounds, ridge, held_out_error }),
        _ => None,
    };
    Ok(SolveState { round, solved })
}

/// Gram parts as packed upper triangles over the columns `[h 1 y]`, fold after fold, and the samples that judge `[n, d+1]`.
pub(crate) fn tensors(sums: &Sums) -> Vec<Tensor> {
    let held_out = sums.held_out();
    let high: Vec<f64> = sums.grams().iter().flat_map(Gram::high).copied().collect();
    let low: Vec<f64> = sums.grams().iter().flat_map(Gram::low).copied().collect();
    let entries = vec![high.len()];
    let shape = vec![held_out.len(), Features::width(held_out.hidden())];
    vec![
        Tensor::of_f64(GRAM_HIGH.to_owned(), entries.clone(), &high),
        Tensor::of_f64(GRAM_LOW.to_owned(), entries, &low),
        Tensor::of_f32(HELD_OUT.to_owned(), shape, held_out.values()),
    ]
}

/// The sums of the round that `state` is in the middle of; none if it is in none, or at its first chunk, or if they are
/// too large to be stored.
pub(crate) fn sums(recipe: &Recipe, state: &State, tensors: &TensorMap) -> Result<Option<Sums>, String> {
    let Some(chunks) = state.position().gathered.filter(|chunks| *chunks > 0) else {
        return Ok(None);
    };
    if !stores_sums(recipe, state.layout()) {
        return Ok(None);
    }
    let missing = || format!("the sums of {chunks} chunks are missing or damaged");
    let tensor = |name: &str| tensors.get(name).ok_or_else(missing);
    let (Some(high), Some(low)) = (tensor(GRAM_HIGH)?.f64s(), tensor(GRAM_LOW)?.f64s()) else {
        return Err(missing());
    };
    let values = tensor(HELD_OUT)?.f32s().ok_or_else(missing)?;
    let held_out = Features::new(state.layout().read_width(), values).map_err(|error| error.to_string())?;
    let samples = chunks.checked_mul(recipe.batch_size as u64).ok_or_else(missing)?;
    Sums::restored(samples, recipe.ridge_folds, high, low, held_out).map(Some).ok_or_else(missing)
}
