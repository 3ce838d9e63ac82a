//! Marked numbers: `$$12.34&&` inside a text.
//!
//! [`canonical`] turns a text as a person wrote it into the form that is stored, digested and sent; [`parse`] splits a
//! canonical text of stage `mixed` into plain pieces and numbers; [`marked`] writes a number.
//!
//! A text is read from left to right. `$$` opens a marked number and the next `&&` closes it; what lies between
//! must be a decimal number: an optional sign, digits, optionally a point and digits, optionally an exponent
//! (`e` or `E`, optional sign, digits), with no spaces, and finite as an `f64`. A single `$`, a single `&`, and an
//! `&&` with no `$$` before it are plain text.
//!
//! A person may write `<num>12.34</num>` as well, which no shell touches, and the number in any form of
//! [`crate::number`].

use std::borrow::Cow;

use thiserror::Error;

use crate::number::{DecimalMark, NumberError, NumberRule, parse_canonical, parse_number};
use crate::text::excerpt;

/// Opens a marked number.
pub const OPEN: &str = "$$";
/// Closes a marked number.
pub const CLOSE: &str = "&&";
/// The second spelling of [`OPEN`].
pub const OPEN_TAG: &str = "<num>";
/// The second spelling of [`CLOSE`].
pub const CLOSE_TAG: &str = "</num>";

/// An `f64` has no more decimals than this, so writing more would add zeros only.
const MOST_DECIMALS: u32 = 1074;
/// Characters of a refused piece that an error message shows.
const SHOWN_CHARS: usize = 40;

/// One piece of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Segment<'a> {
    /// Plain text; never empty.
    Text(&'a str),
    /// A marked number.
    Number(f64),
}

/// Why a text does not follow the grammar. `offset` is the byte at which the opening `$$` stands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum GrammarError {
    #[error("the `$$` at byte {offset} does not open a number: {piece:?} is not a decimal number")]
    NotANumber { offset: usize, piece: String },
    #[error("the number at byte {offset} is too large: {piece:?} is not finite as a 64-bit float")]
    NotFinite { offset: usize, piece: String },
    #[error("the number at byte {offset}, {piece:?}, is refused: {rule}")]
    Refused { offset: usize, piece: String, rule: NumberRule },
    #[error("the `$$` at byte {offset} has no closing `&&`: {piece:?}")]
    Unclosed { offset: usize, piece: String },
}

/// Splits a canonical `text` into plain pieces and marked numbers, in time linear in its length.
///
/// # Errors
/// The first `$$` that is not closed, or whose content is not a finite decimal number.
pub fn parse(text: &str) -> Result<Vec<Segment<'_>>, GrammarError> {
    split(text, parse_canonical)
}

/// As [`parse`], with numbers read by `number`.
fn split(
    text: &str,
    mut number: impl FnMut(&str) -> Result<f64, NumberError>,
) -> Result<Vec<Segment<'_>>, GrammarError> {
    let mut segments = Vec::new();
    let mut position = 0;
    while let Some(plain_len) = text[position..].find(OPEN) {
        let offset = position + plain_len;
        if plain_len > 0 {
            segments.push(Segment::Text(&text[position..offset]));
        }
        let after_open = &text[offset + OPEN.len()..];
        let Some(content_len) = after_open.find(CLOSE) else {
            return Err(GrammarError::Unclosed { offset, piece: excerpt(&text[offset..], SHOWN_CHARS) });
        };
        let content = &after_open[..content_len];
        let value = number(content).map_err(|error| {
            let piece = excerpt(content, SHOWN_CHARS);
            match error {
                NumberError::NotDecimal => GrammarError::NotANumber { offset, piece },
                NumberError::NotFinite => GrammarError::NotFinite { offset, piece },
                NumberError::Refused(rule) => GrammarError::Refused { offset, piece, rule },
            }
        })?;
        segments.push(Segment::Number(value));
        position = offset + OPEN.len() + content_len + CLOSE.len();
    }
    if position < text.len() {
        segments.push(Segment::Text(&text[position..]));
    }
    Ok(segments)
}

/// `text` with `$$` and `&&` in place of `<num>` and `</num>`: how a text of any stage is stored.
pub fn with_marks(text: &str) -> Cow<'_, str> {
    if !text.contains(OPEN_TAG) && !text.contains(CLOSE_TAG) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(OPEN_TAG, OPEN).replace(CLOSE_TAG, CLOSE))
}

