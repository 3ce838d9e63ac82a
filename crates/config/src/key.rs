//! One key of the configuration: its name in files, variables and flags, and what each reader needs of it.

use serde_json::Value as Json;

use crate::error::ParseError;
use crate::keys::{KEYS, Settings};
use crate::kind::Kind;
use crate::raw::Raw;

/// What every environment variable of numalign begins with.
pub const ENV_PREFIX: &str = "NUMALIGN_";

/// Which part of a configuration a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Decides the bytes of the result.
    Recipe,
    /// Read for the sake of its refusal.
    Refused,
    /// Decides none of them.
    Run,
}

impl Part {
    /// In the order in which they are read.
    pub(crate) const ALL: [Part; 3] = [Part::Recipe, Part::Refused, Part::Run];
}

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyDefault {
    /// This value, as a user would write it.
    Value(&'static str),
    /// It follows from other settings, as this text says.
    Derived(&'static str),
    /// Not set.
    Unset,
}

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// As in a YAML file; a nested key has a dot (`dataset.file`).
    pub name: &'static str,
    /// What it is when nobody sets it.
    pub default: KeyDefault,
    /// One line for people.
    pub help: &'static str,
    /// What it is about: the heading above it in a help text.
    pub group: &'static str,
    /// Old spellings of the name, still accepted.
    pub deprecated: &'static [&'static str],
    /// It is stored only where it is neither unset nor its fixed default, at this place behind the fields that always are.
    pub(crate) sparse: Option<u32>,
    pub(crate) part: Part,
    /// The name in the checkpoint, of a key of the recipe.
    pub(crate) stored: &'static str,
    pub(crate) about: fn() -> About,
    /// The value as it is stored; null where it is unset.
    pub(crate) plain: fn(&Settings) -> Json,
    /// The value as a configuration file has it; null where it is unset.
    pub(crate) shown: fn(&Settings) -> Json,
    pub(crate) read: fn(&mut Settings, Option<&Raw>) -> Result<(), ParseError>,
    pub(crate) check: fn(&mut Settings) -> Result<(), ParseError>,
}

/// What a help text and a JSON Schema tell of a key.
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) schema: Json,
    /// The default as a configuration file has it, where it is a fixed value.
    pub(crate) default: Option<Json>,
}

impl About {
    pub(crate) fn new<T: 'static>(kind: Kind<T>, default: KeyDefault) -> About {
        let default = match default {
            KeyDefault::Value(text) => kind.parse(&Raw::Text(text.to_string())).ok().map(|value| kind.show(&value)),
            KeyDefault::Derived(_) | KeyDefault::Unset => None,
        };
        About { name: kind.value_name, schema: kind.schema, default }
    }
}

impl Key {
    /// The default as one phrase for help texts.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            KeyDefault::Value(text) | KeyDefault::Derived(text) => text,
            KeyDefault::Unset => "none",
        }
    }

    /// What stands for the value in a usage text, such as `N` or `true|false`.
    pub fn value_name(&self) -> String {
        (self.about)().name
    }

    /// Whether it can have another value than its default.
    pub fn is_settable(&self) -> bool {
        self.part != Part::Refused
    }

    /// Its name in the recipe that a checkpoint stores; `None` where it is not stored.
    pub fn stored(&self) -> Option<&'static str> {
        (self.part == Part::Recipe).then_some(self.stored)
    }

    /// The name of the long flag without its dashes: `batch-size`, `dataset.file`.
    pub fn flag(&self) -> String {
        flag(self.name)
    }

    /// The flag's other spellings: with `_`, and those of its old names.
    pub fn flag_aliases(&self) -> Vec<String> {
        let mut aliases = Vec::new();
        for name in self.spellings() {
            aliases.extend([flag(name), name.to_string()]);
        }
        aliases.dedup();
        aliases.retain(|alias| *alias != self.flag());
        aliases
    }

    /// The environment variable: `NUMALIGN_BATCH_SIZE`, `NUMALIGN_DATASET_FILE`.
    pub fn env_name(&self) -> String {
        variable(self.name)
    }

    /// The key's name and its old ones.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = &'static str> {
        [self.name].into_iter().chain(self.deprecated.iter().copied())
    }
}

/// A key's name, in any spelling, as a flag without its dashes.
pub(crate) fn flag(name: &str) -> String {
    name.replace('_', "-")
}

/// A key's name, in any spelling, as an environment variable.
pub(crate) fn variable(name: &str) -> String {
    format!("{ENV_PREFIX}{}", name.to_ascii_uppercase().replace('.', "_"))
}

/// Every key, in the order in which they are shown.
pub fn keys() -> &'static [Key] {
    KEYS
}

/// The key of that name, or of that old name.
pub fn key(name: &str) -> Option<&'static Key> {
    keys().iter().find(|key| key.spellings().any(|spelling| spelling == name))
}

/// The key that an environment variable sets, and the spelling of its name.
pub(crate) fn key_of_variable(name: &str) -> Option<(&'static Key, &'static str)> {
    let mut all = keys().iter().flat_map(|key| key.spellings().map(move |spelling| (key, spelling)));
    all.find(|(_, spelling)| variable(spelling) == name)
}

/// A value as one phrase for people; `none` where there is none.
pub(crate) fn phrase(value: &Json) -> String {
    match value {
        Json::Null => "none".to_string(),
        Json::String(text) => text.clone(),
        Json::Array(items) => format!("[{}]", items.iter().map(phrase).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_in_every_spelling() {
        let names: BTreeSet<&str> = keys().iter().map(|key| key.name).collect();
        let flags: BTreeSet<String> = keys().iter().map(Key::flag).collect();
        let variables: BTreeSet<String> = keys().iter().map(Key::env_name).collect();
        for count in [names.len(), flags.len(), variables.len()] {
            assert_eq!(count, keys().len());
        }
        assert!(names.len() >= 59);
    }

    #[test]
    fn spellings_follow_the_name() {
        let batch = key("batch_size").unwrap();
        assert_eq!(batch.flag(), "batch-size");
        assert_eq!(batch.flag_aliases(), ["batch_size"]);
        assert_eq!(batch.env_name(), "NUMALIGN_BATCH_SIZE");
        let file = key("dataset.file").unwrap();
        assert_eq!(file.flag(), "dataset.file");
        assert!(file.flag_aliases().is_empty());
        assert_eq!(file.env_name(), "NUMALIGN_DATASET_FILE");
        assert_eq!(file.default_text(), "none");
    }

    #[test]
    fn old_spellings_are_the_same_key() {
        let pooling = key("readout").unwrap();
        assert_eq!((pooling.name, pooling.stored()), ("pooling", Some("readout")));
        assert_eq!(pooling.flag_aliases(), ["readout"]);
        for (variable, spelling) in [("NUMALIGN_READOUT", "readout"), ("NUMALIGN_POOLING", "pooling")] {
            assert_eq!(
                key_of_variable(variable).map(|(key, spelling)| (key.name, spelling)),
                Some(("pooling", spelling))
            );
        }
        assert_eq!(pooling.env_name(), "NUMALIGN_POOLING");
    }

    #[test]
    fn fixed_defaults_are_valid() {
        for key in keys() {
            let is_fixed = matches!(key.default, KeyDefault::Value(_));
            assert_eq!((key.about)().default.is_some(), is_fixed, "{}", key.name);
        }
    }

    #[test]
    fn help_is_one_line_without_a_full_stop() {
        for key in keys() {
            assert!(!key.help.is_empty() && !key.help.contains('\n'), "{}", key.name);
            assert!(!key.help.ends_with('.') && key.help.len() <= 100, "{}", key.name);
        }
    }
}
