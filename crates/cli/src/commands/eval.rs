//! `numalign eval`: metrics of a checkpoint on samples it never trained on. `launch` prints the same report at its end.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{DeviceChoice, Stage};
use numalign_data::{Domain, SampleStream};
use numalign_model::LoadOptions;
use numalign_projector::State;
use numalign_worker::ablation::{self, MeanOfEmbeddings};
use numalign_worker::{Engine, LocalRun, evaluation};

use super::eval_plot::{Course, draw};
use super::eval_report::{Ablation, Report, right_numbers};
use super::verbal;
use crate::args::text;
use crate::console::{Progress, note};
use crate::error::CliError;
use crate::launcher::child::die_with_parent;
use crate::plot::Destination;
use crate::settings;

/// Samples between two signs of progress.
const AT_ONCE: u64 = 128;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    die_with_parent()?;
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let plot = text(matches, "plot").map(Destination::of).transpose()?;
    let mut checkpoint = Checkpoint::read(path)?;
    if matches.get_flag("best") {
        take_best(&mut checkpoint, path)?;
    }
    let stage = checkpoint.identity.recipe.stage;
    let (ablate, ask) = (matches.get_flag("ablation"), matches.get_flag("verbal"));
    if ask && stage != Stage::Mixed {
        return Err(CliError::usage(format!("--verbal asks questions in words, and stage {stage} has none"))
            .with_hint("it is for checkpoints of stage mixed"));
    }
    if ablate && checkpoint.identity.dataset_digest.is_some() {
        return Err(CliError::usage(
            "--ablation trains on generated samples, and this checkpoint was trained on a file",
        )
        .with_hint("leave --ablation out"));
    }
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let mut engine = engine_of(&checkpoint, path, text(matches, "model"), device)?;
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
    let evaluation = evaluate(&mut engine, &checkpoint.state, &stream, count)?;
    let mut report = Report::of(engine.recipe(), &evaluation, &stream);
    if ask {
        report.verbal = Some(verbal::ask(&mut engine, &stream, count.min(verbal::MOST_QUESTIONS))?);
    }
    if ablate {
        report.ablation = Some(without_model(engine, &stream, count)?);
    }
    if let Some(file) = plot {
        file.write(&draw(&checkpoint.identity.recipe, &evaluation, &Course::of(path)))?;
        note!("wrote {}", file.path().display());
    }
    report.print(matches.get_flag("json"))
}

/// Puts the projectors of the best evaluation in the place of the last ones.
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

/// The frozen model of a checkpoint, checked against its fingerprint; for predictions, not for gradients.
pub fn engine_of(
    checkpoint: &Checkpoint,
    path: &Path,
    model: Option<&str>,
    device: DeviceChoice,
) -> Result<Engine, CliError> {
    load_engine(checkpoint, path, model, device, false)
}

/// As [`engine_of`]; with `backward` it gives the gradients that its recipe trains with, too.
pub fn load_engine(
    checkpoint: &Checkpoint,
    path: &Path,
    model: Option<&str>,
    device: DeviceChoice,
    backward: bool,
) -> Result<Engine, CliError> {
    let recipe = &checkpoint.identity.recipe;
    let name = model.unwrap_or(&recipe.model_name);
    let positions = Engine::most_positions(recipe);
    let backward = backward && Engine::needs_backward(recipe);
    let options = LoadOptions { dtype: recipe.dtype, positions, ..LoadOptions::new(device, backward) };
    let model = numalign_model::load_with(name, options)?;
    let found = model.lm.fingerprint().to_hex().to_string();
    if found != checkpoint.identity.base_fingerprint {
        return Err(CliError::new(format!(
            "{} was trained on another frozen model: its fingerprint is {:.16}, that of `{name}` is {found:.16}",
            path.display(),
            checkpoint.identity.base_fingerprint
        ))
        .with_hint("give the model it was trained on with --model; a projector is valid for one base only"));
    }
    Ok(Engine::new(model.lm, recipe.clone()))
}

/// Predictions beside what they should have been, both in value units, in the order of the stream.
pub struct Evaluation {
    pub predictions: Vec<f64>,
    pub targets: Vec<f64>,
}

/// Predictions for the first `count` samples of `stream`.
pub fn evaluate(engine: &mut Engine, state: &State, stream: &SampleStream, count: u64) -> Result<Evaluation, CliError> {
    let mut evaluation = Evaluation { predictions: Vec::new(), targets: Vec::new() };
    let mut progress = Progress::start("evaluating", count);
    let mut from = 0;
    while from < count {
        let to = count.min(from + AT_ONCE);
        let samples: Vec<_> = (from..to).map(|index| stream.sample(index)).collect();
        for prediction in engine.predict(state, &samples)? {
            evaluation.predictions.push(engine.encoding().decode(prediction));
        }
        evaluation.targets.extend(samples.iter().map(|sample| sample.target));
        from = to;
        progress.set(from);
    }
    Ok(evaluation)
}

/// The same recipe, its solver included, trained and evaluated with the frozen stack bypassed.
fn without_model(engine: Engine, stream: &SampleStream, count: u64) -> Result<Ablation, CliError> {
    let recipe = ablation::recipe_of(engine.recipe());
    let bypass = MeanOfEmbeddings::new(engine.into_lm());
    let engine = Engine::new(Box::new(bypass), recipe.clone());
    let state = engine.initial_state(recipe.seed)?.prepared(&recipe);
    let training = SampleStream::generated(&recipe, Domain::Train)?;
    let (mut engine, state) = LocalRun::new(engine, training, state)?.finish()?;
    let evaluation = evaluate(&mut engine, &state, stream, count)?;
    Ok(Ablation {
        metrics: evaluation::measure(&recipe, &evaluation.predictions, &evaluation.targets),
        right_numbers: right_numbers(&recipe, &evaluation, stream),
    })
}
