//! `numalign eval`: metrics of a checkpoint on samples it never trained on.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{DeviceChoice, Stage};
use numalign_engine::{Purpose, training_stream, zero_shot};

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::console::note;
use crate::error::CliError;
use crate::evaluation::closing::advice;
use crate::evaluation::held_out::HeldOut;
use crate::evaluation::plot::{Course, Subject, draw};
use crate::evaluation::report::Report;
use crate::evaluation::{evaluate_with_progress, take_best, without_model};
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
    let dataset = text(matches, "dataset").map(Path::new);
    // The samples that the ablation trains on: found out before anything takes time.
    let training = match ablate {
        true => {
            Some(training_stream(&checkpoint, path, dataset.filter(|_| checkpoint.identity.dataset_digest.is_some()))?)
        }
        false => None,
    };
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let mut engine = engine_of(&checkpoint, path, text(matches, "model"), device, Purpose::Predict)?;
    let mut recipe = checkpoint.identity.recipe.clone();
    if let Some(seed) = matches.get_one::<u64>("seed") {
        recipe.seed = *seed;
    }
    let count = matches.get_one::<u64>("count").copied();
    let HeldOut { stream, count } = HeldOut::of_checkpoint(&checkpoint, path, &recipe, dataset, count)?;
    let evaluation = evaluate_with_progress(&mut engine, &checkpoint.state, &stream, count)?;
    let mut report = Report::of(engine.recipe(), &evaluation, &stream);
    let advice = advice(engine.recipe(), engine.lm().layers(), &report.metrics);
    if ask {
        report.zero_shot = Some(zero_shot::ask(&mut engine, &stream, count.min(zero_shot::MOST_QUESTIONS))?);
    }
    if let Some(training) = training {
        report.ablation = Some(without_model(engine, training, &stream, count)?);
    }
    if let Some(file) = plot {
        let without_model = report.ablation.as_ref().map(|ablation| ablation.metrics.mae);
        let subject = Subject { checkpoint: path, without_model };
        file.write(&draw(&checkpoint.identity.recipe, &evaluation, &Course::of(path), subject))?;
        note!("wrote {}", file.path().display());
    }
    report.print(matches.get_flag("json"), matches.get_flag("details"))?;
    if let Some(advice) = advice {
        note!("hint: {advice}");
    }
    Ok(())
}
