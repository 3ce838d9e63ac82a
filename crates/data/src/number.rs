//! Numbers as people write them: `1,234.50`, `12.5 %`, `€ 99`, `-1.5e3`.
//!
//! What has one meaning is read; what could have two is refused with the rule that decides.
//!
//! | written | read as |
//! |---|---|
//! | `1,234`, `1,234,567.5` | commas group digits by three |
//! | `1 234 567`, `1'234` | so do spaces (plain, no-break, thin) and apostrophes |
//! | `12.5 %` | 12.5: percent signs are dropped, the value is not divided |
//! | `$ 99`, `99 €`, `-£1.50` | the currency sign is dropped |
//! | `1.5e3`, `.5`, `5.`, `−3` | as usual; `−` (U+2212) is a minus sign |
//! | `1.234,50`, `12,5` | only with [`DecimalMark::Comma`]; there a point groups digits by three |
//!
//! Refused: `1,5` and `12,34,567` (with a decimal point), `0,123`, mixed separators, a unit (`12.5 kg`), `(12.50)`, `1.5×10³`, `inf`,
//! `nan`, `0x10`, `1_000`, digits of other scripts.

use thiserror::Error;

/// Which mark stands before the decimals; the other of the two groups digits by three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecimalMark {
    /// `1,234.50`
    #[default]
    Point,
    /// `1.234,50`: the key `dataset.decimal_comma`.
    Comma,
}

impl DecimalMark {
    /// The mark of a file with that setting of `dataset.decimal_comma`.
    pub fn of(decimal_comma: bool) -> Self {
        if decimal_comma { DecimalMark::Comma } else { DecimalMark::Point }
    }

    fn decimal(self) -> char {
        if self == DecimalMark::Point { '.' } else { ',' }
    }

    fn grouping(self) -> char {
        if self == DecimalMark::Point { ',' } else { '.' }
    }
}

/// Why a string is not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum NumberError {
    #[error("not a decimal number")]
    NotDecimal,
    #[error("not finite as a 64-bit float")]
    NotFinite,
    #[error("{0}")]
    Refused(NumberRule),
}

/// The rule by which something that looks like a number is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum NumberRule {
    #[error(
        "a comma groups digits by three, as in 1,234,567.5; where it stands before the decimals, set \
         dataset.decimal_comma: true"
    )]
    CommaGroups,
    #[error("with dataset.decimal_comma a point groups digits by three, as in 1.234.567,5")]
    PointGroups,
    #[error("one separator groups digits by three, as in 1,234,567 or 1 234 567")]
    Groups,
    #[error("a unit stands outside the marks, as in $$12.5&& kg, or in the column's name")]
    Unit,
    #[error("a power of ten is written as in 1.5e3")]
    PowerOfTen,
    #[error("a negative number has a minus sign, as in -12.5")]
    Parentheses,
}

/// Reads a decimal number as the nearest `f64`, in canonical form only: an optional sign, digits, optionally a point and
/// digits, optionally an exponent. Stricter than Rust's own parser: no spaces, `inf`, `nan` or `_`, and digits on both
/// sides of a point.
///
/// # Errors
/// Another syntax, or a number too large for an `f64`.
pub fn parse_canonical(text: &str) -> Result<f64, NumberError> {
    if !is_decimal(text.as_bytes()) {
        return Err(NumberError::NotDecimal);
    }
    finite(text)
}

/// Reads a number as people write it, as the nearest `f64`. Whatever [`parse_canonical`] reads is read as the same number
/// with [`DecimalMark::Point`].
///
/// # Errors
/// Not a number, one too large for an `f64`, or one that could mean two: with the rule that decides.
pub fn parse_number(text: &str, mark: DecimalMark) -> Result<f64, NumberError> {
    if mark == DecimalMark::Point && is_decimal(text.as_bytes()) {
        return finite(text);
    }
    let text = text.trim();
    let inside = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    if inside.is_some_and(|inside| !inside.starts_with('(') && parse_number(inside, mark).is_ok()) {
        return Err(NumberError::Refused(NumberRule::Parentheses));
    }
    let (negative, body) = without_signs(text)?;
    let (mantissa, exponent) = split_exponent(body);
    let mut digits = String::with_capacity(text.len() + 2);
    if negative {
        digits.push('-');
    }
    push_mantissa(mantissa, mark, &mut digits)?;
    digits.push_str(exponent);
    finite(&digits)
}

