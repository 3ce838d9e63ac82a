//! `numalign generate-text`: continues a text with the frozen model alone, by greedy decoding.

use clap::ArgMatches;
use numalign_config::DeviceChoice;
use numalign_model::greedy;

use crate::args::text;
use crate::error::CliError;
use crate::output::outln;
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let model = text(matches, "model").unwrap_or("demo");
    let prompt = text(matches, "prompt").unwrap_or_default();
    let most = *matches.get_one::<u64>("max-tokens").unwrap_or(&16) as usize;
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let mut lm = numalign_model::load(model, device, false)?.lm;
    let ids = lm.tokenize(prompt)?;
    if ids.is_empty() {
        return Err(CliError::usage("the text has no tokens"));
    }
    if ids.len() > lm.max_positions() {
        let source = numalign_model::ModelError::TooLong { positions: ids.len(), most: lm.max_positions() };
        return Err(source.into());
    }
    let mut answers = greedy::generate(&mut *lm, &[ids], most)?;
    let answer = answers.pop().unwrap_or_default();
    let completion = lm.detokenize(&answer)?;
    if matches.get_flag("json") {
        outln!("{}", serde_json::json!({ "prompt": prompt, "completion": completion, "ids": answer }))?;
    } else {
        outln!("{completion}")?;
    }
    Ok(())
}
