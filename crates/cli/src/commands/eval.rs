//! `numalign eval`: metrics of a checkpoint on samples it never trained on.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{DeviceChoice, Stage};
use numalign_data::{Domain, SampleStream};
use numalign_engine::{Engine, Purpose, ablation, error_analysis, metrics, zero_shot};

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::console::note;
use crate::error::CliError;
use crate::evaluation::plot::{Course, Subject, draw};
use crate::evaluation::report::{Ablation, Report};
use crate::evaluation::{evaluate_with_progress, take_best};
use crate::launcher::child::die_with_parent;
use crate::plot::Destination;
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    die_with_parent()?;
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let plot = text(matches, "plot").map(Destination::of).transpose()?;
    let mut checkpoint = Checkpoint::read(path)?;
    if matches.get_flag("best") {
        take_best(&mut checkpoint, path)?;
    }
    let stage = checkpoint.identity.recipe.stage;
    let (ablate, ask) = (matches.get_flag("ablation"), matches.get_flag("zero-shot"));
    if ask && stage != Stage::Mixed {
        return Err(CliError::usage(format!("--zero-shot asks questions as plain text, and stage {stage} has none"))
            .with_hint("it is for checkpoints of stage mixed"));
    }
    if ablate && checkpoint.identity.dataset_digest.is_some() {
        return Err(CliError::usage(
            "--ablation trains on generated samples, and this checkpoint was trained on a file",
        )
        .with_hint("leave --ablation out"));
    }
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let mut engine = engine_of(&checkpoint, path, text(matches, "model"), device, Purpose::Predict)?;
    let mut recipe = checkpoint.identity.recipe.clone();
    if let Some(seed) = matches.get_one::<u64>("seed") {
        recipe.seed = *seed;
    }
    recipe.dataset_shuffle = false;
    let stream = match text(matches, "dataset") {
        Some(file) => SampleStream::from_file(Path::new(file), &recipe)?,
        None => SampleStream::generated(&recipe, Domain::Eval)?,
    };
    let count = *matches.get_one::<u64>("count").unwrap_or(&1000);
    let evaluation = evaluate_with_progress(&mut engine, &checkpoint.state, &stream, count)?;
    let mut report = Report::of(engine.recipe(), &evaluation, &stream);
    if ask {
        report.zero_shot = Some(zero_shot::ask(&mut engine, &stream, count.min(zero_shot::MOST_QUESTIONS))?);
    }
    if ablate {
        report.ablation = Some(without_model(engine, &stream, count)?);
    }
    if let Some(file) = plot {
        let without_model = report.ablation.as_ref().map(|ablation| ablation.metrics.mae);
        let subject = Subject { checkpoint: path, without_model };
        file.write(&draw(&checkpoint.identity.recipe, &evaluation, &Course::of(path), subject))?;
        note!("wrote {}", file.path().display());
    }
    report.print(matches.get_flag("json"))
}

/// The same recipe trained and evaluated with the frozen stack bypassed.
fn without_model(engine: Engine, stream: &SampleStream, count: u64) -> Result<Ablation, CliError> {
    let (recipe, evaluation) = ablation::train_and_evaluate(engine, stream, count)?;
    Ok(Ablation {
        metrics: metrics::measure(&recipe, &evaluation.predictions, &evaluation.targets),
        choice_accuracy: error_analysis::choice_accuracy(&recipe, &evaluation, stream),
    })
}
