//! What a person asks a checkpoint: a number, a text, or a text with marked numbers, as the stage's input.

use numalign_config::Stage;
use thiserror::Error;

use crate::grammar::{self, CLOSE, GrammarError, OPEN};
use crate::number::{DecimalMark, NumberError, parse_canonical, parse_number};
use crate::sample::Input;

/// Why something is no input of the stage.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum QuestionError {
    #[error("it is empty")]
    Empty,
    #[error("not a number: {0}")]
    NotANumber(NumberError),
    #[error("{0}")]
    Grammar(GrammarError),
}

/// `text` as an input of `stage`. A bare number becomes a marked one where the stage reads texts: in its own digits if
/// it is in canonical form, else in the fewest.
///
/// # Errors
/// A text that the stage cannot take.
pub fn question(text: &str, stage: Stage, mark: DecimalMark) -> Result<Input, QuestionError> {
    if stage == Stage::Nn {
        return grammar::parse_value(text, mark).map(Input::Number).map_err(QuestionError::NotANumber);
    }
    if text.trim().is_empty() {
        return Err(QuestionError::Empty);
    }
    if mark == DecimalMark::Point && parse_canonical(text).is_ok() {
        return Ok(Input::Text(format!("{OPEN}{text}{CLOSE}")));
    }
    match parse_number(text, mark) {
        Ok(value) => return Ok(Input::Text(format!("{OPEN}{}{CLOSE}", grammar::shortest_value(value)))),
        // Digits and marks alone, which would be read as a text without a number. `3 apples` is a text.
        Err(error) if is_bare(text) && error != NumberError::NotDecimal => {
            return Err(QuestionError::NotANumber(error));
        }
        Err(_) => {}
    }
    let text = match stage {
        Stage::Mixed => grammar::canonical(text, mark).map_err(QuestionError::Grammar)?,
        Stage::Nn | Stage::Text => grammar::with_marks(text),
    };
    Ok(Input::Text(text.into_owned()))
}

/// Whether no letter is in it but that of an exponent.
fn is_bare(text: &str) -> bool {
    text.chars().all(|character| !character.is_alphabetic() || matches!(character, 'e' | 'E'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str, stage: Stage) -> Result<Input, String> {
        question(text, stage, DecimalMark::Point).map_err(|error| error.to_string())
    }

    fn read_as(text: &str) -> Result<Input, String> {
        Ok(Input::Text(text.to_owned()))
    }

    #[test]
    fn each_stage_gets_its_input() {
        for text in ["1,234.5", "$$1234.5&&", "<num>1234.5</num>", " $ 1234.5", "$$1234.5&& kg"] {
            assert_eq!(ask(text, Stage::Nn), Ok(Input::Number(1234.5)), "{text}");
        }
        for stage in [Stage::Text, Stage::Mixed] {
            assert_eq!(ask("12.50", stage), read_as("$$12.50&&"));
            assert_eq!(ask("1,234.50", stage), read_as("$$1234.5&&"));
            assert_eq!(ask("12.5 %", stage), read_as("$$12.5&&"));
            assert_eq!(ask("a <num>12.50</num> b", stage), read_as("a $$12.50&& b"));
        }
        assert_eq!(ask("a $$1,000&&", Stage::Mixed), read_as("a $$1000&&"));
        assert_eq!(ask("a $$1,000&&", Stage::Text), read_as("a $$1,000&&"));
        assert_eq!(question("1.234,5", Stage::Nn, DecimalMark::Comma), Ok(Input::Number(1234.5)));
        assert_eq!(question("1.234,5", Stage::Mixed, DecimalMark::Comma), Ok(Input::Text("$$1234.5&&".to_owned())));
    }

    #[test]
    fn what_is_none_is_refused() {
        for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
            assert!(ask("", stage).is_err());
            assert!(ask("12,5", stage).is_err_and(|error| error.contains("dataset.decimal_comma")));
            assert!(ask("1e999", stage).is_err_and(|error| error.contains("not finite")));
        }
        for text in ["Total $$12.5", "3 apples", "3 x 4 boards", "(about 5)"] {
            assert_eq!(ask(text, Stage::Text), read_as(text), "{text}");
        }
        assert!(ask("Total $$12.5", Stage::Mixed).is_err_and(|error| error.contains("no closing")));
        assert_eq!(ask("five", Stage::Nn), Err("not a number: not a decimal number".to_owned()));
    }
}
