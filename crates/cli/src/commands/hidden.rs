//! `numalign hidden`: token ids and the hidden state at the read position, for comparison with other implementations.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{DeviceChoice, Stage};
use numalign_data::{DecimalMark, Input, Sample, grammar};
use numalign_engine::{Engine, Purpose};
use numalign_model::{LmInput, Piece};

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::error::CliError;
use crate::output::outln;
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let value = matches.get_one::<f64>("value").copied();
    let given = [
        text(matches, "text").is_some(),
        text(matches, "ids").is_some(),
        value.is_some(),
        text(matches, "mixed").is_some(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err(CliError::usage("give exactly one of --text, --ids, --value and --mixed"));
    }
    let projected = match (value, text(matches, "mixed")) {
        (Some(value), _) => Some((Stage::Nn, Input::Number(value))),
        (None, Some(text)) => {
            let canonical = grammar::canonical(text, DecimalMark::Point);
            let canonical = canonical.map_err(|error| {
                CliError::new(format!("`{text}`: {error}")).with_hint("a marked number looks like $$12.5&&")
            })?;
            Some((Stage::Mixed, Input::Text(canonical.into_owned())))
        }
        (None, None) => None,
    };
    let (ids, hidden) = match projected {
        Some((stage, input)) => of_projected(matches, device, stage, input)?,
        None => of_tokens(matches, device)?,
    };
    if matches.get_flag("json") {
        outln!("{}", serde_json::json!({ "ids": ids, "hidden": hidden }))?;
        return Ok(());
    }
    outln!("ids {ids:?}")?;
    for value in hidden {
        outln!("{value}")?;
    }
    Ok(())
}

fn of_tokens(matches: &ArgMatches, device: DeviceChoice) -> Result<(Vec<u32>, Vec<f32>), CliError> {
    let Some(name) = text(matches, "model") else {
        return Err(CliError::usage("--model is missing").with_hint("for example --model demo"));
    };
    let mut lm = numalign_model::load(name, device, false)?.lm;
    let ids = match text(matches, "ids") {
        Some(list) => parse_ids(list)?,
        None => {
            let tokenizer = lm.tokenizer();
            let text = grammar::with_marks(text(matches, "text").unwrap_or_default());
            match matches.get_flag("add-special-tokens") {
                true => tokenizer.encode_with_special_tokens(&text)?,
                false => tokenizer.encode(&text)?,
            }
        }
    };
    if ids.is_empty() {
        return Err(CliError::usage("the text has no tokens"));
    }
    let input =
        LmInput { sequences: vec![vec![Piece::Tokens(ids.clone())]], embeddings: Vec::new(), ..LmInput::default() };
    let hidden = lm.forward(&input, false)?;
    Ok((ids, hidden))
}

fn parse_ids(list: &str) -> Result<Vec<u32>, CliError> {
    let mut ids = Vec::new();
    for part in list.split(',') {
        ids.push(part.trim().parse().map_err(|_| CliError::usage(format!("`{part}` is not a token id")))?);
    }
    Ok(ids)
}

fn of_projected(
    matches: &ArgMatches,
    device: DeviceChoice,
    stage: Stage,
    input: Input,
) -> Result<(Vec<u32>, Vec<f32>), CliError> {
    let Some(path) = text(matches, "checkpoint").map(Path::new) else {
        return Err(CliError::usage("--value and --mixed need --checkpoint").with_hint("the projectors come from it"));
    };
    let checkpoint = Checkpoint::read(path)?;
    let engine = engine_of(&checkpoint, path, text(matches, "model"), device, Purpose::Predict)?;
    // The question decides how its text is read, whatever stage the projectors were trained in.
    let mut recipe = engine.recipe().clone();
    recipe.stage = stage;
    let mut engine = Engine::new(engine.into_lm(), recipe);
    let sample = Sample { index: 0, input, target: 0.0 };
    let ids = engine.token_ids(&sample)?;
    let hidden = engine.hidden(&checkpoint.state, &[sample])?;
    Ok((ids, hidden))
}
