//! The engine of a checkpoint, with a warning where nothing says which tokenizer the checkpoint was trained with.

use std::path::Path;

use numalign_checkpoint::{Checkpoint, NO_TOKENIZER};
use numalign_config::DeviceChoice;
use numalign_engine::{Engine, Purpose, load_engine};

use crate::console::note;
use crate::error::CliError;

/// As [`load_engine`].
pub fn engine_of(
    checkpoint: &Checkpoint,
    path: &Path,
    model: Option<&str>,
    device: DeviceChoice,
    purpose: Purpose,
) -> Result<Engine, CliError> {
    if checkpoint.identity.lacks_tokenizer() {
        note!("{}: {NO_TOKENIZER}", path.display());
    }
    Ok(load_engine(checkpoint, path, model, device, purpose)?)
}
