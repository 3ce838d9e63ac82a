//! A resolved configuration as a YAML file that loads back to the same one.
//! Called by the `cli` for `config show`.

use serde_yaml::{Mapping, Value};

use crate::keys::keys;
use crate::types::Config;

/// The configuration as YAML: every key of the table, in its order, unset ones as `null`.
pub fn to_yaml(config: &Config) -> String {
    let mut top = Mapping::new();
    for key in keys() {
        let value = key.value(config);
        let Some((group, inner)) = key.name.split_once('.') else {
            top.insert(key.name.into(), value);
            continue;
        };
        let members = top.entry(group.into()).or_insert_with(|| Value::Mapping(Mapping::new()));
        if let Value::Mapping(members) = members {
            members.insert(inner.into(), value);
        }
    }
    match serde_yaml::to_string(&top) {
        Ok(text) => text,
        // Strings, numbers and lists always have a YAML form.
        Err(error) => format!("# not shown: {error}\n"),
    }
}
