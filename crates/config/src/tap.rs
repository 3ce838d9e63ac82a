//! Places where the model is read: one by `layer` and `pooling`, or several, the taps.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::choice::{Choice, Pooling};
use crate::error::ParseError;
use crate::keys::Recipe;
use crate::parse::{self, MOST_LAYERS, list, names, refuse_with_hint};
use crate::raw::Raw;

/// Most places that are read at once.
pub const MOST_TAPS: usize = 256;

/// A place that is read: a block's output, and which of its positions are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tap {
    /// As [`Recipe::layer`].
    pub layer: Option<usize>,
    /// As [`Recipe::pooling`].
    pub pooling: Pooling,
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{layer}:{}", self.pooling),
            None => write!(f, "-1:{}", self.pooling),
        }
    }
}

impl Serialize for Tap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Tap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        tap(&Raw::Text(text)).map_err(|error| D::Error::custom(error.message))
    }
}

impl Recipe {
    /// The places that are read, in the order of the output projector's columns.
    pub fn places(&self) -> Vec<Tap> {
        match self.taps.is_empty() {
            true => vec![Tap { layer: self.layer, pooling: self.pooling }],
            false => self.taps.clone(),
        }
    }

    /// The same recipe with these places, in the form in which it is stored.
    #[must_use]
    pub fn reading(&self, places: &[Tap]) -> Self {
        let (layer, pooling, taps) = match places {
            [only] => (only.layer, only.pooling, Vec::new()),
            several => (None, Pooling::Last, several.to_vec()),
        };
        Recipe { layer, pooling, taps, ..self.clone() }
    }
}

/// A place such as `2:mean`.
fn tap(raw: &Raw) -> Result<Tap, ParseError> {
    let refusal = || {
        let hint = format!("a layer from -1 to {MOST_LAYERS}, then {}", names::<Pooling>().join(", "));
        ParseError::with_hint(format!("must be places such as 2:mean, not {raw}"), hint)
    };
    let Raw::Text(text) = raw else { return Err(refusal()) };
    let Some((layer, pooling)) = text.split_once(':') else { return Err(refusal()) };
    let layer = parse::layer(&Raw::Text(layer.trim().to_owned())).map_err(|_| refusal())?;
    let pooling = parse::choice(&Raw::Text(pooling.trim().to_owned())).map_err(|_| refusal())?;
    Ok(Tap { layer, pooling })
}

/// A list of places: a YAML list, or text such as `1:mean,2:last`.
pub(crate) fn taps(raw: &Raw) -> Result<Vec<Tap>, ParseError> {
    let blank = matches!(raw, Raw::Text(text) if text.trim().is_empty());
    let refusal = || ParseError::new(format!("must be a list of places such as [1:mean, 2:last], not {}", raw.kind()));
    let items = list(raw).filter(|_| !blank).ok_or_else(refusal)?;
    items.iter().map(tap).collect()
}

/// Whether a value of `taps` names no place, as `[]` does: `layer` and `pooling` say what is read.
pub(crate) fn names_none(raw: &Raw) -> bool {
    list(raw).is_some_and(|items| items.is_empty())
}

/// Refuses a place that is there twice, and more places than are read at once.
pub(crate) fn distinct(taps: &[Tap]) -> Result<(), ParseError> {
    parse::each_once(taps, "a place", "name each place once")?;
    if taps.len() > MOST_TAPS {
        let message = format!("must be at most {MOST_TAPS} places, and {} are there", taps.len());
        return refuse_with_hint(message, "name fewer layers, or one pooling");
    }
    Ok(())
}

