//! Marked numbers: `$$12.34&&` inside a text.
//!
//! [`parse`] splits a text of stage `mixed` into plain pieces and numbers; [`marked`] writes a number.
//!
//! A text is read from left to right. `$$` opens a marked number and the next `&&` closes it; what lies between
//! must be a decimal number: an optional sign, digits, optionally a point and digits, optionally an exponent
//! (`e` or `E`, optional sign, digits), with no spaces, and finite as an `f64`. A single `$`, a single `&`, and an
//! `&&` with no `$$` before it are plain text.

use thiserror::Error;

use crate::text::excerpt;

/// Opens a marked number.
pub const OPEN: &str = "$$";
/// Closes a marked number.
pub const CLOSE: &str = "&&";

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
    #[error("the `$$` at byte {offset} has no closing `&&`: {piece:?}")]
    Unclosed { offset: usize, piece: String },
}

/// Why a string is not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum NumberError {
    #[error("not a decimal number")]
    NotDecimal,
    #[error("not finite as a 64-bit float")]
    NotFinite,
}

/// Splits `text` into plain pieces and marked numbers, in time linear in its length.
///
/// # Errors
/// The first `$$` that is not closed, or whose content is not a finite decimal number.
pub fn parse(text: &str) -> Result<Vec<Segment<'_>>, GrammarError> {
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
        match parse_number(content) {
            Ok(value) => segments.push(Segment::Number(value)),
            Err(NumberError::NotDecimal) => {
                return Err(GrammarError::NotANumber { offset, piece: excerpt(content, SHOWN_CHARS) });
            }
            Err(NumberError::NotFinite) => {
                return Err(GrammarError::NotFinite { offset, piece: excerpt(content, SHOWN_CHARS) });
            }
        }
        position = offset + OPEN.len() + content_len + CLOSE.len();
    }
    if position < text.len() {
        segments.push(Segment::Text(&text[position..]));
    }
    Ok(segments)
}

/// Reads a decimal number as the nearest `f64`. Stricter than Rust's own parser: no spaces, `inf`, `nan` or `_`,
/// and digits on both sides of a point.
///
/// # Errors
/// Another syntax, or a number too large for an `f64`.
pub fn parse_number(text: &str) -> Result<f64, NumberError> {
    if !is_decimal(text.as_bytes()) {
        return Err(NumberError::NotDecimal);
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(NumberError::NotFinite),
        Err(_) => Err(NumberError::NotDecimal),
    }
}

/// Reads a string that holds nothing but a number, bare (`12.34`) or marked (`$$12.34&&`).
///
/// # Errors
/// As [`parse_number`].
pub fn parse_value(text: &str) -> Result<f64, NumberError> {
    let content = text.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE));
    parse_number(content.unwrap_or(text))
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

fn is_decimal(bytes: &[u8]) -> bool {
    let Some(mut rest) = skip_digits(skip_sign(bytes)) else {
        return false;
    };
    if let [b'.', fraction @ ..] = rest {
        let Some(after_fraction) = skip_digits(fraction) else {
            return false;
        };
        rest = after_fraction;
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let Some(after_exponent) = skip_digits(skip_sign(exponent)) else {
            return false;
        };
        rest = after_exponent;
    }
    rest.is_empty()
}

fn skip_sign(bytes: &[u8]) -> &[u8] {
    match bytes {
        [b'+' | b'-', rest @ ..] => rest,
        _ => bytes,
    }
}

/// What follows one or more digits; `None` where there is no digit.
fn skip_digits(bytes: &[u8]) -> Option<&[u8]> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    Some(&bytes[digits..])
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
        assert_eq!(parse_value("12.5"), Ok(12.5));
        assert_eq!(parse_value("$$12.5&&"), Ok(12.5));
        for text in ["$$12.5", "12.5&&", "$$&&", "$$1&&$$2&&", " 1", "&&1$$", "$$"] {
            assert_eq!(parse_value(text), Err(NumberError::NotDecimal), "{text}");
        }
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
            let read = parse_number(&shortest_value(value)).map(f64::to_bits);
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