/// Whether the number is negative, and what is left without sign, percent sign and currency sign.
fn without_signs(text: &str) -> Result<(bool, &str), NumberError> {
    let (mut negative, mut rest) = strip_sign(text);
    let mut dropped = 0;
    if let Some(after) = rest.strip_prefix(is_currency) {
        dropped += 1;
        rest = after.trim_start();
        if negative.is_none() {
            (negative, rest) = strip_sign(rest);
        }
    }
    if let Some(before) = rest.strip_suffix(|c: char| c == '%' || is_currency(c)) {
        dropped += 1;
        rest = before.trim_end();
    }
    if dropped > 1 {
        return Err(NumberError::NotDecimal);
    }
    Ok((negative.unwrap_or(false), rest))
}

/// Whether a sign says that the number is negative, `None` without a sign; and what follows it.
fn strip_sign(text: &str) -> (Option<bool>, &str) {
    match text.chars().next() {
        Some(sign @ ('+' | '-' | '−')) => (Some(sign != '+'), &text[sign.len_utf8()..]),
        _ => (None, text),
    }
}

fn is_currency(character: char) -> bool {
    // The Unicode block of currency symbols, and the signs that lie elsewhere.
    matches!(character, '$' | '£' | '¥' | '฿' | '\u{20a0}'..='\u{20cf}')
}

/// The digits with their marks, and the exponent with its `e`; empty where there is none.
fn split_exponent(body: &str) -> (&str, &str) {
    let Some(place) = body.find(['e', 'E']) else { return (body, "") };
    match skip_digits(skip_sign(&body.as_bytes()[place + 1..])) {
        Some([]) => body.split_at(place),
        _ => (body, ""),
    }
}

/// Appends a number without sign and exponent to `digits`, in canonical form.
fn push_mantissa(text: &str, mark: DecimalMark, digits: &mut String) -> Result<(), NumberError> {
    let (whole, decimals) = match text.split_once(mark.decimal()) {
        Some((whole, decimals)) => (whole, Some(decimals)),
        None => (text, None),
    };
    let has_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if decimals.is_some_and(|decimals| !decimals.is_empty() && !has_digits(decimals)) {
        return Err(refusal(text, mark));
    }
    let decimals = decimals.filter(|decimals| !decimals.is_empty());
    match whole.chars().find(|character| !character.is_ascii_digit()) {
        None if whole.is_empty() && decimals.is_none() => return Err(NumberError::NotDecimal),
        None if whole.is_empty() => digits.push('0'),
        None => digits.push_str(whole),
        Some(separator) if separator == mark.grouping() || is_other_grouping(separator) => {
            let groups: Vec<&str> = whole.split(separator).collect();
            let (first, others) = (groups[0], &groups[1..]);
            let first_fits = has_digits(first) && first.len() <= 3 && !first.starts_with('0');
            if !first_fits || !others.iter().all(|group| group.len() == 3 && has_digits(group)) {
                return Err(refusal(text, mark));
            }
            groups.iter().for_each(|group| digits.push_str(group));
        }
        Some(_) => return Err(refusal(text, mark)),
    }
    if let Some(decimals) = decimals {
        digits.push('.');
        digits.push_str(decimals);
    }
    Ok(())
}

/// Separators of groups that are never decimal marks: spaces (plain, no-break, thin, narrow no-break) and apostrophes.
fn is_other_grouping(character: char) -> bool {
    matches!(character, ' ' | '\u{a0}' | '\u{2009}' | '\u{202f}' | '\'' | '’')
}