/// What lists in `layer` and `pooling` mean: every layer with every pooling, layer by layer, as the key `taps` would have
/// it. `None` where neither is a list.
///
/// # Errors
/// The key that is not valid, and why.
pub(crate) fn product(layer: Option<&Raw>, pooling: Option<&Raw>) -> Result<Option<Raw>, (&'static str, ParseError)> {
    let is_list = |raw: Option<&Raw>| match raw {
        Some(Raw::List(_)) => true,
        Some(Raw::Text(text)) => text.contains(',') || text.trim().starts_with('['),
        _ => false,
    };
    if !is_list(layer) && !is_list(pooling) {
        return Ok(None);
    }
    let items = |raw: Option<&Raw>, default: &str| match raw {
        None => vec![Raw::Text(default.to_owned())],
        Some(raw) if is_list(Some(raw)) => list(raw).unwrap_or_default(),
        Some(raw) => vec![raw.clone()],
    };
    let (layers, poolings) = (items(layer, "-1"), items(pooling, Pooling::Last.name()));
    for (key, items) in [("layer", &layers), ("pooling", &poolings)] {
        if items.is_empty() {
            return Err((key, ParseError::new("must not be an empty list")));
        }
    }
    let mut taps = Vec::new();
    for layer in &layers {
        let layer = parse::layer(layer).map_err(|error| ("layer", error))?;
        for pooling in &poolings {
            let pooling = parse::choice(pooling).map_err(|error| ("pooling", error))?;
            taps.push(Raw::Text(Tap { layer, pooling }.to_string()));
        }
    }
    Ok(Some(Raw::List(taps)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn places(flags: &[(&str, &str)]) -> Vec<String> {
        let recipe = Config::with(flags).unwrap().recipe;
        recipe.places().iter().map(Tap::to_string).collect()
    }

    fn refusal(flags: &[(&str, &str)]) -> String {
        Config::with(flags).unwrap_err().to_string()
    }

    #[test]
    fn lists_mean_their_product_and_are_stored_as_pairs() {
        assert_eq!(places(&[]), ["-1:last"]);
        assert_eq!(places(&[("layer", "0")]), ["0:last"]);
        let both = [("layer", "[0, 2]"), ("pooling", "mean,last")];
        assert_eq!(places(&both), ["0:mean", "0:last", "2:mean", "2:last"]);
        assert_eq!(places(&[("pooling", "last, mean")]), ["-1:last", "-1:mean"]);
        assert_eq!(places(&[("taps", "[1:mean, -1:last]")]), ["1:mean", "-1:last"]);
        let text = Config::with(&both).unwrap().recipe.digest_text();
        assert!(text.ends_with(r#""taps":["0:mean","0:last","2:mean","2:last"]}"#), "{text}");
        assert!(text.contains(r#""readout":"last""#) && !text.contains(r#""layer""#), "{text}");
        assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), Config::with(&both).unwrap().recipe);
    }

    #[test]
    fn one_place_is_stored_as_before_however_it_was_said() {
        let plain = Config::with(&[("layer", "2"), ("pooling", "mean")]).unwrap().recipe;
        for same in [&[("taps", "2:mean")][..], &[("layer", "[2]"), ("pooling", "[mean]")]] {
            assert_eq!(Config::with(same).unwrap().recipe, plain);
        }
        assert_eq!(plain.reading(&plain.places()), plain);
        let several = Config::with(&[("taps", "2:mean,0:last")]).unwrap().recipe;
        assert_eq!(plain.reading(&several.places()), several);
        several.check().unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (flags, part) in [
            (&[("taps", "1:mean,1:mean")][..], "1:mean is there twice"),
            (&[("taps", "mean")], "places such as 2:mean"),
            (&[("taps", "1:middle")], "last, mean, numbers"),
            (&[("layer", "[1, 1]")], "1:last is there twice"),
            (&[("layer", "[]")], "must not be an empty list"),
            (&[("layer", "1,x")], "number of a block"),
            (&[("pooling", "mean,middle")], "must be"),
            (&[("taps", "1:mean,2:mean"), ("layer", "3")], "taps"),
            (&[("taps", "1:mean,2:mean"), ("layer", "1,2")], "taps"),
            (&[("stage", "text"), ("pooling", "mean,numbers")], "reads projected numbers"),
        ] {
            let message = refusal(flags);
            assert!(message.contains(part), "{flags:?}: {message}");
        }
    }
}
