//! What the commands that evaluate or predict share: the report, its picture, and the choice of the best projectors.

use std::path::Path;

use numalign_checkpoint::Checkpoint;
use numalign_data::SampleStream;
use numalign_engine::{Engine, Evaluation, ablation, error_analysis, evaluate, metrics};
use numalign_projector::State;

use crate::console::{Progress, note};
use crate::error::CliError;
use crate::evaluation::report::Ablation;

pub mod closing;
pub mod held_out;
pub mod plot;
pub mod report;

/// Replaces the last projectors by those of the best evaluation.
pub fn take_best(checkpoint: &mut Checkpoint, path: &Path) -> Result<(), CliError> {
    let Some(best) = checkpoint.state.at_best() else {
        return Err(CliError::new(format!("{} holds no evaluations, so none is the best", path.display()))
            .with_hint("train with --eval-every N, or leave --best out"));
    };
    note!(
        "projectors of step {}, the best of {} evaluations",
        best.step(),
        checkpoint.state.evaluations().list().len()
    );
    checkpoint.state = best;
    Ok(())
}

/// Predictions for the first `count` samples of `stream`, with a bar or lines that say how far it is.
pub fn evaluate_with_progress(
    engine: &mut Engine,
    state: &State,
    stream: &SampleStream,
    count: u64,
) -> Result<Evaluation, CliError> {
    let mut progress = Progress::start("evaluating", count);
    Ok(evaluate(engine, state, stream, count, |done| progress.set(done))?)
}

/// The engine's recipe trained on `training` and evaluated on the first `count` samples of `stream`, with the frozen stack
/// bypassed.
pub fn without_model(
    engine: Engine,
    training: SampleStream,
    stream: &SampleStream,
    count: u64,
) -> Result<Ablation, CliError> {
    let (recipe, evaluation) = ablation::train_and_evaluate(engine, training, stream, count)?;
    Ok(Ablation {
        metrics: metrics::measure(&recipe, &evaluation.predictions, &evaluation.targets),
        choice_accuracy: error_analysis::choice_accuracy(&recipe, &evaluation, stream),
    })
}
