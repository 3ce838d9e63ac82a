//! Ranges of values, as a list of pairs.

use serde::{Deserialize, Serialize};

use crate::error::ParseError;
use crate::parse;
use crate::raw::Raw;

/// A range of values. Stored as `[min, max]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "[f64; 2]", from = "[f64; 2]")]
pub struct Span {
    /// Smallest value.
    pub min: f64,
    /// Upper end; above `min`.
    pub max: f64,
}

impl From<[f64; 2]> for Span {
    fn from([min, max]: [f64; 2]) -> Self {
        Self { min, max }
    }
}

impl From<Span> for [f64; 2] {
    fn from(span: Span) -> Self {
        [span.min, span.max]
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} to {:?}", self.min, self.max)
    }
}

/// A list of pairs, or text such as `0..80, 1..5`.
pub(crate) fn spans(raw: &Raw) -> Result<Vec<Span>, ParseError> {
    let refused = || ParseError::with_hint("must be a list of ranges", "write [[0, 80], [1, 5]], or 0..80,1..5");
    match raw {
        Raw::List(items) => items
            .iter()
            .map(|item| match item {
                Raw::List(ends) => match ends.as_slice() {
                    [min, max] => Ok(Span { min: parse::float(min)?, max: parse::float(max)? }),
                    _ => Err(refused()),
                },
                _ => Err(refused()),
            })
            .collect(),
        Raw::Text(text) if text.trim() == "[]" => Ok(Vec::new()),
        Raw::Text(text) => text
            .split(',')
            .map(|item| {
                let (min, max) = item.trim().split_once("..").ok_or_else(refused)?;
                let end = |text: &str| parse::float(&Raw::Text(text.trim().to_string()));
                Ok(Span { min: end(min)?, max: end(max)? })
            })
            .collect(),
        _ => Err(refused()),
    }
}

/// Refuses a range without a width that single precision holds.
pub(crate) fn have_widths(spans: &[Span]) -> Result<(), ParseError> {
    for span in spans {
        let width = span.max - span.min;
        if !(width >= f64::from(f32::MIN_POSITIVE) && width <= f64::from(f32::MAX)) {
            let message = match span.max > span.min {
                true => format!("must hold ranges of a width that single precision holds, not {span}"),
                false => format!("must hold ranges whose ends rise, not {span}"),
            };
            return parse::refuse(message);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_in_both_spellings() {
        let expected = vec![Span { min: 0.0, max: 80.0 }, Span { min: -1.5, max: 5.0 }];
        assert_eq!(spans(&Raw::Text("0..80, -1.5..5".to_string())).unwrap(), expected);
        let pair = |min, max| Raw::List(vec![min, max]);
        let list = Raw::List(vec![pair(Raw::Int(0), Raw::Int(80)), pair(Raw::Float(-1.5), Raw::Int(5))]);
        assert_eq!(spans(&list).unwrap(), expected);
        assert_eq!(serde_json::to_string(&expected).unwrap(), "[[0.0,80.0],[-1.5,5.0]]");
        assert!(spans(&Raw::Text("[]".to_string())).unwrap().is_empty());
        for text in ["", "0-80", "0..", "a..b", "1,2"] {
            assert!(spans(&Raw::Text(text.to_string())).is_err(), "{text}");
        }
        for (min, max) in [(1.0, 1.0), (2.0, 1.0), (f64::NAN, 1.0), (-3e38, 3e38)] {
            assert!(have_widths(&[Span { min, max }]).is_err());
        }
    }
}