/// A text of stage `mixed` in the form that [`parse`] reads: [`with_marks`], and each marked number that is written in
/// another form ([`crate::number`]) in its fewest digits. A canonical text stays as it is. Offsets in errors count in
/// the text with `$$` and `&&`.
///
/// # Errors
/// The first `$$` that is not closed, or whose content is not a number.
pub fn canonical(text: &str, mark: DecimalMark) -> Result<Cow<'_, str>, GrammarError> {
    let text = with_marks(text);
    let mut is_canonical = true;
    let segments = split(&text, |content| {
        is_canonical = is_canonical && mark == DecimalMark::Point && parse_canonical(content).is_ok();
        parse_number(content, mark)
    })?;
    if is_canonical {
        return Ok(text);
    }
    let mut canonical = String::with_capacity(text.len());
    for segment in segments {
        match segment {
            Segment::Text(plain) => canonical.push_str(plain),
            Segment::Number(value) => canonical.push_str(&format!("{OPEN}{}{CLOSE}", shortest_value(value))),
        }
    }
    Ok(Cow::Owned(canonical))
}

/// Reads a string that holds nothing but a number: bare (`12.34`), or marked (`$$12.34&&`, `<num>12.34</num>`) with or
/// without a unit behind the mark.
///
/// # Errors
/// As [`parse_number`].
pub fn parse_value(text: &str, mark: DecimalMark) -> Result<f64, NumberError> {
    let text = with_marks(text);
    let Some(after_open) = text.trim_start().strip_prefix(OPEN) else {
        return parse_number(&text, mark);
    };
    let Some((content, unit)) = after_open.split_once(CLOSE) else {
        return Err(NumberError::NotDecimal);
    };
    let is_unit = !unit.contains(|c: char| c.is_ascii_digit() || c == '$' || c == '&');
    if is_unit { parse_number(content, mark) } else { Err(NumberError::NotDecimal) }
}

/// `value` with `decimals` decimals, trailing zeros (and a trailing point) dropped; never `-0`.
///
/// Rounds to the nearest decimal, exact halves to even. `value` must be finite for the result to be a number.
pub fn format_value(value: f64, decimals: u32) -> String {
    let precision = decimals.min(MOST_DECIMALS) as usize;
    let mut text = format!("{value:.precision$}");
    if text.contains('.') {
        let kept = text.trim_end_matches('0').trim_end_matches('.').len();
        text.truncate(kept);
    }
    if text == "-0" {
        text.remove(0);
    }
    text
}

/// `value` in the fewest digits that read back to the same bits, without an exponent.
pub fn shortest_value(value: f64) -> String {
    value.to_string()
}

/// A marked number: [`format_value`] between `$$` and `&&`.
pub fn marked(value: f64, decimals: u32) -> String {
    format!("{OPEN}{}{CLOSE}", format_value(value, decimals))
}

