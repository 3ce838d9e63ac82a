//! `numalign features`: the hidden states and targets that a solution was computed from, for checks by other programs.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::{Checkpoint, write_atomically};
use numalign_config::{DeviceChoice, Recipe, Solver};
use numalign_data::{Domain, SampleStream, Schedule};
use numalign_engine::Purpose;
use safetensors::{Dtype, tensor::TensorView};

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::console::note;
use crate::error::CliError;
use crate::settings;

/// Samples exported of a checkpoint that was not solved for.
const UNSOLVED: u64 = 1000;

/// Samples that pass through the model at once.
const AT_ONCE: u64 = 1024;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let out = Path::new(text(matches, "out").unwrap_or_default());
    let checkpoint = Checkpoint::read(path)?;
    let recipe = &checkpoint.identity.recipe;
    let (domain, mut range) = solved_on(&checkpoint);
    if let Some(count) = matches.get_one::<u64>("count") {
        range.end = range.start + count;
    }
    let stream = stream_of(&checkpoint, text(matches, "dataset"), domain)?;
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let mut engine = engine_of(&checkpoint, path, text(matches, "model"), device, Purpose::Predict)?;
    let (mut hidden, mut targets) = (Vec::new(), Vec::new());
    let mut from = range.start;
    while from < range.end {
        let to = range.end.min(from + AT_ONCE);
        let samples: Vec<_> = (from..to).map(|index| stream.sample(index)).collect();
        hidden.extend(engine.hidden(&checkpoint.state, &samples)?);
        targets.extend(samples.iter().map(|sample| engine.encoding().encode(sample.target)));
        from = to;
    }
    write(out, &checkpoint, &hidden, &targets, domain, &range)?;
    let (count, d) = (targets.len(), checkpoint.state.layout().read_width());
    note!("wrote {}: hidden [{count}, {d}], target [{count}] of stage {}", out.display(), recipe.stage);
    Ok(())
}

/// The stream and indices of the latest solution: the pass of `exact`, the last round of `alternate`. Between rounds the
/// input projector has moved on since.
fn solved_on(checkpoint: &Checkpoint) -> (Domain, Range<u64>) {
    let recipe = &checkpoint.identity.recipe;
    let of_a_round = Schedule::of(recipe).chunks() * recipe.batch_size as u64;
    let rounds = checkpoint.state.solve().and_then(|solve| solve.solved).map_or(1, |solved| solved.rounds);
    match recipe.solver {
        Solver::Adam => (Domain::Train, 0..UNSOLVED),
        Solver::Exact => (Domain::Train, 0..of_a_round),
        Solver::Alternate => (Domain::Solve, (rounds - 1) * of_a_round..rounds * of_a_round),
    }
}

/// The run's own samples: generated, or the lines of the file it was trained on.
fn stream_of(checkpoint: &Checkpoint, dataset: Option<&str>, domain: Domain) -> Result<SampleStream, CliError> {
    let recipe: &Recipe = &checkpoint.identity.recipe;
    let stream = match dataset {
        Some(file) => SampleStream::from_file(Path::new(file), recipe)?,
        None => SampleStream::generated(recipe, domain)?,
    };
    let digest = stream.content_digest().map(|digest| digest.to_hex().to_string());
    if digest != checkpoint.identity.dataset_digest {
        return Err(CliError::usage("the checkpoint was trained on other samples")
            .with_hint("give the file of the run with --dataset, or leave it out if its samples were generated"));
    }
    Ok(stream)
}

fn write(
    out: &Path,
    checkpoint: &Checkpoint,
    hidden: &[f32],
    targets: &[f32],
    domain: Domain,
    range: &Range<u64>,
) -> Result<(), CliError> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (hidden_bytes, target_bytes) = (bytes(hidden), bytes(targets));
    let shape = vec![targets.len(), checkpoint.state.layout().read_width()];
    let failed = |error: safetensors::SafeTensorError| CliError::new(format!("the features cannot be stored: {error}"));
    let tensors = [
        ("hidden", TensorView::new(Dtype::F32, shape, &hidden_bytes).map_err(failed)?),
        ("target", TensorView::new(Dtype::F32, vec![targets.len()], &target_bytes).map_err(failed)?),
    ];
    let mut metadata = HashMap::from([
        ("stream".to_owned(), domain.name().to_owned()),
        ("first_sample".to_owned(), range.start.to_string()),
    ]);
    if let Some(solved) = checkpoint.state.solve().and_then(|solve| solve.solved) {
        metadata.insert("ridge".to_owned(), solved.ridge.to_string());
    }
    let file = safetensors::serialize(tensors, Some(metadata)).map_err(failed)?;
    write_atomically(out, &file)?;
    Ok(())
}
