//! `numalign import`: makes a checkpoint of bare projector tensors, given what they were trained with.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::{BareProjectors, Checkpoint, Identity, write_atomically};
use numalign_data::SampleDigest;
use numalign_engine::Engine;
use numalign_model::LoadOptions;
use numalign_projector::{Layout, State};

use super::names_a_stage;
use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    if !names_a_stage(matches, None) {
        return Err(CliError::usage("no stage is given: the file does not say what its projectors were trained for")
            .with_hint("give --stage nn, text or mixed, or --config FILE"));
    }
    let config = settings::load(matches, text(matches, "config"), None)?;
    let recipe = config.recipe;
    if recipe.train_layer_norms {
        return Err(
            CliError::usage("projectors are imported, layer norms are not").with_hint("leave train_layer_norms out")
        );
    }
    let path = Path::new(text(matches, "file").unwrap_or_default());
    let out = Path::new(text(matches, "out").unwrap_or_default());
    let (dtype, arithmetic) = (recipe.dtype, recipe.arithmetic);
    let options = LoadOptions { dtype, arithmetic, ..LoadOptions::new(config.run.device, false) };
    let engine = Engine::new(numalign_model::load_with(&recipe.model_name, options)?.lm, recipe.clone());
    let layout = Layout::of(&recipe, engine.lm().hidden_size(), 0);
    let bare = BareProjectors::read(path, layout)?;
    if !bare.passed_over.is_empty() {
        note!("{} has {} tensors that are no projectors; they are passed over", path.display(), bare.passed_over.len());
    }
    let checkpoint = Checkpoint {
        identity: Identity {
            base_fingerprint: engine.lm().fingerprint().to_hex().to_string(),
            tokenizer_fingerprint: engine.tokenizer_fingerprint()?,
            arithmetic: arithmetic.into(),
            layer_norms: Vec::new(),
            dataset_digest: None,
            split: None,
            loaded_digest: None,
            recipe: recipe.clone(),
        },
        state: State::with_parameters(layout, bare.parameters).prepared(&recipe),
        sample_digest: SampleDigest::start().to_hex(),
        sums: None,
    };
    write_atomically(out, &checkpoint.to_bytes())?;
    note!(
        "wrote {}: projectors of stage {} for {}, with {} encoding, at step 0",
        out.display(),
        recipe.stage,
        recipe.model_name,
        recipe.value_encoding
    );
    Ok(())
}
