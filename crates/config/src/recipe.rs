//! What follows from a recipe, the recipe as it is stored in a checkpoint, and how two recipes differ.

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::choice::{Distribution, Stage, TargetEncoding, Task};
use crate::key::{keys, phrase};
use crate::keys::{Recipe, Settings};
use crate::span::Span;

impl Recipe {
    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.num_epochs * self.num_batches
    }

    /// Micro-batches of one step.
    pub fn micro_batches(&self) -> usize {
        self.batch_size / self.micro_batch_size
    }

    /// Whether the answer to a question is one of its numbers, so that a prediction can mean the right one or another: of
    /// the smallest and the largest it is, a mean or a count is not.
    pub fn answer_is_listed(&self) -> bool {
        self.stage == Stage::Mixed && self.mixed_tasks.iter().any(|task| matches!(task, Task::Min | Task::Max))
    }

    /// Width of the value range.
    pub fn range(&self) -> f64 {
        self.max_val - self.min_val
    }

    /// The range of the number at `place` in an input, counted from 0.
    pub fn input_range(&self, place: usize) -> Span {
        let own = self.input_ranges.get(place).or(self.input_ranges.last()).copied();
        own.unwrap_or(Span { min: self.min_val, max: self.max_val })
    }

    /// How targets are encoded: `signlog` where the values are, else `linear`, unless `target` says otherwise.
    pub fn target_encoding(&self) -> TargetEncoding {
        self.target.unwrap_or(TargetEncoding::following(self.value_encoding))
    }

    /// How generated values are drawn: `log` where the values are encoded `signlog`, else `uniform`, unless
    /// `distribution` says otherwise.
    pub fn value_distribution(&self) -> Distribution {
        self.distribution.unwrap_or(Distribution::following(self.value_encoding))
    }

    /// The fields that are stored, in their order in the checkpoint.
    fn stored(&self) -> Vec<(&'static str, Value)> {
        let settings = Settings::of(self, None);
        let mut fields = Vec::new();
        for key in keys() {
            let (Some(name), value) = (key.stored(), (key.plain)(&settings)) else { continue };
            let is_omitted =
                key.sparse.is_some() && (value.is_null() || Some(&value) == (key.about)().default.as_ref());
            if !is_omitted {
                fields.push((key.sparse, name, value));
            }
        }
        // Those of place 0 stand where they are in the table.
        fields.sort_by_key(|(place, ..)| place.unwrap_or(0));
        fields.into_iter().map(|(_, name, value)| (name, value)).collect()
    }

    /// The recipe as canonical JSON: one line, fields in the order in which they are stored, floats in their shortest
    /// exact form. Equal recipes give equal bytes.
    pub fn digest_text(&self) -> String {
        // Every field has a JSON form: names are strings and floats are finite.
        serde_json::to_string(self).unwrap_or_else(|error| format!("recipe without a JSON form: {error}"))
    }

    /// Every key that differs, with this recipe's value and the other's, in the table's order. What is not stored counts
    /// as `none`.
    pub fn differences(&self, other: &Recipe) -> Vec<(String, String, String)> {
        let (mine, theirs) = (self.stored(), other.stored());
        let value = |fields: &[(&str, Value)], name: &str| {
            fields.iter().find(|(stored, _)| *stored == name).map_or(Value::Null, |(_, value)| value.clone())
        };
        let mut found = Vec::new();
        for key in keys() {
            let Some(stored) = key.stored() else { continue };
            let (left, right) = (value(&mine, stored), value(&theirs, stored));
            if left != right {
                found.push((key.name.to_string(), phrase(&left), phrase(&right)));
            }
        }
        found
    }
}

impl Serialize for Recipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.stored())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::key::Key;

    fn recipe() -> Recipe {
        Config::with(&[]).unwrap().recipe
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
        let recipe = Config::with(&flags).unwrap().recipe;
        let text = recipe.digest_text();
        let end = r#""dataset_shuffle":true,"fourier_periods":8,"huber_delta":1.0,"layer":3,"train_layer_norms":true}"#;
        assert!(text.ends_with(end), "{text}");
        assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe);
    }

    #[test]
    fn rounded_products_are_stored_and_bind() {
        let rounded = Config::with(&[("arithmetic", "bf16")]).unwrap().recipe;
        let text = rounded.digest_text();
        assert!(text.ends_with(r#""dataset_shuffle":true,"arithmetic":"bf16"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), rounded);
        let [(key, mine, theirs)] = &recipe().differences(&rounded)[..] else { panic!("one key differs") };
        assert_eq!((key.as_str(), mine.as_str(), theirs.as_str()), ("arithmetic", "none", "bf16"));
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
        let mut config = Config::with(&[]).unwrap();
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
        let mut full = recipe();
        (full.fourier_periods, full.log_threshold, full.huber_delta) = (Some(1), Some(1.0), Some(1.0));
        let stored: Vec<&str> = keys().iter().filter_map(Key::stored).collect();
        for (field, _) in full.stored() {
            assert!(stored.contains(&field), "{field} is not in the table");
        }
    }

    #[test]
    fn the_recipe_of_an_old_checkpoint_is_read() {
        let recipe: Recipe = serde_json::from_str(&recipe().digest_text()).unwrap();
        assert_eq!(recipe.pooling, crate::choice::Pooling::Last);
        assert_eq!(recipe.dtype, crate::choice::Dtype::F32);
        assert_eq!(recipe.arithmetic, crate::choice::CpuArithmetic::F32);
        let renamed = recipe.digest_text().replace("readout", "pooling");
        assert!(serde_json::from_str::<Recipe>(&renamed).is_err(), "one name in the checkpoint");
    }
}
