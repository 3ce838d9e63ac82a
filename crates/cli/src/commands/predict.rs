//! `numalign predict`: numbers, texts, or texts with marked numbers, each answered with a number.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{DeviceChoice, Stage};
use numalign_data::{Input, Sample, grammar};
use numalign_engine::Purpose;

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::error::CliError;
use crate::evaluation::take_best;
use crate::output::outln;
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let mut checkpoint = Checkpoint::read(path)?;
    if matches.get_flag("best") {
        take_best(&mut checkpoint, path)?;
    }
    let stage = checkpoint.identity.recipe.stage;
    let inputs: Vec<&String> = matches.get_many::<String>("input").into_iter().flatten().collect();
    let mut samples = Vec::with_capacity(inputs.len());
    for (index, given) in inputs.iter().enumerate() {
        samples.push(Sample { index: index as u64, input: input_of(stage, given)?, target: 0.0 });
    }
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let mut engine = engine_of(&checkpoint, path, text(matches, "model"), device, Purpose::Predict)?;
    let encoded = engine.predict(&checkpoint.state, &samples)?;
    let predictions: Vec<f64> = encoded.iter().map(|value| engine.encoding().decode(*value)).collect();
    if matches.get_flag("json") {
        let list: Vec<_> = inputs
            .iter()
            .zip(&predictions)
            .map(|(input, prediction)| serde_json::json!({ "input": input, "prediction": prediction }))
            .collect();
        outln!("{}", serde_json::json!({ "stage": stage, "predictions": list }))?;
        return Ok(());
    }
    for prediction in predictions {
        outln!("{prediction}")?;
    }
    Ok(())
}

fn input_of(stage: Stage, given: &str) -> Result<Input, CliError> {
    let bare = grammar::parse_value(given);
    match stage {
        Stage::Nn => bare.map(Input::Number).map_err(|error| {
            CliError::usage(format!("`{given}` is not a number: {error}"))
                .with_hint("this checkpoint is of stage nn, which reads numbers")
        }),
        Stage::Text | Stage::Mixed => {
            if given.is_empty() {
                return Err(CliError::usage("an input is empty"));
            }
            // A bare number looks as it did in training.
            let marked = match grammar::parse_number(given) {
                Ok(_) => format!("{}{given}{}", grammar::OPEN, grammar::CLOSE),
                Err(_) => given.to_owned(),
            };
            if stage == Stage::Mixed {
                grammar::parse(&marked).map_err(|error| CliError::usage(format!("`{given}`: {error}")))?;
            }
            Ok(Input::Text(marked))
        }
    }
}
