//! The frozen model's own words: `numalign complete`, and the question of `eval --verbal`, whether it *says* what the
//! projector reads from it.

use clap::ArgMatches;
use numalign_config::DeviceChoice;
use numalign_data::{Input, SampleStream};
use numalign_model::decode::greedy;
use numalign_worker::Engine;
use serde::Serialize;

use crate::args::text;
use crate::error::CliError;
use crate::settings;

/// Questions that `eval --verbal` asks at most: a word costs a forward pass each.
pub const MOST_QUESTIONS: u64 = 200;

/// Tokens of an answer: room for a number of any tokenizer.
const ANSWER_TOKENS: usize = 16;

/// `numalign complete`
pub fn complete(matches: &ArgMatches) -> Result<(), CliError> {
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
    let mut answers = greedy(&mut *lm, &[ids], most)?;
    let answer = answers.pop().unwrap_or_default();
    let completion = lm.detokenize(&answer)?;
    if matches.get_flag("json") {
        println!("{}", serde_json::json!({ "prompt": prompt, "completion": completion, "ids": answer }));
    } else {
        println!("{completion}");
    }
    Ok(())
}

/// How often the model says the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verbal {
    pub questions: usize,
    /// Share in which the first number that it says is the answer, to the last decimal of the question's numbers.
    pub right_percent: f64,
    /// Share in which it says a number at all.
    pub number_percent: f64,
}

/// Asks the first `count` questions of `stream` in words.
pub fn ask(engine: &mut Engine, stream: &SampleStream, count: u64) -> Result<Verbal, CliError> {
    let mut prompts = Vec::new();
    let mut targets = Vec::new();
    for index in 0..count {
        let sample = stream.sample(index);
        if let Input::Text(question) = &sample.input {
            prompts.push(engine.lm().tokenize(question)?);
            targets.push(sample.target);
        }
    }
    // Half of the last decimal: an answer with as many decimals as the question's numbers is right or wrong.
    let tolerance = 0.5 * 0.1f64.powi(engine.recipe().decimals as i32);
    let (mut right, mut numbers) = (0usize, 0usize);
    for (answer, target) in greedy(engine.lm_mut(), &prompts, ANSWER_TOKENS)?.iter().zip(&targets) {
        if let Some(said) = first_number(&engine.lm().detokenize(answer)?) {
            numbers += 1;
            right += usize::from((said - target).abs() < tolerance);
        }
    }
    let percent = |part: usize| 100.0 * part as f64 / targets.len().max(1) as f64;
    Ok(Verbal { questions: targets.len(), right_percent: percent(right), number_percent: percent(numbers) })
}

/// The first decimal number in a text.
fn first_number(text: &str) -> Option<f64> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let digits = &text[start..];
    let mut end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    if let Some(decimals) = digits[end..].strip_prefix('.') {
        let count = decimals.find(|c: char| !c.is_ascii_digit()).unwrap_or(decimals.len());
        if count > 0 {
            end += 1 + count;
        }
    }
    let magnitude: f64 = digits[..end].parse().ok()?;
    Some(if text[..start].ends_with('-') { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::first_number;

    #[test]
    fn numbers_are_found_in_words() {
        assert_eq!(first_number(" 7.81"), Some(7.81));
        assert_eq!(first_number(" It is $$-12.5&&. Then 3"), Some(-12.5));
        assert_eq!(first_number("about 12. The"), Some(12.0));
        assert_eq!(first_number("none"), None);
    }
}
