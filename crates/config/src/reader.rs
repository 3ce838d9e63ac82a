//! Looks keys up in the layers — the strongest layer that sets a key wins — and gathers problems.
//! Used by `resolve` to read values and by `checks` to name them.

use std::collections::BTreeMap;

use crate::keys::{Key, KeyDefault, key};
use crate::layer::Layer;
use crate::parse::Fault;
use crate::problem::Problem;
use crate::raw::Raw;

/// The layers of one configuration and what has been found wrong with them.
pub(crate) struct Reader {
    /// Weakest first.
    layers: Vec<Layer>,
    /// The text of the defaults that were worked out from other settings.
    worked_out: BTreeMap<&'static str, String>,
    problems: Vec<Problem>,
    #[cfg(test)]
    pub(crate) asked: Vec<&'static str>,
}

impl Reader {
    /// A reader of `layers`, weakest first, that begins with the layers' own problems.
    pub(crate) fn new(layers: Vec<Layer>) -> Reader {
        let mut problems = Vec::new();
        for layer in &layers {
            problems.extend_from_slice(layer.problems());
        }
        Reader {
            layers,
            worked_out: BTreeMap::new(),
            problems,
            #[cfg(test)]
            asked: Vec::new(),
        }
    }

    /// Whether a source could not be read at all, so that checks between keys would mislead.
    pub(crate) fn lacks_a_source(&self) -> bool {
        self.layers.iter().any(Layer::is_unreadable)
    }

    /// The value of a key that has a default. `None` where it is invalid, which is then noted.
    pub(crate) fn value<T>(&mut self, name: &'static str, parse: impl Fn(&Raw) -> Result<T, Fault>) -> Option<T> {
        if let Some(set) = self.set_value(name, &parse) {
            return set;
        }
        let default = match key(name).map(|key| key.default) {
            Some(KeyDefault::Value(text)) => parse(&Raw::Text(text.to_string())),
            _ => Err(no_default()),
        };
        self.or_note(name, default)
    }

    /// The value of a key that may stay unset (`Some(None)`). `None` where it is invalid.
    pub(crate) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&Raw) -> Result<T, Fault>,
    ) -> Option<Option<T>> {
        match self.set_value(name, parse) {
            Some(Some(value)) => Some(Some(value)),
            Some(None) => None,
            None => Some(None),
        }
    }

    /// The value of a key whose default is worked out by the caller; `None` where the value is
    /// invalid, or unset while `default` is unknown because of another problem.
    pub(crate) fn value_or<T: ToString>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&Raw) -> Result<T, Fault>,
        default: Option<T>,
    ) -> Option<T> {
        if let Some(set) = self.set_value(name, parse) {
            return set;
        }
        let default = default?;
        self.worked_out.insert(name, default.to_string());
        Some(default)
    }

    /// `None` where no layer sets the key, `Some(None)` where the value is invalid.
    fn set_value<T>(&mut self, name: &'static str, parse: impl Fn(&Raw) -> Result<T, Fault>) -> Option<Option<T>> {
        #[cfg(test)]
        self.asked.push(name);
        let layer = self.strength(name)?;
        let parsed = parse(self.layers[layer].get(name)?);
        Some(self.or_note(name, parsed))
    }

    fn or_note<T>(&mut self, name: &'static str, parsed: Result<T, Fault>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(fault) => {
                self.note(name, fault.message, fault.hint);
                None
            }
        }
    }

    /// Notes a problem of a key, with its origin and value.
    pub(crate) fn note(&mut self, name: &'static str, message: String, hint: Option<String>) {
        let problem = Problem {
            origin: self.origin(name),
            key: Some(name.to_string()),
            value: Some(self.text(name)),
            message,
            hint,
        };
        self.problems.push(problem);
    }

    /// Notes a problem that belongs to no value that was written.
    pub(crate) fn note_problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Of the keys, the one set by the strongest layer: the likeliest slip. The first of equals.
    pub(crate) fn likeliest(&self, first: &'static str, second: &'static str) -> &'static str {
        if self.strength(second) > self.strength(first) { second } else { first }
    }

    /// `max_workers = 64 (default)`: a key as other problems mention it.
    pub(crate) fn mention(&self, name: &'static str) -> String {
        format!("{name} = {} ({})", self.text(name), self.origin(name))
    }

    /// Whether any layer sets the key.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.strength(name).is_some()
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// The strongest layer that sets the key.
    fn strength(&self, name: &str) -> Option<usize> {
        self.layers.iter().rposition(|layer| layer.is_set(name))
    }

    fn origin(&self, name: &str) -> String {
        match (self.strength(name), key(name)) {
            (Some(layer), Some(key)) => self.layers[layer].origin_of(key),
            _ => "default".to_string(),
        }
    }

    fn text(&self, name: &str) -> String {
        if let Some(layer) = self.strength(name) {
            return self.layers[layer].get(name).map(Raw::to_string).unwrap_or_default();
        }
        match self.worked_out.get(name) {
            Some(text) => text.clone(),
            None => key(name).map(Key::default_text).unwrap_or_default().to_string(),
        }
    }
}

/// A key without a fixed default was read as if it had one: a slip in `resolve`, found by its tests.
fn no_default() -> Fault {
    Fault { message: "has no default, which is a bug of numalign".to_string(), hint: None }
}
