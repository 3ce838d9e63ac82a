//! `numalign probe`: where in the model the number is. A pass of `solver: exact` that reads all places at once; the
//! coordinator solves each of them, and this command shows what it found.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use numalign_checkpoint::write_atomically;
use numalign_config::{Choice, Config, MOST_TAPS, Pooling, RUNS_FOLDER, Stage, Tap, to_yaml};
use numalign_coordinator::{PROBE_REPORT, ProbeNeeds, streams_of};
use numalign_engine::{Engine, ablation};
use numalign_model::{LoadOptions, load_with};
use numalign_projector::Encoding;

use super::probe_page::Page;
use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::launcher::child::die_with_parent;
use crate::launcher::signals::{Interrupt, Signals};
use crate::launcher::{JoinToken, Launcher};
use crate::output::outln;
use crate::plot::Destination;
use crate::settings::RunSettings;
use crate::{credentials, logging, process, settings};

/// Samples of a chunk and of a micro-batch: small, since rows of all places are wide.
const BATCH: u64 = 32;
const MICRO_BATCH: u64 = 4;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    logging::start("info", false);
    die_with_parent()?;
    let plot = text(matches, "plot").map(Destination::of).transpose()?;
    let run = configuration(matches)?;
    let config = &run.config;
    process::runtime()?.block_on(async {
        let signals = Signals::listen(Interrupt::Stop)?;
        let token = JoinToken::or_random(credentials::token(matches)?)?;
        Launcher::start(&run, token, signals, None, None)?.wait().await
    })?;
    let path = Path::new(RUNS_FOLDER).join(&config.run.run_id).join(PROBE_REPORT);
    let written = std::fs::read_to_string(&path)
        .map_err(|error| CliError::new(format!("{} cannot be read: {error}", path.display())))?;
    let mut page: Page = serde_json::from_str(&written)
        .map_err(|error| CliError::new(format!("{} is no report of a probe: {error}", path.display())))?;
    if !matches.get_flag("no-ablation") {
        page.ablation_percent_of_range = ablated(&run)?;
    }
    if let Some(plot) = plot {
        plot.write(&page.picture())?;
        note!("wrote {}", plot.path().display());
    }
    if let Some(file) = text(matches, "write-config") {
        write_config(Path::new(file), config, &page)?;
    }
    match matches.get_flag("json") {
        true => outln!("{}", serde_json::json!(page)),
        false => outln!("{}", page.text().trim_end()),
    }
}

/// The pass: `solver: exact` over every place.
fn configuration(matches: &ArgMatches) -> Result<RunSettings, CliError> {
    let (file, stage) = (text(matches, "config"), text(matches, "stage-name"));
    let samples = *matches.get_one::<u64>("samples").unwrap_or(&4000);
    let mut more = vec![
        ("solver", "exact".to_owned()),
        ("train_input_projection", "false".to_owned()),
        ("train_output_projection", "true".to_owned()),
        ("train_layer_norms", "false".to_owned()),
        ("layer", "-1".to_owned()),
        ("pooling", "last".to_owned()),
        ("taps", "[]".to_owned()),
        ("num_epochs", "1".to_owned()),
        ("num_batches", samples.div_ceil(BATCH).to_string()),
        ("batch_size", BATCH.to_string()),
        ("micro_batch_size", MICRO_BATCH.to_string()),
        // A probe holds out an eighth; folds would follow from a small dataset.
        ("ridge_folds", "0".to_owned()),
    ];
    if let Some(model) = text(matches, "model") {
        more.push(("model_name", model.to_owned()));
    }
    if let Some(dataset) = text(matches, "dataset") {
        more.push(("dataset.file", dataset.to_owned()));
    }
    if !settings::is_run_named(matches, file)? {
        more.push(("run_id", "probe".to_owned()));
    }
    let mut run = settings::load_for_launch(matches, file, stage, &more)?;
    let config = &mut run.config;
    let architecture = numalign_model::load::configuration(&config.recipe.model_name)?;
    let blocks = architecture.layers();
    let layers = layers(text(matches, "layers").unwrap_or("all"), blocks)?;
    let poolings = poolings(text(matches, "pooling"), config.recipe.stage)?;
    let mut places = Vec::new();
    for layer in &layers {
        places.extend(poolings.iter().map(|pooling| Tap { layer: *layer, pooling: *pooling }));
    }
    if places.len() > MOST_TAPS {
        let message = format!("{} layers and poolings are more than {MOST_TAPS}", places.len());
        return Err(
            CliError::usage(message).with_hint("look at some with --layers, such as --layers 0-20, or one --pooling")
        );
    }
    let most = *matches.get_one::<u64>("taps").unwrap_or(&6) as usize;
    config.recipe = config.recipe.reading(&places);
    config.recipe.probe = Some(most.min(places.len()));
    config.check().map_err(|errors| CliError::usage(format!("the configuration is not valid\n{errors}")))?;
    let activations = architecture.footprint().activation_bytes(Engine::most_positions(&config.recipe));
    let needs = ProbeNeeds::of(&config.recipe, architecture.hidden_size(), activations);
    let samples = config.recipe.total_steps() * BATCH;
    note!("probing {} places of {blocks} blocks on {samples} samples: {needs}", places.len());
    let folder = Path::new(RUNS_FOLDER);
    needs.check(if folder.is_dir() { folder } else { Path::new(".") }).map_err(CliError::new)?;
    Ok(run)
}

