//! `numalign eval`: metrics of a checkpoint on samples it never trained on. `launch` prints the same table at its end.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::DeviceChoice;
use numalign_data::{Domain, SampleStream};
use numalign_worker::Engine;
use numalign_worker::evaluation::{Metrics, measure};

use crate::args::text;
use crate::failure::Failure;
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let checkpoint = Checkpoint::read(path)?;
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
    let metrics = evaluate(&mut engine, &checkpoint, &stream, count)?;
    print(&metrics, matches.get_flag("json"))
}

/// The frozen model of a checkpoint, checked against its fingerprint; for predictions, not for gradients.
pub fn engine_of(
    checkpoint: &Checkpoint,
    path: &Path,
    model: Option<&str>,
    device: DeviceChoice,
) -> Result<Engine, Failure> {
    load_engine(checkpoint, path, model, device, false)
}

/// As [`engine_of`]; with `backward` it gives the gradients that its recipe trains with, too.
pub fn load_engine(
    checkpoint: &Checkpoint,
    path: &Path,
    model: Option<&str>,
    device: DeviceChoice,
    backward: bool,
) -> Result<Engine, Failure> {
    let recipe = &checkpoint.identity.recipe;
    let name = model.unwrap_or(&recipe.model_name);
    let model = numalign_model::load(name, device, backward && recipe.train_input_projection)?;
    let found = model.lm.fingerprint().to_hex().to_string();
    if found != checkpoint.identity.base_fingerprint {
        return Err(Failure::new(format!(
            "{} was trained on another frozen model: its fingerprint is {:.16}, that of `{name}` is {found:.16}",
            path.display(),
            checkpoint.identity.base_fingerprint
        ))
        .with_hint("give the model it was trained on with --model; a projector is valid for one base only"));
    }
    Ok(Engine::new(model.lm, recipe.clone()))
}

/// Metrics over the first `count` samples of `stream`.
pub fn evaluate(
    engine: &mut Engine,
    checkpoint: &Checkpoint,
    stream: &SampleStream,
    count: u64,
) -> Result<Metrics, Failure> {
    const AT_ONCE: u64 = 1024;
    let (mut predictions, mut targets) = (Vec::new(), Vec::new());
    let mut from = 0;
    while from < count {
        let to = count.min(from + AT_ONCE);
        let samples: Vec<_> = (from..to).map(|index| stream.sample(index)).collect();
        for prediction in engine.predict(&checkpoint.state, &samples)? {
            predictions.push(engine.encoding().decode(prediction));
        }
        targets.extend(samples.iter().map(|sample| sample.target));
        from = to;
    }
    Ok(measure(engine.recipe(), &predictions, &targets))
}

/// One JSON object, or a small table beside the constant predictor.
pub fn print(metrics: &Metrics, json: bool) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string(metrics).map_err(|error| Failure::new(error.to_string()))?;
        println!("{text}");
        return Ok(());
    }
    println!("stage {} on {} held-out samples", metrics.stage, metrics.samples);
    println!("                          projectors   constant predictor");
    println!("  mean absolute error   {:>12.6} {:>20.6}", metrics.mae, metrics.baseline_mae);
    println!(
        "  in % of the range     {:>12.4} {:>20.4}",
        metrics.mae_percent_of_range, metrics.baseline_mae_percent_of_range
    );
    println!("  mean squared error    {:>12.6}", metrics.mse);
    println!(
        "  relative error in %   {:>12.4}   (divided by the target, at least 1 % of the range)",
        metrics.mean_relative_error_percent
    );
    println!("  R²                    {:>12.6}", metrics.r2);
    println!("  within 1 % / 5 %      {:>9.2} % / {:.2} %", metrics.within_1_percent, metrics.within_5_percent);
    Ok(())
}
