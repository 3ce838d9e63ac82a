//! The whole configuration of a run, as every other crate reads it.

use serde::{Deserialize, Serialize};

use crate::keys::{Recipe, RunSettings};

/// The settings of one run. [`crate::resolve`] gives valid ones; whoever changes a field, or takes a configuration from a
/// message, calls [`Config::check`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// What determines the bytes of the result, and travels in the checkpoint.
    pub recipe: Recipe,
    /// How the run is carried out; it never reaches the checkpoint.
    pub run: RunSettings,
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

    /// BLAKE3 of [`Config::digest_text`], hex.
    pub fn digest(&self) -> String {
        blake3::hash(self.digest_text().as_bytes()).to_hex().to_string()
    }
}
