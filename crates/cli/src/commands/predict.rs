//! `numalign predict`: numbers, texts, or texts with marked numbers, each answered with a number.

use std::os::unix::process::parent_id;
use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{DeviceChoice, Recipe, Stage, TableFormat};
use numalign_data::doubts::{Doubt, doubts, shell_hint};
use numalign_data::question::question;
use numalign_data::shown::shortest;
use numalign_data::{DecimalMark, Input, Sample};
use numalign_engine::Purpose;

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::console::note;
use crate::error::CliError;
use crate::evaluation::take_best;
use crate::output::outln;
use crate::prediction::{Files, RowFormat, predict_rows};
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let mut checkpoint = Checkpoint::read(path)?;
    if matches.get_flag("best") {
        take_best(&mut checkpoint, path)?;
    }
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let load = || engine_of(&checkpoint, path, text(matches, "model"), device, Purpose::Predict);
    if let Some(files) = files(matches)? {
        return predict_rows(&mut load()?, &checkpoint.state, &files);
    }
    let recipe = &checkpoint.identity.recipe;
    let inputs: Vec<&String> = matches.get_many::<String>("input").into_iter().flatten().collect();
    let mut samples = Vec::with_capacity(inputs.len());
    for (index, given) in inputs.iter().enumerate() {
        samples.push(Sample { index: index as u64, input: input_of(recipe, given)?, target: 0.0 });
    }
    let mut engine = load()?;
    let encoded = engine.predict(&checkpoint.state, &samples)?;
    let predictions: Vec<f64> = encoded.iter().map(|value| engine.encoding().decode(*value)).collect();
    if matches.get_flag("json") {
        let list: Vec<_> = inputs
            .iter()
            .zip(&predictions)
            .map(|(input, prediction)| serde_json::json!({ "input": input, "prediction": prediction }))
            .collect();
        outln!("{}", serde_json::json!({ "stage": recipe.stage, "predictions": list }))?;
        return Ok(());
    }
    for prediction in predictions {
        outln!("{}", shortest(prediction))?;
    }
    Ok(())
}

/// The rows to answer, where `--file` names them or the only input is `-`.
fn files(matches: &ArgMatches) -> Result<Option<Files<'_>>, CliError> {
    let inputs: Vec<&String> = matches.get_many::<String>("input").into_iter().flatten().collect();
    let is_stdin = inputs.len() == 1 && inputs[0] == "-";
    let Some(file) = text(matches, "file").or(is_stdin.then_some("-")) else {
        if text(matches, "out").is_some() || text(matches, "format").is_some() {
            return Err(CliError::usage("--out and --format are for --file").with_hint("name the rows with --file"));
        }
        return Ok(None);
    };
    let format = text(matches, "format").map(|name| match name {
        "csv" => RowFormat::Table(TableFormat::Csv),
        "parquet" => RowFormat::Table(TableFormat::Parquet),
        "lines" => RowFormat::Lines,
        _ => RowFormat::Table(TableFormat::Jsonl),
    });
    Ok(Some(Files { input: Path::new(file), format, output: text(matches, "out").map(Path::new) }))
}

/// The input that was given on the command line, with a warning where it can be answered but looks wrong.
fn input_of(recipe: &Recipe, given: &str) -> Result<Input, CliError> {
    let hint = shell_hint(given, parent_id());
    let mark = DecimalMark::of(recipe.dataset_decimal_comma);
    let input = question(given, recipe.stage, mark).map_err(|error| {
        CliError::usage(format!("`{given}`: {error}")).with_hint(hint.unwrap_or(match recipe.stage {
            Stage::Nn => "this checkpoint is of stage nn, which reads numbers",
            Stage::Text => "this checkpoint is of stage text, which reads a number or a text",
            Stage::Mixed => "a marked number looks like $$12.5&& or <num>12.5</num>",
        }))
    })?;
    for doubt in doubts(&input, recipe) {
        if doubt == Doubt::NoNumber {
            return Err(CliError::usage(format!("`{given}`: {doubt}")).with_hint(
                hint.unwrap_or("this checkpoint is of stage mixed, which answers questions about marked numbers"),
            ));
        }
        note!("warning: `{given}`: {doubt}");
    }
    if let Some(hint) = hint {
        note!("hint: {hint}");
    }
    Ok(input)
}
