//! A configuration as a YAML file that loads back to the same one.

use serde_yaml::{Mapping, Value};

use crate::config::Config;
use crate::key::{Key, keys, phrase};
use crate::keys::{Recipe, Settings};

/// The configuration as YAML: every key of the table that has a choice, in its order, unset ones as `null`.
pub fn to_yaml(config: &Config) -> String {
    yaml_of(&Settings::of(&config.recipe, Some(&config.run)), keys().iter().filter(|key| key.is_settable()))
}

/// A recipe as YAML: the keys that a checkpoint stores, in the table's order, unset ones as `null`.
pub fn recipe_to_yaml(recipe: &Recipe) -> String {
    yaml_of(&Settings::of(recipe, None), keys().iter().filter(|key| key.stored().is_some()))
}

fn yaml_of<'a>(settings: &Settings, keys: impl Iterator<Item = &'a Key>) -> String {
    let mut top = Mapping::new();
    for key in keys {
        let value = serde_yaml::to_value((key.shown)(settings)).unwrap_or(Value::Null);
        let Some((group, inner)) = key.name.split_once('.') else {
            top.insert(key.name.into(), value);
            continue;
        };
        let members = top.entry(group.into()).or_insert_with(|| Value::Mapping(Mapping::new()));
        if let Value::Mapping(members) = members {
            members.insert(inner.into(), value);
        }
    }
    // Strings, numbers and lists always have a YAML form.
    serde_yaml::to_string(&top).unwrap_or_else(|error| format!("# not shown: {error}\n"))
}

impl Key {
    /// The key's value in `config` as one phrase for people; `none` where it is not set.
    pub fn show(&self, config: &Config) -> String {
        phrase(&(self.shown)(&Settings::of(&config.recipe, Some(&config.run))))
    }
}
