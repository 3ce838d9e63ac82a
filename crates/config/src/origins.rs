//! Where each value was written, so that an error can name it: the strongest source that sets a key wins.

use crate::error::{ConfigError, ParseError};
use crate::key::{KeyDefault, key, phrase};
use crate::keys::Settings;
use crate::raw::Raw;
use crate::source::Source;

/// Where the values of a configuration come from.
pub(crate) enum Origins<'a> {
    /// From these sources, weakest first.
    Sources(&'a [Source]),
    /// From a struct: what errors call it, and its values.
    Typed(&'static str, &'a Settings),
}

impl<'a> Origins<'a> {
    /// The value of the key in the strongest source that sets it.
    pub(crate) fn written(&self, name: &str) -> Option<&'a Raw> {
        match self {
            Origins::Sources(sources) => sources.iter().rev().find_map(|source| source.get(name)),
            Origins::Typed(..) => None,
        }
    }

    /// The place of the strongest source that sets the key.
    pub(crate) fn strength(&self, name: &str) -> Option<usize> {
        match self {
            Origins::Sources(sources) => sources.iter().rposition(|source| source.is_set(name)),
            Origins::Typed(..) => None,
        }
    }

    fn origin(&self, name: &str) -> String {
        match (self, self.strength(name)) {
            (Origins::Typed(what, _), _) => what.to_string(),
            (Origins::Sources(sources), Some(place)) => sources[place].origin_of(name),
            (Origins::Sources(_), None) => "default".to_string(),
        }
    }

    /// The key's name as it was written.
    fn name_of(&self, name: &'a str) -> &'a str {
        match (self, self.strength(name)) {
            (Origins::Sources(sources), Some(place)) => sources[place].name_of(name),
            _ => name,
        }
    }

    /// The value as it was written; a derived one from `settings`.
    fn text(&self, name: &str, settings: &Settings) -> String {
        if let Some(raw) = self.written(name) {
            return raw.to_string();
        }
        let Some(key) = key(name) else { return String::new() };
        match (self, key.default) {
            (Origins::Typed(_, values), _) => phrase(&(key.shown)(values)),
            (Origins::Sources(_), KeyDefault::Derived(_)) => phrase(&(key.shown)(settings)),
            (Origins::Sources(_), KeyDefault::Value(_) | KeyDefault::Unset) => key.default_text().to_string(),
        }
    }

    /// An error of a key, with its origin and value.
    pub(crate) fn error(&self, name: &'static str, error: ParseError, settings: &Settings) -> ConfigError {
        ConfigError {
            origin: self.origin(name),
            key: Some(self.name_of(name).to_string()),
            value: Some(self.text(name, settings)),
            message: error.message,
            hint: error.hint,
        }
    }
}

/// What a rule between keys looks at, and how it says what it finds.
pub(crate) struct Check<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) origins: &'a Origins<'a>,
}

impl Check<'_> {
    /// An error of a key, with a hint unless that is empty.
    pub(crate) fn refuse(&self, name: &'static str, message: String, hint: impl Into<String>) -> Option<ConfigError> {
        let hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        Some(self.origins.error(name, ParseError { message, hint }, self.settings))
    }

    /// Of two keys, the one that the stronger source sets: the likelier slip. The first of equals.
    pub(crate) fn most_specific(&self, first: &'static str, second: &'static str) -> &'static str {
        if self.origins.strength(second) > self.origins.strength(first) { second } else { first }
    }

    /// `max_workers = 64 (default)`: a key as the errors of other keys mention it.
    pub(crate) fn mention(&self, name: &'static str) -> String {
        let (text, origin) = (self.origins.text(name, self.settings), self.origins.origin(name));
        format!("{} = {text} ({origin})", self.origins.name_of(name))
    }
}
