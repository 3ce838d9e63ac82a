//! What looks wrong with an input although it can be read: a mark without its other half, a question without a number, a
//! number that was not trained. Such an input is answered with a warning or not at all, never silently.

use std::fmt;

use numalign_config::{Recipe, Span, Stage};

use crate::dataset::{Dataset, Side};
use crate::grammar::{self, CLOSE, OPEN, Segment};
use crate::number::{DecimalMark, parse_number};
use crate::sample::Input;

/// One thing that looks wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Doubt {
    /// A `&&` closes nothing; `offset` is its byte.
    NothingOpened {
        /// Of the `&&`, in bytes.
        offset: usize,
    },
    /// A `$$` is not closed. Stage `text` only: `mixed` refuses such a text.
    NotClosed {
        /// Of the `$$`, in bytes.
        offset: usize,
    },
    /// Stage `mixed`: no number is marked.
    NoNumber,
    /// A number lies outside the trained range.
    Outside {
        /// The number.
        value: f64,
        /// Lower end of the range.
        min: f64,
        /// Upper end of the range.
        max: f64,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::NothingOpened { offset } => write!(f, "the `&&` at byte {offset} closes nothing"),
            Doubt::NotClosed { offset } => write!(f, "the `$$` at byte {offset} has no closing `&&`"),
            Doubt::NoNumber => f.write_str("no number in it is marked as in $$12.5&& or <num>12.5</num>"),
            Doubt::Outside { value, min, max } => {
                write!(f, "{value} lies outside the trained range from {min} to {max}")
            }
        }
    }
}

/// Everything that looks wrong with an input of `recipe`'s stage, in the form in which it is stored.
pub fn doubts(input: &Input, recipe: &Recipe) -> Vec<Doubt> {
    let text = match input {
        Input::Number(value) => return outside(*value, recipe.input_range(0)).into_iter().collect(),
        Input::Text(text) => text,
    };
    let mut found = unpaired(text);
    if recipe.stage != Stage::Mixed {
        // The other numbers of a text have no range: they are tokens.
        found.extend(lone_number(text).and_then(|value| outside(value, recipe.input_range(0))));
        return found;
    }
    let numbers = marked_numbers(text);
    if numbers.is_empty() {
        found.push(Doubt::NoNumber);
    }
    let ranged = numbers.into_iter().enumerate();
    found.extend(ranged.filter_map(|(place, value)| outside(value, recipe.input_range(place))));
    found
}

/// How many inputs of a file raise which doubt: one line for each kind, however many rows there are.
#[derive(Debug, Clone, Default)]
pub struct DoubtTally {
    marks: Count,
    without_number: Count,
    outside: Count,
    /// The number that lies furthest outside the range, and the range.
    furthest: Option<(f64, f64, f64)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    rows: u64,
    first: u64,
}

impl Count {
    fn add(&mut self, number: u64) {
        if self.rows == 0 {
            self.first = number;
        }
        self.rows += 1;
    }

    fn told(self, what: &str) -> Option<String> {
        let (has, them) = match self.rows {
            1 => ("1 row has".to_owned(), "it is"),
            rows => (format!("{rows} rows have"), "the first is"),
        };
        (self.rows > 0).then(|| format!("{has} {what}; {them} row {}", self.first))
    }
}

impl DoubtTally {
    /// Of the rows of one side of a file.
    pub fn of_rows(dataset: &Dataset, side: Side, recipe: &Recipe) -> Self {
        let mut tally = Self::default();
        for row in 0..dataset.len(side) {
            tally.add(dataset.number(side, row), &doubts(&dataset.sample(side, row, row).input, recipe));
        }
        tally
    }

    /// The same without what is said of ranges.
    pub fn of_texts(dataset: &Dataset, side: Side, recipe: &Recipe) -> Self {
        Self { outside: Count::default(), furthest: None, ..Self::of_rows(dataset, side, recipe) }
    }

    /// Takes in the doubts about row `number` of the file, counted from 1.
    pub fn add(&mut self, number: u64, doubts: &[Doubt]) {
        if doubts.iter().any(|doubt| matches!(doubt, Doubt::NothingOpened { .. } | Doubt::NotClosed { .. })) {
            self.marks.add(number);
        }
        if doubts.contains(&Doubt::NoNumber) {
            self.without_number.add(number);
        }
        let distance = |value: f64, min: f64, max: f64| (min - value).max(value - max);
        let beyond = doubts.iter().filter_map(|doubt| match doubt {
            Doubt::Outside { value, min, max } => Some((*value, *min, *max)),
            _ => None,
        });
        let mut is_outside = false;
        for (value, min, max) in beyond {
            is_outside = true;
            if self.furthest.is_none_or(|(known, low, high)| distance(value, min, max) > distance(known, low, high)) {
                self.furthest = Some((value, min, max));
            }
        }
        if is_outside {
            self.outside.add(number);
        }
    }

    /// What to say.
    pub fn lines(&self) -> Vec<String> {
        let outside = self.furthest.and_then(|(value, min, max)| {
            self.outside.told(&format!("a number outside the range from {min} to {max}, the furthest {value}"))
        });
        let marks = self.marks.told("a `$$` or `&&` without its other half");
        let without = self.without_number.told("no marked number");
        [marks, without, outside].into_iter().flatten().collect()
    }
}

fn outside(value: f64, range: Span) -> Option<Doubt> {
    let Span { min, max } = range;
    (value < min || value > max).then_some(Doubt::Outside { value, min, max })
}

/// The number of a text that is one marked number and nothing else.
fn lone_number(text: &str) -> Option<f64> {
    let content = text.strip_prefix(OPEN)?.strip_suffix(CLOSE)?;
    parse_number(content, DecimalMark::Point).ok()
}

