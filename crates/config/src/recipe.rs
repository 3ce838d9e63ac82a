//! The recipe as it is stored in a checkpoint, and how two recipes differ.
//! Called by `checkpoint` (stores and compares), `coordinator` (config digest) and `cli`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::keys::keys;
use crate::types::Recipe;

impl Recipe {
    /// The recipe as canonical JSON: one line, fields in the order of the struct, floats in their
    /// shortest exact form. Equal recipes give equal bytes.
    pub fn digest_text(&self) -> String {
        match serde_json::to_string(self) {
            Ok(text) => text,
            // Every field has a JSON form: names are strings and floats are finite.
            Err(error) => format!("recipe without a JSON form: {error}"),
        }
    }

    /// Every key that differs, with this recipe's value and the other's, in the table's order.
    pub fn differences(&self, other: &Recipe) -> Vec<(String, String, String)> {
        let (mine, theirs) = (fields(self), fields(other));
        let names: BTreeSet<&String> = mine.keys().chain(theirs.keys()).collect();
        let mut found = Vec::new();
        for name in names {
            let (left, right) = (mine.get(name), theirs.get(name));
            if left == right {
                continue;
            }
            let (place, key) = key_of_field(name);
            found.push((place, (key, phrase(left), phrase(right))));
        }
        found.sort_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, difference)| difference).collect()
    }
}

fn fields(recipe: &Recipe) -> Map<String, Value> {
    match serde_json::to_value(recipe) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// A field's place in the table of keys and the key's name: `dataset_shuffle` is `dataset.shuffle`.
fn key_of_field(field: &str) -> (usize, String) {
    for (place, key) in keys().iter().enumerate() {
        if key.name.replace('.', "_") == field {
            return (place, key.name.to_string());
        }
    }
    (keys().len(), field.to_string())
}

fn phrase(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "none".to_string(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| phrase(Some(item))).collect();
            format!("[{}]", items.join(", "))
        }
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Layer;
    use crate::resolve::resolve;
    use crate::types::{Stage, Task};

    fn recipe() -> Recipe {
        let none: [(&str, String); 0] = [];
        let config = resolve(None, Layer::from_env([]), Layer::from_flags(none)).unwrap();
        config.recipe
    }

    #[test]
    fn the_stored_text_is_pinned() {
        // Checkpoints hold these bytes: a change here is a change of the format.
        let expected = concat!(
            r#"{"stage":"nn","model_name":"demo","num_epochs":60,"num_batches":10,"batch_size":8,"#,
            r#""micro_batch_size":8,"lr":0.003,"shl":true,"lr_step_epochs":10,"lr_gamma":0.5,"#,
            r#""min_val":0.0,"max_val":100.0,"decimals":4,"value_encoding":"standard","#,
            r#""numeric_positions":1,"mixed_tasks":["min"],"mixed_max_numbers":10,"#,
            r#""train_input_projection":true,"train_output_projection":true,"solver":"adam","#,
            r#""readout":"last","loss":"mse","seed":0,"dataset_shuffle":true}"#
        );
        assert_eq!(recipe().digest_text(), expected);
    }

    #[test]
    fn later_fields_are_stored_where_they_apply() {
        let flags = [("value_encoding", "fourier"), ("loss", "huber"), ("layer", "3"), ("train_layer_norms", "true")];
        let flags = Layer::from_flags(flags.map(|(name, value)| (name, value.to_string())));
        let recipe = resolve(None, Layer::from_env([]), flags).unwrap().recipe;
        let text = recipe.digest_text();
        let end = r#""dataset_shuffle":true,"fourier_periods":8,"huber_delta":1.0,"layer":3,"train_layer_norms":true}"#;
        assert!(text.ends_with(end), "{text}");
        assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe);
    }

    #[test]
    fn floats_come_back_exactly() {
        let mut recipe = recipe();
        // These lose their last bit in a JSON reader that takes short cuts.
        for lr in [51.24817837550540_4, 93.3113703768803, 5e-324, 0.1 + 0.2, f64::MAX] {
            recipe.lr = lr;
            let back: Recipe = serde_json::from_str(&recipe.digest_text()).unwrap();
            assert_eq!(back.lr.to_bits(), lr.to_bits());
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = recipe().digest_text().replace("\"seed\":0", "\"seed\":0,\"momentum\":1");
        let error = serde_json::from_str::<Recipe>(&text).unwrap_err().to_string();
        assert!(error.contains("momentum"), "{error}");
    }

    #[test]
    fn equal_recipes_do_not_differ() {
        assert_eq!(recipe().differences(&recipe()), Vec::new());
    }

    #[test]
    fn differences_name_the_keys_and_both_values() {
        let mut other = recipe();
        other.dataset_shuffle = false;
        other.stage = Stage::Mixed;
        other.lr = 0.01;
        other.mixed_tasks = vec![Task::Min, Task::Count];
        let row = |key: &str, mine: &str, theirs: &str| (key.to_string(), mine.to_string(), theirs.to_string());
        let expected = vec![
            row("stage", "nn", "mixed"),
            row("lr", "0.003", "0.01"),
            row("mixed_tasks", "[min]", "[min, count]"),
            row("dataset.shuffle", "true", "false"),
        ];
        assert_eq!(recipe().differences(&other), expected);
    }

    #[test]
    fn every_field_is_a_key() {
        for field in fields(&recipe()).keys() {
            let (place, _) = key_of_field(field);
            assert!(place < keys().len(), "{field} is not in the table");
        }
    }
}