/// The rule that refuses what begins as a number and does not go on as one.
fn refusal(text: &str, mark: DecimalMark) -> NumberError {
    let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == ',' || is_other_grouping(c);
    let Some(first) = text.chars().next() else { return NumberError::NotDecimal };
    if !(first.is_ascii_digit() || first == mark.decimal()) {
        return NumberError::NotDecimal;
    }
    let rest = text.trim_start_matches(is_part);
    let rule = match rest.chars().next() {
        None if text.contains(mark.grouping()) => match mark {
            DecimalMark::Point => NumberRule::CommaGroups,
            DecimalMark::Comma => NumberRule::PointGroups,
        },
        None if text.contains(is_other_grouping) => NumberRule::Groups,
        None => return NumberError::NotDecimal,
        Some('×' | '*') => NumberRule::PowerOfTen,
        Some('x' | 'X' | 'e' | 'E')
            if rest.len() > 1 && rest[1..].trim_start().starts_with(|c: char| c.is_ascii_digit()) =>
        {
            // `0x10` is no number that anybody means in tens.
            if text.starts_with("0x") || text.starts_with("0X") {
                return NumberError::NotDecimal;
            }
            NumberRule::PowerOfTen
        }
        // `1e`, `1e+` and `12ab3` are slips, not units.
        Some(next) if next.is_alphabetic() || matches!(next, '°' | '‰' | '¢') => {
            let is_slip =
                rest.contains(|c: char| c.is_ascii_digit() || c == '+') || matches!(rest, "e" | "E" | "e-" | "E-");
            if is_slip {
                return NumberError::NotDecimal;
            }
            NumberRule::Unit
        }
        Some(_) => return NumberError::NotDecimal,
    };
    NumberError::Refused(rule)
}

