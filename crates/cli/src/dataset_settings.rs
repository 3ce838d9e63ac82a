//! Settings that follow from a dataset where nobody gives them: the stage, how much is held out, the length of an epoch, the
//! ranges, and how many rows an evaluation is on. They are worked out once, before the run, and are settings like any other
//! from then on; a run that is continued takes those of its checkpoint.

use std::path::Path;
use std::sync::Arc;

use numalign_checkpoint::{Checkpoint, RunFolder};
use numalign_config::{Config, ConfigErrors, RUNS_FOLDER, Recipe, Resume, Solver, Source, Stage, draft, resolve_over};
use numalign_coordinator::{OpenedFiles, eval_file_options, table_options};
use numalign_data::dataset::survey::{Survey, survey};
use numalign_data::dataset::{open_finding_stage, reads_alike};
use numalign_data::{Dataset, Side};

use crate::console::note;
use crate::error::CliError;
use crate::settings::RunSettings;

/// The share of a file's rows that is held out where nobody says otherwise.
const EVAL_SHARE: f64 = 0.1;

/// Rows that an evaluation is on at most, where nobody says otherwise.
const MOST_EVALUATED: u64 = 10_000;

/// Folds in which the ridge is chosen, and the training rows up to which it is: of more, an eighth is as good a choice.
const RIDGE_FOLDS: usize = 10;
const MOST_ROWS_IN_FOLDS: u64 = 8192;

/// What the sources of these settings are called in messages.
const DATASET: &str = "worked out from dataset.file";
const CHECKPOINT: &str = "the checkpoint";

/// What a run that is continued takes from its checkpoint where nobody gives it.
const OF_A_CHECKPOINT: &[&str] = &[
    "stage",
    "num_batches",
    "min_val",
    "max_val",
    "input_ranges",
    "ridge_folds",
    "dataset.input",
    "dataset.output",
    "dataset.missing",
    "dataset.decimal_comma",
    "dataset.eval_share",
];

/// File, environment and flags, resolved over what follows from the dataset, if there is one.
pub fn resolve_with_dataset(
    mut yaml: Option<Source>,
    mut env: Source,
    mut flags: Source,
    wrong: impl Fn(ConfigErrors) -> CliError,
) -> Result<RunSettings, CliError> {
    let all: Vec<Source> = yaml.iter().chain([&env, &flags]).cloned().collect();
    if draft(&all).is_none_or(|config| config.run.dataset_file.is_none()) {
        return Ok(resolve_over(Vec::new(), yaml, env, flags).map_err(wrong)?.into());
    }
    for source in yaml.iter_mut().chain([&mut env, &mut flags]) {
        source.forget_auto("min_val");
        source.forget_auto("max_val");
    }
    let given: Vec<Source> = yaml.iter().chain([&env, &flags]).cloned().collect();
    let is_given = |key: &str| given.iter().any(|source| source.is_set(key));
    let with = |weaker: &[Source]| draft(&[weaker, given.as_slice()].concat());

    let (mut weaker, mut told) = (Vec::new(), None);
    let mut file = TrainingFile::default();
    if !is_given("stage")
        && let Some(mut config) = with(&[])
    {
        hold_out_by_default(&mut config, is_given);
        let stage = file.stage(&config)?;
        weaker.push(Source::worked_out(DATASET, [("stage", stage.to_string())]));
        told = Some(format!("stage {stage}: {}", why(stage)));
    }
    let continued = match with(&weaker) {
        Some(config) => continued_recipe(&config)?,
        None => None,
    };
    if let Some(line) = told.filter(|_| continued.is_none()) {
        note!("{line}");
    }
    weaker.extend(continued.as_ref().map(|recipe| Source::of_recipe(CHECKPOINT, recipe, OF_A_CHECKPOINT)));
    let mut held_out = None;
    let mut rows = 0;
    if let Some(config) = with(&weaker) {
        let is_set = |key: &str| is_given(key) || (continued.is_some() && OF_A_CHECKPOINT.contains(&key));
        let found = Found::of(config, &mut file, is_set)?;
        (rows, held_out) = (found.held_out_rows, found.eval_file);
        weaker.push(found.settings);
    }
    let mut config = resolve_over(weaker, yaml, env, flags).map_err(wrong)?;
    if rows > 0 {
        config.run.eval_samples = config.run.eval_samples.min(rows);
        config.run.eval_count = config.run.eval_count.min(rows);
    }
    let files = OpenedFiles { rows: file.read_as(&config.recipe), held_out };
    Ok(RunSettings { config, files })
}

/// The file of a configuration that has one.
fn file_of(config: &Config) -> &Path {
    config.run.dataset_file.as_deref().unwrap_or(Path::new(""))
}

fn why(stage: Stage) -> &'static str {
    match stage {
        Stage::Nn => "every input of the dataset is a number",
        Stage::Text => "the inputs of the dataset are texts without marked numbers",
        Stage::Mixed => "the inputs of the dataset have marked numbers",
    }
}

/// The training file, read again only where it turns out that it has to be read in another way.
#[derive(Default)]
struct TrainingFile {
    read: Option<(Recipe, Arc<Dataset>)>,
}

