//! A row as the input of a stage.

use numalign_config::Stage;

use super::Row;
use super::error::RowProblem;
use super::template::RowText;
use crate::grammar;
use crate::number::DecimalMark;
use crate::sample::Input;

/// The input that `text` makes of a row, whose texts write decimals with `mark`, in the form in which samples are stored.
///
/// # Errors
/// A column that the row lacks, a cell that does not fit its place, or a text that the stage cannot take.
pub fn input_of(row: &Row, text: &RowText, stage: Stage, mark: DecimalMark) -> Result<Input, RowProblem> {
    if let (Stage::Nn, RowText::Column(name)) = (stage, text) {
        let problem = |problem| RowProblem::Cell { column: name.clone(), problem };
        return row.cell(name)?.number(mark).map(Input::Number).map_err(problem);
    }
    let filled = text.of(row, mark)?;
    if filled.is_empty() {
        return Err(RowProblem::EmptyInput);
    }
    // A template's numbers are canonical already.
    let mark = if matches!(text, RowText::Template(_)) { DecimalMark::Point } else { mark };
    match stage {
        Stage::Nn => grammar::parse_value(&filled, mark)
            .map(Input::Number)
            .map_err(|problem| RowProblem::NotANumber { text: filled, problem }),
        Stage::Text => Ok(Input::Text(grammar::with_marks(&filled).into_owned())),
        Stage::Mixed => grammar::canonical(&filled, mark)
            .map(|canonical| Input::Text(canonical.into_owned()))
            .map_err(RowProblem::Grammar),
    }
}

#[cfg(test)]
mod tests {
    use super::super::json_row;
    use super::*;

    fn ask(object: &str, text: &str, stage: Stage, mark: DecimalMark) -> Result<Input, String> {
        let row = json_row(1, object.as_bytes()).map_err(|problem| problem.to_string())?;
        let text = RowText::parse(text).map_err(|error| error.to_string())?;
        input_of(&row, &text, stage, mark).map_err(|problem| problem.to_string())
    }

    fn text(text: &str) -> Result<Input, String> {
        Ok(Input::Text(text.to_owned()))
    }

    #[test]
    fn each_stage_reads_its_column() {
        let row = r#"{"n": "1,234.5 €", "t": "a <num>1,000</num>", "empty": ""}"#;
        assert_eq!(ask(row, "n", Stage::Nn, DecimalMark::Point), Ok(Input::Number(1234.5)));
        assert_eq!(ask(row, "t", Stage::Text, DecimalMark::Point), text("a $$1,000&&"));
        assert_eq!(ask(row, "t", Stage::Mixed, DecimalMark::Point), text("a $$1000&&"));
        assert!(ask(row, "empty", Stage::Text, DecimalMark::Point).is_err_and(|said| said.contains("empty")));
        assert!(ask(row, "t", Stage::Nn, DecimalMark::Point).is_err_and(|said| said.contains("\"t\"")));
        assert!(ask(row, "x", Stage::Text, DecimalMark::Point).is_err_and(|said| said.contains("missing column")));
    }

    #[test]
    fn a_template_reads_numbers_by_the_files_own_mark() {
        let (row, template) = (r#"{"age": "59,5", "sex": "f"}"#, "$${age}&& {sex}");
        assert_eq!(ask(row, template, Stage::Mixed, DecimalMark::Comma), text("$$59.5&& f"));
        assert!(ask(row, template, Stage::Mixed, DecimalMark::Point).is_err_and(|said| said.contains("decimal_comma")));
    }
}