/// `all`, or layers and ranges of layers, each once; `None` is the state after the final norm.
fn layers(asked: &str, blocks: usize) -> Result<Vec<Option<usize>>, CliError> {
    let refusal = |part: &str| {
        CliError::usage(format!("--layers {part} names no layers of a model with {blocks} blocks"))
            .with_hint("write all, or layers and ranges such as 0-8,-1")
    };
    if asked == "all" {
        return Ok((0..=blocks).map(Some).chain([None]).collect());
    }
    let mut found = Vec::new();
    for part in asked.split(',').map(str::trim) {
        let range = match part.split_once('-') {
            Some(("", "1")) => {
                found.push(None);
                continue;
            }
            Some((from, to)) => from.trim().parse().ok().zip(to.trim().parse().ok()),
            None => part.parse().ok().map(|layer| (layer, layer)),
        };
        let (from, to): (usize, usize) =
            range.filter(|(from, to)| from <= to && *to <= blocks).ok_or_else(|| refusal(part))?;
        found.extend((from..=to).map(Some));
    }
    let mut distinct = Vec::new();
    for layer in found {
        if !distinct.contains(&layer) {
            distinct.push(layer);
        }
    }
    Ok(distinct)
}

/// As asked for, or all that the stage has.
fn poolings(asked: Option<&str>, stage: Stage) -> Result<Vec<Pooling>, CliError> {
    let Some(asked) = asked else {
        return Ok(match stage {
            Stage::Text => vec![Pooling::Last, Pooling::Mean],
            Stage::Nn | Stage::Mixed => vec![Pooling::Last, Pooling::Mean, Pooling::Numbers],
        });
    };
    let mut found = Vec::new();
    for name in asked.split(',').map(str::trim) {
        let pooling = Pooling::ALL.iter().find(|pooling| pooling.name() == name);
        let pooling = pooling.ok_or_else(|| {
            CliError::usage(format!("--pooling {name} is not known")).with_hint("poolings are last, mean and numbers")
        })?;
        if !found.contains(pooling) {
            found.push(*pooling);
        }
    }
    Ok(found)
}

/// The error, in % of the range, of the exact solution without the language model on the same samples.
fn ablated(run: &RunSettings) -> Result<Option<f64>, CliError> {
    let recipe = &run.config.recipe;
    let options = LoadOptions {
        dtype: recipe.dtype,
        arithmetic: recipe.arithmetic,
        exact_f32: run.config.run.exact_f32,
        ..LoadOptions::new(run.config.run.device, false)
    };
    let lm = load_with(&recipe.model_name, options)?.lm;
    let streams = streams_of(&run.config, run.files.clone())?;
    let error = ablation::solved_error(lm, recipe, streams.train)?;
    Ok(error.map(|error| 100.0 * error * Encoding::of(recipe).scale / recipe.range()))
}

/// The pass again, reading the chosen places: for `launch`.
fn write_config(file: &Path, config: &Config, page: &Page) -> Result<(), CliError> {
    let all = config.recipe.places();
    let chosen: Vec<Tap> = all.into_iter().filter(|tap| page.together.taps.contains(&tap.to_string())).collect();
    let mut config = config.clone();
    config.recipe = config.recipe.reading(&chosen);
    config.recipe.probe = None;
    config.run.resume = None;
    let stem = file.file_stem().map_or_else(|| "probed".to_owned(), |stem| stem.to_string_lossy().into_owned());
    config.run.model_path_save = PathBuf::from(RUNS_FOLDER).join(format!("{stem}.safetensors"));
    config.run.run_id = stem;
    config.check().map_err(|errors| CliError::usage(format!("no configuration can be named so\n{errors}")))?;
    let head = format!(
        "# Places chosen by `numalign probe` ({} samples, held-out error {:.4} % of the range).\n\
         # Train on more samples with a larger num_batches.\n",
        page.samples, page.together.held_out_percent_of_range
    );
    write_atomically(file, (head + &to_yaml(&config)).as_bytes())?;
    note!("wrote {} (train with: numalign launch --config {})", file.display(), file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_ranges_and_single_ones() {
        assert_eq!(layers("all", 2).ok(), Some(vec![Some(0), Some(1), Some(2), None]));
        assert_eq!(layers("1-2, 0,-1,2", 4).ok(), Some(vec![Some(1), Some(2), Some(0), None]));
        for wrong in ["3", "2-1", "1-9", "x", "", "-2"] {
            assert!(layers(wrong, 2).is_err(), "{wrong}");
        }
    }

    #[test]
    fn poolings_follow_the_stage() {
        assert_eq!(poolings(None, Stage::Text).ok(), Some(vec![Pooling::Last, Pooling::Mean]));
        assert_eq!(poolings(Some("mean, last,mean"), Stage::Nn).ok(), Some(vec![Pooling::Mean, Pooling::Last]));
        assert!(poolings(Some("middle"), Stage::Nn).is_err());
    }
}
