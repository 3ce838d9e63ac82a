//! What the commands that evaluate or predict share: the report, its picture, and the choice of the best projectors.

use std::path::Path;

use numalign_checkpoint::Checkpoint;

use crate::error::CliError;

pub mod plot;
pub mod report;

/// Replaces the last projectors by those of the best evaluation.
pub fn take_best(checkpoint: &mut Checkpoint, path: &Path) -> Result<(), CliError> {
    let Some(best) = checkpoint.state.at_best() else {
        return Err(CliError::new(format!("{} holds no evaluations, so none is the best", path.display()))
            .with_hint("train with --eval-every N, or leave --best out"));
    };
    eprintln!(
        "projectors of step {}, the best of {} evaluations",
        best.step(),
        checkpoint.state.evaluations().list().len()
    );
    checkpoint.state = best;
    Ok(())
}
