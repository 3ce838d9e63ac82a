//! What a key of the configuration is, and its spellings. The rows are in `table`.
//! Read by `layer` (which names exist), `resolve` (defaults), `show`, and the `cli` (its flags).

use serde_yaml::Value;

use crate::table::KEYS;
use crate::types::Config;

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyDefault {
    /// This value, as a user would write it.
    Value(&'static str),
    /// Worked out from other settings, as these words say.
    Worked(&'static str),
    /// Not set.
    Unset,
}

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// As in a YAML file; a nested key has a dot (`dataset.file`).
    pub name: &'static str,
    pub default: KeyDefault,
    /// What stands for the value in a usage text, such as `N` or `true|false`.
    pub value_name: &'static str,
    /// One line for people.
    pub help: &'static str,
    pub(crate) shown: fn(&Config) -> Value,
}

impl Key {
    /// The default as one phrase for help texts.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            KeyDefault::Value(text) | KeyDefault::Worked(text) => text,
            KeyDefault::Unset => "none",
        }
    }

    /// The name of the long flag without its dashes: `batch-size`, `dataset.file`.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The flag's other spelling (`batch_size`), where it differs.
    pub fn flag_alias(&self) -> Option<&'static str> {
        self.name.contains('_').then_some(self.name)
    }

    /// The environment variable: `NUMALIGN_BATCH_SIZE`, `NUMALIGN_DATASET_FILE`.
    pub fn env_name(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.to_ascii_uppercase().replace('.', "_"))
    }

    /// The key's value in `config`, as YAML; null where it is not set.
    pub(crate) fn value(&self, config: &Config) -> Value {
        (self.shown)(config)
    }

    /// The key's value in `config` as one phrase for people; `none` where it is not set.
    pub fn show(&self, config: &Config) -> String {
        phrase(&self.value(config))
    }
}

/// What every environment variable of numalign begins with.
pub const ENV_PREFIX: &str = "NUMALIGN_";

/// Every key, in the order in which they are shown.
pub fn keys() -> &'static [Key] {
    KEYS
}

/// The key of that name.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn phrase(value: &Value) -> String {
    match value {
        Value::Null => "none".to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => value.clone(),
        Value::Sequence(items) => {
            let items: Vec<String> = items.iter().map(phrase).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Mapping(_) | Value::Tagged(_) => String::new(),
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
        assert_eq!(names.len(), 59);
        assert_eq!(flags.len(), 59);
        assert_eq!(variables.len(), 59);
    }

    #[test]
    fn spellings_follow_the_name() {
        let batch = key("batch_size").unwrap();
        assert_eq!(batch.flag(), "batch-size");
        assert_eq!(batch.flag_alias(), Some("batch_size"));
        assert_eq!(batch.env_name(), "NUMALIGN_BATCH_SIZE");
        let file = key("dataset.file").unwrap();
        assert_eq!(file.flag(), "dataset.file");
        assert_eq!(file.flag_alias(), None);
        assert_eq!(file.env_name(), "NUMALIGN_DATASET_FILE");
        assert_eq!(file.default_text(), "none");
    }

    #[test]
    fn help_is_one_line_without_a_full_stop() {
        for key in keys() {
            assert!(!key.help.is_empty() && !key.help.contains('\n'), "{}", key.name);
            assert!(!key.help.ends_with('.') && key.help.len() <= 100, "{}", key.name);
        }
    }
}
