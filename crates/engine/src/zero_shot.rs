//! Zero-shot answers: questions as plain text to the frozen model, whose greedy continuation is searched for a number.

use numalign_data::{Input, SampleStream};
use numalign_model::greedy;
use serde::Serialize;

use crate::engine::Engine;
use crate::error::EngineError;

/// Questions that are asked at most: every token of an answer costs a forward pass.
pub const MOST_QUESTIONS: u64 = 200;

/// Tokens of an answer: room for a number of any tokenizer.
const ANSWER_TOKENS: usize = 16;

/// How often the model writes the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ZeroShot {
    /// Questions that were asked.
    pub questions: usize,
    /// Share in which the first number of the continuation is the answer, to the last decimal of the question's numbers.
    pub right_percent: f64,
    /// Share in which the continuation holds a number at all.
    pub number_percent: f64,
}

/// Asks the first `count` questions of `stream`, without the projectors.
///
/// # Errors
/// A question that the model cannot take.
pub fn ask(engine: &mut Engine, stream: &SampleStream, count: u64) -> Result<ZeroShot, EngineError> {
    let mut prompts = Vec::new();
    let mut targets = Vec::new();
    for index in 0..count {
        let sample = stream.sample(index);
        if let Input::Text(question) = &sample.input {
            let tokenizer = engine.lm().tokenizer();
            prompts.push(match engine.recipe().add_special_tokens {
                true => tokenizer.encode_with_special_tokens(question)?,
                false => tokenizer.encode(question)?,
            });
            targets.push(sample.target);
        }
    }
    // Half of the last decimal: an answer with as many decimals as the question's numbers is right or wrong.
    let tolerance = 0.5 * 0.1f64.powi(engine.recipe().decimals as i32);
    let (mut right, mut numbers) = (0usize, 0usize);
    for (answer, target) in greedy::generate(engine.lm_mut(), &prompts, ANSWER_TOKENS)?.iter().zip(&targets) {
        if let Some(said) = first_number(&engine.lm().detokenize(answer)?) {
            numbers += 1;
            right += usize::from((said - target).abs() < tolerance);
        }
    }
    let percent = |part: usize| 100.0 * part as f64 / targets.len().max(1) as f64;
    Ok(ZeroShot { questions: targets.len(), right_percent: percent(right), number_percent: percent(numbers) })
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