fn finite(digits: &str) -> Result<f64, NumberError> {
    match digits.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(NumberError::NotFinite),
        Err(_) => Err(NumberError::NotDecimal),
    }
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
    use proptest::prelude::*;

    use super::*;

    fn point(text: &str) -> Result<f64, NumberError> {
        parse_number(text, DecimalMark::Point)
    }

    fn comma(text: &str) -> Result<f64, NumberError> {
        parse_number(text, DecimalMark::Comma)
    }

    fn refused(rule: NumberRule) -> Result<f64, NumberError> {
        Err(NumberError::Refused(rule))
    }

    #[test]
    fn reads_what_has_one_meaning() {
        let cases = [
            ("12.5", 12.5),
            ("1,234", 1234.0),
            ("1,234,567.5", 1_234_567.5),
            ("-1,234.50", -1234.5),
            ("1 234 567", 1_234_567.0),
            ("1\u{202f}234", 1234.0),
            ("1'234.5", 1234.5),
            ("12.5 %", 12.5),
            ("12.5%", 12.5),
            ("-3\u{a0}%", -3.0),
            ("$12", 12.0),
            ("$ 1,234.50", 1234.5),
            ("-$12.50", -12.5),
            ("$-12.50", -12.5),
            ("99 €", 99.0),
            ("₹ 5", 5.0),
            ("−3.5", -3.5),
            ("+7", 7.0),
            ("1.5e3", 1500.0),
            ("1,234E-2", 12.34),
            (" 12.50 ", 12.5),
            (".5", 0.5),
            ("-.5", -0.5),
            ("5.", 5.0),
        ];
        for (text, value) in cases {
            assert_eq!(point(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn a_decimal_comma_is_read_where_it_is_set() {
        let cases = [
            ("1.234,50", 1234.5),
            ("12,5", 12.5),
            ("1.234", 1234.0),
            ("99,90 €", 99.9),
            ("1 234,5", 1234.5),
            (",5", 0.5),
        ];
        for (text, value) in cases {
            assert_eq!(comma(text), Ok(value), "{text}");
        }
        for text in ["12.5", "1.234.5", "1,234.5", "0.123"] {
            assert_eq!(comma(text), refused(NumberRule::PointGroups), "{text}");
        }
    }

    #[test]
    fn refuses_with_the_rule() {
        let cases = [
            ("1,5", NumberRule::CommaGroups),
            ("1.234,50", NumberRule::CommaGroups),
            ("12,34,567", NumberRule::CommaGroups),
            ("0,123", NumberRule::CommaGroups),
            ("1234,567", NumberRule::CommaGroups),
            ("1,234 567", NumberRule::CommaGroups),
            ("12,", NumberRule::CommaGroups),
            ("99,90 €", NumberRule::CommaGroups),
            ("12 34", NumberRule::Groups),
            ("12.5 kg", NumberRule::Unit),
            ("37°C", NumberRule::Unit),
            ("5‰", NumberRule::Unit),
            ("1.5×10^3", NumberRule::PowerOfTen),
            ("1.5 x 10^3", NumberRule::PowerOfTen),
            ("(12.50)", NumberRule::Parentheses),
        ];
        for (text, rule) in cases {
            assert_eq!(point(text), refused(rule), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_number() {
        let texts = [
            "", " ", "inf", "nan", "NaN", "0x10", "1_000", "1e", "1e+", "--1", "+", "-", "1.2.3", "١", "$", "%",
            "$5 %", "€5€", ".", "1 $$2", "abc", "(abc 5)", "((5))", "five", "12ab3", "1;2",
        ];
        for text in texts {
            assert_eq!(point(text), Err(NumberError::NotDecimal), "{text}");
        }
        assert_eq!(point("1e999"), Err(NumberError::NotFinite));
        assert_eq!(point("$1,234e999"), Err(NumberError::NotFinite));
    }

    /// `digits` in groups of three, the first of one to three.
    fn grouped(digits: &str, separator: &str) -> String {
        let first = match digits.len() % 3 {
            0 => 3.min(digits.len()),
            length => length,
        };
        let mut text = digits[..first].to_owned();
        for start in (first..digits.len()).step_by(3) {
            text.push_str(separator);
            text.push_str(&digits[start..start + 3]);
        }
        text
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text: String, likely in "[-+0-9.,' $€%eE×xk°()]{0,12}") {
            for text in [text, likely] {
                for mark in [DecimalMark::Point, DecimalMark::Comma] {
                    if let Ok(value) = parse_number(&text, mark) {
                        prop_assert!(value.is_finite());
                        prop_assert!(text.contains(|c: char| c.is_ascii_digit()));
                    }
                }
            }
        }

        #[test]
        fn canonical_numbers_keep_their_bits(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [value.to_string(), format!("{value:e}")] {
                prop_assert_eq!(parse_canonical(&text).map(f64::to_bits), Ok(bits));
                prop_assert_eq!(point(&text).map(f64::to_bits), Ok(bits));
            }
        }

        #[test]
        fn grouping_signs_and_marks_do_not_change_the_value(
            whole in 1u64..1_000_000_000_000,
            decimals in "[0-9]{1,6}",
            negative: bool,
            (before, after) in prop::sample::select(vec![("", ""), ("$", ""), ("€ ", ""), ("", " %"), ("", "%"), ("", " ₽")]),
            separator in prop::sample::select(vec!["", " ", "'", "\u{a0}", "\u{202f}"]),
        ) {
            let sign = if negative { "-" } else { "" };
            let expected: f64 = format!("{sign}{whole}.{decimals}").parse().unwrap();
            let whole = whole.to_string();
            for (group, decimal, mark) in [(",", ".", DecimalMark::Point), (".", ",", DecimalMark::Comma)] {
                for separator in [group, separator] {
                    let text = format!("{sign}{before}{}{decimal}{decimals}{after}", grouped(&whole, separator));
                    prop_assert_eq!(parse_number(&text, mark), Ok(expected), "{}", text);
                }
            }
        }

        #[test]
        fn both_settings_read_a_text_only_with_one_separator(text in "-?[0-9]{1,3}([.,][0-9]{1,3}){1,3}") {
            // `1.234` is the one shape whose meaning hangs on the setting; with two separators, one setting refuses.
            if let (Ok(with_point), Ok(with_comma)) = (point(&text), comma(&text)) {
                let separators: Vec<char> = text.chars().filter(|c| matches!(c, '.' | ',')).collect();
                prop_assert!(separators.len() == 1 && with_point != with_comma, "{}", text);
            }
        }
    }
}
