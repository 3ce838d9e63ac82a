//! An engine and the training samples of a checkpoint, each checked against what the checkpoint says of them.

use std::path::Path;

use numalign_checkpoint::Checkpoint;
use numalign_config::{CpuArithmetic, DeviceChoice};
use numalign_data::{Domain, SampleStream};
use numalign_model::LoadOptions;
use numalign_model::load::{ModelDevice, place_of};

use crate::engine::Engine;
use crate::error::EngineError;

/// What an engine is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Forward passes only.
    Predict,
    /// The gradients that the checkpoint's recipe trains with, too.
    Train,
}

/// Loads the frozen model of the checkpoint read from `path`, or `model` where its files lie elsewhere.
///
/// # Errors
/// The model cannot be loaded, or its fingerprint is not the checkpoint's, or that of its tokenizer is not.
pub fn load_engine(
    checkpoint: &Checkpoint,
    path: &Path,
    model: Option<&str>,
    device: DeviceChoice,
    purpose: Purpose,
) -> Result<Engine, EngineError> {
    let recipe = &checkpoint.identity.recipe;
    let name = model.unwrap_or(&recipe.model_name);
    let positions = Engine::most_positions(recipe);
    let backward = purpose == Purpose::Train && Engine::needs_backward(recipe);
    // Whatever a CPU rounded, a GPU may evaluate it: in its own way, as it does every checkpoint.
    let arithmetic = match purpose {
        Purpose::Train => recipe.arithmetic,
        _ if place_of(device)? == ModelDevice::Cpu => recipe.arithmetic,
        _ => CpuArithmetic::F32,
    };
    let options = LoadOptions { dtype: recipe.dtype, arithmetic, positions, ..LoadOptions::new(device, backward) };
    let model = numalign_model::load_with(name, options)?;
    let found = model.lm.fingerprint().to_hex().to_string();
    if found != checkpoint.identity.base_fingerprint {
        let stored = checkpoint.identity.base_fingerprint.clone();
        return Err(EngineError::OtherModel { path: path.to_owned(), stored, name: name.to_owned(), found });
    }
    let engine = Engine::new(model.lm, recipe.clone());
    if let (Some(stored), Some(found)) = (&checkpoint.identity.tokenizer_fingerprint, engine.tokenizer_fingerprint()?)
        && found != *stored
    {
        let stored = stored.clone();
        return Err(EngineError::OtherTokenizer { path: path.to_owned(), stored, name: name.to_owned(), found });
    }
    Ok(engine)
}

/// The samples that the checkpoint read from `path` was trained on: generated, or from the file `dataset`.
///
/// # Errors
/// A file where the samples were generated, none where they came from one, or a file with other content.
pub fn training_stream(
    checkpoint: &Checkpoint,
    path: &Path,
    dataset: Option<&Path>,
) -> Result<SampleStream, EngineError> {
    let recipe = &checkpoint.identity.recipe;
    let (stored, file) = match (&checkpoint.identity.dataset_digest, dataset) {
        (None, None) => return Ok(SampleStream::generated(recipe, Domain::Train)?),
        (Some(stored), Some(file)) => (stored, file),
        (Some(stored), None) => {
            return Err(EngineError::NeedsFile { path: path.to_owned(), stored: stored.clone() });
        }
        (None, Some(_)) => return Err(EngineError::NeedsNoFile { path: path.to_owned() }),
    };
    let stream = SampleStream::from_file(file, recipe)?;
    let found = stream.content_digest().map_or_else(String::new, |digest| digest.to_hex().to_string());
    if found != *stored {
        return Err(EngineError::OtherFile {
            file: file.to_owned(),
            path: path.to_owned(),
            found,
            stored: stored.clone(),
        });
    }
    Ok(stream)
}