#[cfg(test)]
mod tests {
    use super::Segment::{Number, Text};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splits_text_and_numbers() {
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse("plain"), Ok(vec![Text("plain")]));
        assert_eq!(parse("$$5&&"), Ok(vec![Number(5.0)]));
        assert_eq!(
            parse("Given $$-1.5&& and $$2e-3&&: which?"),
            Ok(vec![Text("Given "), Number(-1.5), Text(" and "), Number(0.002), Text(": which?")])
        );
        assert_eq!(parse("$$1&&$$+2&&é"), Ok(vec![Number(1.0), Number(2.0), Text("é")]));
    }

    #[test]
    fn lone_marks_are_plain_text() {
        for text in ["&&", "$", "a $5 & b && c", "$ $", "&& $"] {
            assert_eq!(parse(text), Ok(vec![Text(text)]));
        }
        assert_eq!(parse("$$1&&&"), Ok(vec![Number(1.0), Text("&")]));
    }

    #[test]
    fn refuses_what_is_not_a_decimal_number() {
        let pieces = [
            "", " 1", "1 ", "inf", "nan", "0x10", "1_000", "1,5", ".5", "5.", "1e", "1e+", "--1", "+", "-", "1.2.3",
            "١", "1 $$2", "$1",
        ];
        for piece in pieces {
            let text = format!("é $${piece}&& tail");
            let expected = GrammarError::NotANumber { offset: 3, piece: piece.to_string() };
            assert_eq!(parse(&text), Err(expected), "{text}");
        }
        let too_large = GrammarError::NotFinite { offset: 0, piece: "1e999".to_string() };
        assert_eq!(parse("$$1e999&&"), Err(too_large));
    }

    #[test]
    fn names_the_unclosed_mark() {
        let expected = GrammarError::Unclosed { offset: 7, piece: "$$2 and".to_string() };
        assert_eq!(parse("$$1&&, $$2 and"), Err(expected));
        assert!(matches!(parse("$$"), Err(GrammarError::Unclosed { offset: 0, .. })));
        let long = "$$".to_string() + &"é".repeat(1000);
        let Err(GrammarError::Unclosed { piece, .. }) = parse(&long) else { panic!() };
        assert!(piece.chars().count() <= SHOWN_CHARS + 1);
    }

    #[test]
    fn formats_without_trailing_zeros() {
        let cases = [
            (12.34, 4, "12.34"),
            (60.0, 2, "60"),
            (100.0, 0, "100"),
            (-0.0, 2, "0"),
            (-0.001, 2, "0"),
            (-0.5, 1, "-0.5"),
            (0.125, 2, "0.12"),
            (1e21, 2, "1000000000000000000000"),
        ];
        for (value, decimals, text) in cases {
            assert_eq!(format_value(value, decimals), text);
        }
        assert_eq!(format_value(0.5, u32::MAX), "0.5");
        assert_eq!(marked(7.5, 2), "$$7.5&&");
    }

    #[test]
    fn a_value_may_be_bare_or_marked() {
        let value = |text| parse_value(text, DecimalMark::Point);
        for text in
            ["12.5", " 12.5", "$$12.5&&", "<num>12.5</num>", "$$12.5&& kg", " $$12.5&&°", "<num>$12.50</num>", "12.5 %"]
        {
            assert_eq!(value(text), Ok(12.5), "{text}");
        }
        assert_eq!(parse_value("$$1.234,5&& kg", DecimalMark::Comma), Ok(1234.5));
        for text in ["$$12.5", "12.5&&", "$$&&", "$$1&&$$2&&", "&&1$$", "$$", "$$1&& of 3", "<num>1"] {
            assert_eq!(value(text), Err(NumberError::NotDecimal), "{text}");
        }
    }

    #[test]
    fn a_text_becomes_canonical() {
        let cases = [
            ("a <num>1.50</num> b", "a $$1.50&& b"),
            ("$$1,234.50&& and $$007&&", "$$1234.5&& and $$7&&"),
            ("$$12.5 %&& of <num>€ 99</num>", "$$12.5&& of $$99&&"),
            ("<num>5&&", "$$5&&"),
        ];
        for (written, expected) in cases {
            assert_eq!(canonical(written, DecimalMark::Point).as_deref(), Ok(expected));
            assert_eq!(canonical(expected, DecimalMark::Point).as_deref(), Ok(expected));
        }
        assert_eq!(canonical("$$1.234,50&& €", DecimalMark::Comma).as_deref(), Ok("$$1234.5&& €"));
        assert!(matches!(canonical("no $$5", DecimalMark::Point), Err(GrammarError::Unclosed { offset: 3, .. })));
    }

    #[test]
    fn a_refused_number_has_its_rule() {
        let Err(error) = canonical("Total $$1.234,50&&", DecimalMark::Point) else { panic!() };
        assert_eq!(
            error.to_string(),
            "the number at byte 6, \"1.234,50\", is refused: a comma groups digits by three, as in 1,234,567.5; where it \
             stands before the decimals, set dataset.decimal_comma: true"
        );
    }

    #[test]
    fn a_megabyte_of_marks_is_read_in_linear_time() {
        assert_eq!(parse(&"$$1&&".repeat(200_000)).map(|segments| segments.len()), Ok(200_000));
        assert!(parse(&"$".repeat(1 << 20)).is_err());
        assert!(parse(&"&".repeat(1 << 20)).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text: String) {
            let _ = parse(&text);
            let _ = canonical(&text, DecimalMark::Comma);
        }

        #[test]
        fn both_spellings_become_the_same_text(pieces in prop::collection::vec(("[^$&<]{0,8}", "[-0-9.,' ]{1,9}"), 0..6)) {
            let write = |open: &str, close: &str| -> String {
                pieces.iter().map(|(plain, number)| format!("{plain}{open}{number}{close}")).collect()
            };
            let (marks, tags) = (write(OPEN, CLOSE), write(OPEN_TAG, CLOSE_TAG));
            prop_assert_eq!(canonical(&marks, DecimalMark::Point), canonical(&tags, DecimalMark::Point));
            prop_assert_eq!(with_marks(&tags), marks.as_str());
            if let Ok(text) = canonical(&marks, DecimalMark::Point) {
                prop_assert!(parse(&text).is_ok());
            }
        }

        #[test]
        fn any_mix_of_marks_is_answered(text in "(\\$|&|[0-9]|\\.|e|-|é| ){0,40}") {
            if let Ok(segments) = parse(&text) {
                // Plain pieces are verbatim, in order, and what lies between them starts and ends with a mark.
                let plain: usize = segments.iter().map(|piece| if let Text(t) = piece { t.len() } else { 0 }).sum();
                let numbers = segments.iter().filter(|piece| matches!(piece, Number(_))).count();
                prop_assert!(plain + 5 * numbers <= text.len());
            }
        }

        #[test]
        fn shortest_text_reads_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let read = parse_canonical(&shortest_value(value)).map(f64::to_bits);
            prop_assert_eq!(read, Ok(bits));
        }

        #[test]
        fn text_and_numbers_survive(pieces in proptest::collection::vec(("[^$&]{1,8}", -1e6f64..1e6), 0..6)) {
            let mut text = String::new();
            let mut expected = Vec::new();
            for (plain, value) in &pieces {
                text += plain;
                text += &format!("{OPEN}{}{CLOSE}", shortest_value(*value));
                expected.push(Text(plain));
                expected.push(Number(*value));
            }
            prop_assert_eq!(parse(&text), Ok(expected));
        }
    }
}