impl TrainingFile {
    /// Reads it, and says what stage its inputs are for.
    fn stage(&mut self, config: &Config) -> Result<Stage, CliError> {
        let (dataset, stage) = open_finding_stage(file_of(config), &config.recipe, &table_options(config))?;
        self.read = Some((Recipe { stage, ..config.recipe.clone() }, Arc::new(dataset)));
        Ok(stage)
    }

    /// As it was read, if that is how `recipe` reads it.
    fn read_as(&self, recipe: &Recipe) -> Option<Arc<Dataset>> {
        let (as_read, dataset) = self.read.as_ref()?;
        reads_alike(as_read, recipe).then(|| dataset.clone())
    }

    fn dataset(&mut self, config: &Config) -> Result<Arc<Dataset>, CliError> {
        if let Some(dataset) = self.read_as(&config.recipe) {
            return Ok(dataset);
        }
        let dataset = Arc::new(Dataset::open(file_of(config), &config.recipe, &table_options(config))?);
        self.read = Some((config.recipe.clone(), dataset.clone()));
        Ok(dataset)
    }
}

/// A part of the rows, unless somebody says otherwise; answers whether it came to that.
fn hold_out_by_default(config: &mut Config, is_set: impl Fn(&str) -> bool) -> bool {
    let is_shared_out = config.run.dataset_eval_file.is_none() && config.recipe.dataset_shuffle;
    if is_set("dataset.eval_share") || !is_shared_out {
        return false;
    }
    config.recipe.dataset_eval_share = Some(EVAL_SHARE);
    true
}

/// The recipe of the checkpoint that the configuration continues from. What is wrong with it is said when the run starts.
fn continued_recipe(config: &Config) -> Result<Option<Recipe>, CliError> {
    let checkpoint = match &config.run.resume {
        None => None,
        Some(Resume::File(path)) => Checkpoint::read(path).ok(),
        Some(Resume::Auto) => {
            let folder = Path::new(RUNS_FOLDER).join(&config.run.run_id);
            if folder.is_dir() {
                RunFolder::open(&folder)?.newest_valid()?.0.map(|(_, checkpoint)| checkpoint)
            } else {
                None
            }
        }
    };
    Ok(checkpoint.map(|checkpoint| checkpoint.identity.recipe))
}

/// What follows from the rows.
struct Found {
    settings: Source,
    held_out_rows: u64,
    /// `dataset.eval_file`, where there is one.
    eval_file: Option<Arc<Dataset>>,
}

impl Found {
    fn of(mut config: Config, file: &mut TrainingFile, is_set: impl Fn(&str) -> bool) -> Result<Self, CliError> {
        let mut settings: Vec<(&'static str, String)> = Vec::new();
        if hold_out_by_default(&mut config, &is_set) {
            settings.push(("dataset.eval_share", EVAL_SHARE.to_string()));
        }
        let survey = survey(&*file.dataset(&config)?, &config.recipe)?;
        let eval_file = match &config.run.dataset_eval_file {
            Some(path) => Some(Arc::new(Dataset::open_held_out(path, &config.recipe, &eval_file_options(&config))?)),
            None => None,
        };
        let held_out_rows = eval_file.as_ref().map_or(survey.held_out_rows, |rows| rows.len(Side::HeldOut));
        if !is_set("num_batches") {
            let steps = survey.train_rows.div_ceil(config.recipe.batch_size as u64);
            settings.push(("num_batches", steps.to_string()));
        }
        if !is_set("ridge_folds") && is_solved(&config.recipe) && survey.train_rows <= MOST_ROWS_IN_FOLDS {
            settings.push(("ridge_folds", RIDGE_FOLDS.to_string()));
        }
        settings.extend(ranges(&survey, &is_set));
        for key in ["eval_samples", "eval_count"] {
            if !is_set(key) && held_out_rows > 0 {
                settings.push((key, held_out_rows.min(MOST_EVALUATED).to_string()));
            }
        }
        Ok(Self { settings: Source::worked_out(DATASET, settings), held_out_rows, eval_file })
    }
}

/// Whether a solution takes all its places at once.
fn is_solved(recipe: &Recipe) -> bool {
    recipe.solver != Solver::Adam && recipe.probe.is_none()
}

/// The ranges that nobody gave. Where both ends are given, they hold for the inputs too.
fn ranges(survey: &Survey, is_set: &impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    let mut told = Vec::new();
    for (key, value) in [("min_val", survey.targets.min), ("max_val", survey.targets.max)] {
        if !is_set(key) {
            settings.push((key, format!("{value:?}")));
            told.push(format!("{key} {value:?}"));
        }
    }
    if settings.is_empty() {
        return settings;
    }
    let mut line = format!("{} from the targets of {} training rows", told.join(", "), survey.train_rows);
    if !is_set("input_ranges") && !survey.inputs.is_empty() {
        let spans: Vec<String> = survey.inputs.iter().map(|span| format!("{:?}..{:?}", span.min, span.max)).collect();
        line.push_str(&format!("; numbers in the inputs: {}", spans.join(", ")));
        settings.push(("input_ranges", spans.join(",")));
    }
    note!("{line}");
    settings
}