/// The numbers of a text that follows the grammar.
fn marked_numbers(text: &str) -> Vec<f64> {
    let segments = grammar::parse(text).unwrap_or_default();
    let numbers = segments.iter().filter_map(|segment| match segment {
        Segment::Number(value) => Some(*value),
        Segment::Text(_) => None,
    });
    numbers.collect()
}

/// Marks without their other half, in order.
fn unpaired(text: &str) -> Vec<Doubt> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        let base = text.len() - rest.len();
        let (open, close) = (rest.find(OPEN), rest.find(CLOSE));
        match (open, close) {
            (None, None) => return found,
            (None, Some(close)) => {
                found.push(Doubt::NothingOpened { offset: base + close });
                rest = &rest[close + CLOSE.len()..];
            }
            (Some(open), Some(close)) if close < open => {
                found.push(Doubt::NothingOpened { offset: base + close });
                rest = &rest[close + CLOSE.len()..];
            }
            (Some(open), None) => {
                found.push(Doubt::NotClosed { offset: base + open });
                return found;
            }
            (Some(_), Some(close)) => rest = &rest[close + CLOSE.len()..],
        }
    }
}

/// What to say about a text whose `$$` a shell seems to have replaced by its process number, as it does in double quotes:
/// it has a `&&` behind a digit and no `$$`, or the digits of `shell`, the process that started this one, run into a
/// number or stand where one is expected.
pub fn shell_hint(text: &str, shell: u32) -> Option<&'static str> {
    const HINT: &str = "a shell replaces $$ in double quotes by its process number: use single quotes, or write \
                        <num>12.5</num> for $$12.5&&";
    if text.contains(OPEN) {
        return None;
    }
    let closes_a_number = text.match_indices(CLOSE).any(|(place, _)| {
        let before = text[..place].trim_end_matches(['%', ' ', '.', ',']);
        before.ends_with(|character: char| character.is_ascii_digit())
    });
    let shell = shell.to_string();
    let begins_with_process = text.match_indices(&shell).any(|(place, _)| {
        let before = text[..place].chars().next_back();
        let after = text[place + shell.len()..].chars().next();
        before.is_none_or(|c| !c.is_ascii_digit() && c != '.') && after.is_some_and(|c| c.is_ascii_digit() || c == '-')
    });
    (closes_a_number || begins_with_process).then_some(HINT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::test_recipe;

    fn of(stage: Stage, text: &str) -> Vec<Doubt> {
        doubts(&Input::Text(text.to_owned()), &test_recipe(stage))
    }

    fn beyond(value: f64) -> Doubt {
        Doubt::Outside { value, min: 0.0, max: 100.0 }
    }

    #[test]
    fn a_good_input_raises_none() {
        for text in ["$$5&&", "Is $$5&& more than $$100&&?", "a & b, $5 $$0&&"] {
            assert_eq!(of(Stage::Mixed, text), [], "{text}");
            assert_eq!(of(Stage::Text, text), [], "{text}");
        }
        assert_eq!(of(Stage::Text, "no number at all"), []);
        assert_eq!(doubts(&Input::Number(99.5), &test_recipe(Stage::Nn)), []);
    }

    #[test]
    fn everything_odd_is_named() {
        assert_eq!(of(Stage::Mixed, "Total 12.5&&"), [Doubt::NothingOpened { offset: 10 }, Doubt::NoNumber]);
        assert_eq!(of(Stage::Mixed, "no number"), [Doubt::NoNumber]);
        assert_eq!(of(Stage::Mixed, "$$5&& && $$7&&"), [Doubt::NothingOpened { offset: 6 }]);
        assert_eq!(of(Stage::Mixed, "$$-3&& and $$500&&"), [beyond(-3.0), beyond(500.0)]);
        assert_eq!(of(Stage::Text, "Total $$12.50"), [Doubt::NotClosed { offset: 6 }]);
        assert_eq!(of(Stage::Text, "$$1,234&& $$x&& $$7"), [Doubt::NotClosed { offset: 16 }]);
        assert_eq!(of(Stage::Text, "$$1,234&&"), [beyond(1234.0)]);
        assert_eq!(doubts(&Input::Number(500.0), &test_recipe(Stage::Nn)), [beyond(500.0)]);
    }

    #[test]
    fn a_file_is_summed_up_in_a_line_for_each_kind() {
        let mut tally = DoubtTally::default();
        assert!(tally.lines().is_empty());
        for (line, text) in [(1, "$$5&&"), (2, "none"), (3, "$$-3&& && $$107&&"), (4, "$$120&&"), (5, "$$9&& $$7&&")] {
            tally.add(line, &of(Stage::Mixed, text));
        }
        assert_eq!(
            tally.lines(),
            [
                "1 row has a `$$` or `&&` without its other half; it is row 3",
                "1 row has no marked number; it is row 2",
                "2 rows have a number outside the range from 0 to 100, the furthest 120; the first is row 3",
            ]
        );
    }

    #[test]
    fn an_input_that_a_shell_ate_is_recognised() {
        let eaten = [
            "121291234.50&&",
            "The invoice total is 121291234.50&& euros",
            "Rose by 1212912.5 %&&.",
            "Total 1212912.50",
        ];
        for text in eaten {
            assert!(shell_hint(text, 12129).is_some(), "{text}");
        }
        for text in ["Total $$12129.5&&", "R && D", "Total 12129", "Total 3.121291", "12.5"] {
            assert_eq!(shell_hint(text, 12129), None, "{text}");
        }
    }
}
