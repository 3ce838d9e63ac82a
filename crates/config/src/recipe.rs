//! The recipe as it is stored in a checkpoint, and how two recipes differ.
//! Called by `checkpoint` (stores and compares), `coordinator` (config digest) and `cli`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::keys::keys;
use crate::layer::Layer;
use crate::problem::ConfigErrors;
use crate::resolve::resolve;
use crate::show::to_yaml;
use crate::types::{Config, Recipe};

/// The key of the run's settings that a bare recipe is completed with; it reaches no file.
const NO_RUN: [(&str, &str); 1] = [("run_id", "check")];

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

    /// Applies every rule of the configuration to a recipe that came from a file or a message: nothing that [`resolve`]
    /// would refuse gets by.
    ///
    /// # Errors
    /// All the reasons why not.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        let mut flags = Vec::new();
        for (name, value) in fields(self) {
            flags.push((key_of_field(&name).1, phrase(Some(&value))));
        }
        flags.extend(NO_RUN.map(|(key, value)| (key.to_string(), value.to_string())));
        resolve(None, Layer::from_env([]), Layer::from_flags(flags)).map(|_| ())
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

impl Config {
    /// All that decides the bytes of this run's states, as text: the recipe, and the evaluations where there are some.
    pub fn digest_text(&self) -> String {
        let recipe = self.recipe.digest_text();
        match self.run.eval_every {
            0 => recipe,
            every => format!("{recipe} eval_every {every} eval_samples {}", self.run.eval_samples),
        }
    }

    /// As [`Recipe::check`], for a whole configuration.
    ///
    /// # Errors
    /// All the reasons why not.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        self.recipe.check()?;
        let shown = Layer::from_yaml_text(Path::new("the configuration"), &to_yaml(self));
        resolve(Some(shown), Layer::from_env([]), Layer::from_flags::<&str>([])).map(|_| ())
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
    fn a_recipe_from_elsewhere_is_checked_by_the_same_rules() {
        let good = recipe();
        good.check().unwrap();
        type Spoil = fn(&mut Recipe);
        let spoiled: [(&str, Spoil); 8] = [
            ("micro_batch_size", |recipe| recipe.micro_batch_size = 0),
            ("micro_batch_size", |recipe| recipe.micro_batch_size = 3),
            ("num_", |recipe| (recipe.num_epochs, recipe.num_batches) = (1 << 52, 1 << 52)),
            ("lr", |recipe| recipe.lr = -1.0),
            ("max_val", |recipe| recipe.max_val = recipe.min_val),
            ("lr_step_epochs", |recipe| recipe.lr_step_epochs = 0),
            ("mixed_tasks", |recipe| recipe.mixed_tasks = Vec::new()),
            ("mixed_max_numbers", |recipe| recipe.mixed_max_numbers = usize::MAX),
        ];
        for (key, spoil) in spoiled {
            let mut recipe = good.clone();
            spoil(&mut recipe);
            let said = recipe.check().unwrap_err().to_string();
            assert!(said.contains(key), "{key}: {said}");
        }
        let nothing: [(&str, String); 0] = [];
        let mut config = resolve(None, Layer::from_env([]), Layer::from_flags(nothing)).unwrap();
        config.check().unwrap();
        config.run.heartbeat = std::time::Duration::ZERO;
        assert!(config.check().unwrap_err().to_string().contains("heartbeat"));
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
