//! A row as a text: one column, or a template over several.
//!
//! In a template `{column}` stands for the cell's text, `$${column}&&` for its number, marked; `{{` and `}}` are braces. The
//! number is written in its shortest form, so `1.50` in CSV and `1.5` in Parquet give the same text.

use thiserror::Error;

use super::Row;
use super::cell::CellProblem;
use super::error::RowProblem;
use crate::grammar::{self, CLOSE, OPEN, OPEN_TAG};
use crate::number::DecimalMark;

/// Columns that a message lists.
const SHOWN_COLUMNS: usize = 12;

/// How the input of a sample is made of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum RowText {
    /// The cell of one column, as it is.
    Column(String),
    /// A text around cells.
    Template(Template),
}

impl RowText {
    /// Reads a setting: a template where it holds a brace, else the name of a column.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub fn parse(text: &str) -> Result<RowText, TemplateError> {
        if text.contains(['{', '}']) {
            return Template::parse(text).map(RowText::Template);
        }
        Ok(RowText::Column(text.to_string()))
    }

    /// The columns that are needed, each once.
    pub fn columns(&self) -> Vec<&str> {
        match self {
            RowText::Column(name) => vec![name],
            RowText::Template(template) => template.columns(),
        }
    }

    /// The text of a row, whose texts write decimals with `mark`.
    ///
    /// # Errors
    /// A column that the row lacks, or a cell that does not fit its place.
    pub fn of(&self, row: &Row, mark: DecimalMark) -> Result<String, RowProblem> {
        match self {
            RowText::Column(name) => {
                let cell = row.cell(name)?;
                cell.text().map(Into::into).map_err(|problem| RowProblem::Cell { column: name.clone(), problem })
            }
            RowText::Template(template) => template.fill(row, mark),
        }
    }
}

/// A text with places for cells.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Plain(String),
    /// The cell's text.
    Cell(String),
    /// The cell's number between the marks, which stand in the pieces around it.
    Number(String),
}

/// Why a text is no template. `offset` is the byte at which the brace stands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum TemplateError {
    #[error("the `{{` at byte {offset} has no closing `}}`; write `{{{{` for a brace")]
    Unclosed { offset: usize },
    #[error("the `}}` at byte {offset} closes nothing; write `}}}}` for a brace")]
    Unopened { offset: usize },
    #[error("the `{{}}` at byte {offset} names no column")]
    NoName { offset: usize },
    #[error("`$${{{name}}}` is not closed: a marked number is written `$${{{name}}}&&`")]
    Unmarked { name: String },
    #[error("it names no column")]
    NoColumn,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A brace without its partner, an empty name, a mark that is not closed, or no column at all.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut position = 0;
        while let Some(found) = text[position..].find(['{', '}']) {
            let offset = position + found;
            plain.push_str(&text[position..offset]);
            let rest = &text[offset..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                plain.push_str(&rest[..1]);
                position = offset + 2;
                continue;
            }
            if rest.starts_with('}') {
                return Err(TemplateError::Unopened { offset });
            }
            let length = rest.find('}').ok_or(TemplateError::Unclosed { offset })?;
            let name = rest[1..length].trim().to_string();
            if name.contains('{') {
                return Err(TemplateError::Unclosed { offset });
            }
            if name.is_empty() {
                return Err(TemplateError::NoName { offset });
            }
            position = offset + length + 1;
            let is_marked = plain.ends_with(OPEN);
            if is_marked && !text[position..].starts_with(CLOSE) {
                return Err(TemplateError::Unmarked { name });
            }
            if !plain.is_empty() {
                pieces.push(Piece::Plain(std::mem::take(&mut plain)));
            }
            pieces.push(if is_marked { Piece::Number(name) } else { Piece::Cell(name) });
        }
        plain.push_str(&text[position..]);
        if !plain.is_empty() {
            pieces.push(Piece::Plain(plain));
        }
        if !pieces.iter().any(|piece| !matches!(piece, Piece::Plain(_))) {
            return Err(TemplateError::NoColumn);
        }
        Ok(Template { pieces })
    }

    /// The columns that are needed, each once, in the order of their first use.
    pub fn columns(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Cell(name) | Piece::Number(name) if !names.contains(&name.as_str()) => names.push(name),
                _ => {}
            }
        }
        names
    }

    /// The columns of the marked numbers, in their order.
    pub fn marked(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Number(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The text of a row, whose texts write decimals with `mark`. Its marked numbers are in canonical form.
    ///
    /// # Errors
    /// A column that the row lacks, a cell that is empty or no number where one is needed, or a text with marks of its own.
    pub fn fill(&self, row: &Row, mark: DecimalMark) -> Result<String, RowProblem> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Plain(plain) => text.push_str(plain),
                Piece::Cell(name) => {
                    let cell = row.cell(name)?.text().and_then(|cell| {
                        match [OPEN, OPEN_TAG].into_iter().find(|mark| cell.contains(mark)) {
                            Some(mark) => Err(CellProblem::Marked { mark }),
                            None => Ok(cell),
                        }
                    });
                    let problem = |problem| RowProblem::Cell { column: name.clone(), problem };
                    text.push_str(&cell.map_err(problem)?);
                }
                Piece::Number(name) => {
                    let problem = |problem| RowProblem::Cell { column: name.clone(), problem };
                    text.push_str(&grammar::shortest_value(row.cell(name)?.number(mark).map_err(problem)?));
                }
            }
        }
        Ok(text)
    }
}

impl Row {
    /// The cell of a column that has to be there.
    ///
    /// # Errors
    /// There is none of that name; the message lists those that there are.
    pub fn cell(&self, column: &str) -> Result<&super::Cell, RowProblem> {
        self.get(column).ok_or_else(|| {
            let mut names: Vec<&str> = self.cells().map(|(name, _)| name).take(SHOWN_COLUMNS + 1).collect();
            if names.len() > SHOWN_COLUMNS {
                names[SHOWN_COLUMNS] = "…";
            }
            let found = if names.is_empty() { "none".to_string() } else { names.join(", ") };
            RowProblem::NoColumn { column: column.to_string(), found }
        })
    }
}
