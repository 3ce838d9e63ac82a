//! A run as the page reads it: from its configuration, or from what its checkpoints say.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use numalign_checkpoint::{Checkpoint, RunFolder};
use numalign_config::{Config, Key, RUNS_FOLDER, Recipe, keys};
use numalign_dashboard::{CheckpointFact, Facts, RunSource};
use numalign_data::{Domain, SampleStream};

use crate::error::CliError;

/// Held-out samples for the constant's error where the run does not say how many it takes.
const SAMPLES: u64 = 200;

/// A run with its folder.
pub struct WatchedRun {
    facts: Facts,
    folder: PathBuf,
    /// The final checkpoint.
    result: PathBuf,
    /// None where no checkpoint says.
    recipe: Option<Recipe>,
    /// Its samples are drawn, not rows of a file: those are read where they train, not once more for the page.
    is_generated: bool,
    samples: u64,
    /// Checkpoints that were read, with the time of their file.
    read: Mutex<HashMap<PathBuf, (SystemTime, CheckpointFact)>>,
}

impl WatchedRun {
    /// The run that `config` describes.
    pub fn of_config(config: &Config) -> Self {
        let folder = Path::new(RUNS_FOLDER).join(&config.run.run_id);
        let settings = keys().iter().map(|key| (key.name.to_owned(), key.show(config))).collect();
        let mut run = Self::of_recipe(&config.run.run_id, folder, Some(config.recipe.clone()), settings);
        run.result = config.run.model_path_save.clone();
        run.samples = config.run.eval_samples;
        run.is_generated = config.run.dataset_file.is_none();
        run
    }

    /// The run of that name in [`RUNS_FOLDER`], or in that folder, as its files have it.
    ///
    /// # Errors
    /// There is no such run.
    pub fn of_files(name: &str) -> Result<Self, CliError> {
        let given = Path::new(name);
        let folder = match given.is_dir() && given.components().count() > 1 {
            true => given.to_owned(),
            false => Path::new(RUNS_FOLDER).join(name),
        };
        let result = folder.with_extension("safetensors");
        if !folder.is_dir() && !result.is_file() {
            return Err(CliError::usage(format!(
                "there is no run `{name}`: neither {} nor {}",
                folder.display(),
                result.display()
            ))
            .with_hint(format!("runs of this folder: {}", names_or_none())));
        }
        let run_id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let newest = Checkpoint::read(&result).ok().or_else(|| newest_in(&folder));
        let is_generated = newest.as_ref().is_some_and(|found| found.identity.dataset_digest.is_none());
        let recipe = newest.map(|checkpoint| checkpoint.identity.recipe);
        let settings = recipe.as_ref().map(settings_of).unwrap_or_default();
        Ok(Self { is_generated, ..Self::of_recipe(&run_id, folder, recipe, settings) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.facts.run_id
    }

    fn of_recipe(run_id: &str, folder: PathBuf, recipe: Option<Recipe>, settings: BTreeMap<String, String>) -> Self {
        let of = recipe.as_ref();
        let facts = Facts {
            run_id: run_id.to_owned(),
            model: of.map_or_else(String::new, |recipe| recipe.model_name.clone()),
            stage: of.map_or_else(String::new, |recipe| recipe.stage.to_string()),
            total_steps: of.map_or(0, Recipe::total_steps),
            steps_per_epoch: of.map_or(0, |recipe| recipe.num_batches),
            batch_size: of.map_or(0, |recipe| recipe.batch_size as u64),
            settings,
        };
        let result = folder.with_extension("safetensors");
        Self { facts, folder, result, recipe, is_generated: true, samples: SAMPLES, read: Mutex::default() }
    }

    fn fact(&self, path: &Path) -> Option<CheckpointFact> {
        let metadata = path.metadata().ok()?;
        let modified = metadata.modified().ok()?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, fact)) = read.get(path)
            && *known == modified
        {
            return Some(fact.clone());
        }
        // One that is damaged or just goes is left out.
        let checkpoint = Checkpoint::read(path).ok()?;
        let fact = CheckpointFact {
            file: path.file_name()?.to_string_lossy().into_owned(),
            step: checkpoint.state.step(),
            bytes: metadata.len(),
            written: modified.duration_since(UNIX_EPOCH).ok()?.as_secs(),
            state_digest: checkpoint.state.digest().to_hex(),
        };
        read.insert(path.to_owned(), (modified, fact.clone()));
        Some(fact)
    }
}

impl RunSource for WatchedRun {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn constant_percent_of_range(&self) -> Option<f64> {
        let recipe = self.recipe.as_ref().filter(|_| self.is_generated)?;
        let stream = SampleStream::generated(recipe, Domain::Eval).ok()?;
        Some(100.0 * stream.constant_error(self.samples) / recipe.range())
    }

    fn checkpoints(&self) -> Vec<CheckpointFact> {
        let listed = list(&self.folder);
        let mut facts: Vec<CheckpointFact> = listed.iter().rev().filter_map(|(_, path)| self.fact(path)).collect();
        facts.extend(self.fact(&self.result));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.retain(|path, _| *path == self.result || listed.iter().any(|(_, known)| known == path));
        facts
    }
}

/// Checkpoints in a folder, newest first; nothing where it is not there. Opening it would make it.
fn list(folder: &Path) -> Vec<(u64, PathBuf)> {
    if !folder.is_dir() {
        return Vec::new();
    }
    RunFolder::open(folder).and_then(|folder| folder.list()).unwrap_or_default()
}

fn newest_in(folder: &Path) -> Option<Checkpoint> {
    list(folder).into_iter().find_map(|(_, path)| Checkpoint::read(&path).ok())
}

/// The keys that a checkpoint knows.
fn settings_of(recipe: &Recipe) -> BTreeMap<String, String> {
    let Ok(mut config) = Config::with(&[]) else {
        return BTreeMap::new();
    };
    config.recipe = recipe.clone();
    let stored = keys().iter().filter(|key: &&Key| key.stored().is_some());
    stored.map(|key| (key.name.to_owned(), key.show(&config))).collect()
}

/// Names of the runs in [`RUNS_FOLDER`], the newest first.
pub fn runs_of_this_folder() -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(RUNS_FOLDER).into_iter().flatten().flatten() {
        let record = entry.path().join("metrics.jsonl");
        if let Ok(written) = record.metadata().and_then(|metadata| metadata.modified()) {
            found.push((written, entry.file_name().to_string_lossy().into_owned()));
        }
    }
    found.sort();
    found.into_iter().rev().map(|(_, name)| name).collect()
}

fn names_or_none() -> String {
    let mut names = runs_of_this_folder();
    names.truncate(10);
    if names.is_empty() { format!("none; they lie in {RUNS_FOLDER}/") } else { names.join(", ") }
}
