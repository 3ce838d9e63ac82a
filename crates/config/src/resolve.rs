//! Layers become one validated [`Config`], or all the reasons why not.
//! Called by the `cli` once per command, and by the tests of other crates through `Layer`s.

use std::path::PathBuf;

use crate::checks;
use crate::encoding::{self, Encoders};
use crate::layer::{Layer, Origin};
use crate::parse::{self, Fault};
use crate::problem::{ConfigErrors, Problem};
use crate::raw::Raw;
use crate::reader::Reader;
use crate::types::{Config, Recipe, RunSettings, Solver, Stage};

/// Whole numbers up to here are exact as floats too.
pub(crate) const EXACT: u64 = (1 << 53) - 1;

/// Bounds that no sensible run meets; they keep a slip from asking for all the memory.
const MOST_SAMPLES_PER_STEP: u64 = 1 << 24;
const MOST_WORKERS: u64 = 65_536;
const MOST_PREFETCHED: u64 = 1 << 16;
const MOST_DEVICES: u64 = 1024;
const MOST_POSITIONS: u64 = 1 << 20;
const MOST_EVALUATED: u64 = 1 << 20;

/// Defaults of `alternate`. Solutions in between made the result no better: a projector that is replaced takes the input
/// side off its way (mixed on the demo model, 1,500 steps: 1.29 % at the end only, 1.32 every 200 steps, 1.44 every 100).
const DEFAULT_SOLVE_EVERY: u64 = 0;
const DEFAULT_SOLVE_SAMPLES: u64 = 4096;

/// Fewest samples of a solution: some are held out to choose the ridge.
pub(crate) const LEAST_SOLVED: u64 = 16;

/// Puts the layers together: flags win over the environment, which wins over the file; what is
/// still missing gets its default. Every problem is reported, not only the first.
pub fn resolve(yaml: Option<Layer>, env: Layer, flags: Layer) -> Result<Config, ConfigErrors> {
    let file_stem = yaml.as_ref().and_then(file_stem);
    let mut layers: Vec<Layer> = yaml.into_iter().collect();
    layers.extend([env, flags]);
    let mut reader = Reader::new(layers);
    let stage = reader.value("stage", parse::choice::<Stage>);
    let recipe = read_recipe(&mut reader, stage);
    let run = read_run(&mut reader, stage, file_stem);
    let problems = reader.into_problems();
    match (recipe, run) {
        (Some(recipe), Some(run)) if problems.is_empty() => Ok(Config { recipe, run }),
        _ => Err(ConfigErrors::new(problems)),
    }
}

/// The path of the file and its name without the extension.
type FileStem = (PathBuf, String);

fn file_stem(layer: &Layer) -> Option<FileStem> {
    match layer.origin() {
        Origin::File(path) => {
            let stem = path.file_stem()?.to_string_lossy().into_owned();
            Some((path.clone(), stem))
        }
        Origin::Environment | Origin::Flags => None,
    }
}

fn read_recipe(reader: &mut Reader, stage: Option<Stage>) -> Option<Recipe> {
    let from_one = |raw: &Raw| parse::whole(raw, 1, EXACT);
    let model_name = reader.value("model_name", parse::text);
    let num_epochs = reader.value("num_epochs", from_one);
    let num_batches = reader.value("num_batches", from_one);
    let batch_size = reader.value("batch_size", |raw| count(raw, 1, MOST_SAMPLES_PER_STEP));
    let micro_batch_size = reader.value_or(
        "micro_batch_size",
        |raw| count(raw, 1, MOST_SAMPLES_PER_STEP),
        batch_size.map(default_micro_batch),
    );
    let lr = reader.value("lr", parse::positive_float);
    let shl = reader.value("shl", parse::boolean);
    let lr_step_epochs = reader.value("lr_step_epochs", from_one);
    let lr_gamma = reader.value("lr_gamma", parse::positive_float);
    let min_val = reader.value("min_val", parse::bound);
    let max_val = reader.value("max_val", parse::bound);
    let decimals = reader.value_or("decimals", decimals, stage.map(default_decimals));
    let encoders = encoding::read(reader, min_val, max_val);
    let numeric_positions = reader.value("numeric_positions", |raw| count(raw, 1, MOST_POSITIONS));
    let mixed_tasks = reader.value("mixed_tasks", parse::tasks);
    let mixed_max_numbers = reader.value("mixed_max_numbers", |raw| count(raw, 1, 1000));
    let trains_input = stage.map(|stage| stage != Stage::Text);
    let train_input_projection = reader.value_or("train_input_projection", parse::boolean, trains_input);
    let train_output_projection = reader.value("train_output_projection", parse::boolean);
    let solver = reader.value("solver", parse::choice).map(|solver| fitting(solver, train_input_projection));
    let solve_every = reader.optional("solve_every", |raw| parse::whole(raw, 0, EXACT));
    let solve_samples = reader.optional("solve_samples", |raw| parse::whole(raw, LEAST_SOLVED, EXACT));
    let readout = reader.value("readout", parse::choice);
    let layer = reader.value("layer", parse::layer);
    let loss = reader.value("loss", parse::choice);
    let huber_delta = encoding::huber_delta(reader, loss);
    let train_layer_norms = reader.value("train_layer_norms", parse::boolean);
    let train_transformer = reader.value("train_transformer", parse::boolean);
    let seed = reader.value("seed", |raw| parse::whole(raw, 0, u64::MAX));
    let dataset_shuffle = reader.value("dataset.shuffle", parse::boolean);
    let dtype = reader.value("dtype", parse::choice);

    if !reader.lacks_a_source() {
        checks::run_length(reader, num_epochs, num_batches, batch_size);
        checks::micro_batch(reader, batch_size, micro_batch_size);
        checks::value_range(reader, stage, min_val, max_val, decimals);
        if train_layer_norms != Some(true) {
            checks::trained(reader, stage, train_input_projection, train_output_projection);
        }
        checks::solver(reader, solver, train_input_projection, train_output_projection);
        checks::solved_layer_norms(reader, solver, train_layer_norms);
        checks::solved_batch(reader, solver, batch_size, micro_batch_size);
        checks::solved_pass(reader, solver, num_epochs, num_batches, batch_size);
        checks::transformer(reader, train_transformer);
        checks::readout(reader, stage, readout);
        checks::loss(reader, loss, encoders.as_ref().map(Encoders::target_encoding));
    }
    let encoders = encoders?;
    Some(Recipe {
        stage: stage?,
        model_name: model_name?,
        num_epochs: num_epochs?,
        num_batches: num_batches?,
        batch_size: batch_size?,
        micro_batch_size: micro_batch_size?,
        lr: lr?,
        shl: shl?,
        lr_step_epochs: lr_step_epochs?,
        lr_gamma: lr_gamma?,
        min_val: min_val?,
        max_val: max_val?,
        decimals: decimals?,
        value_encoding: encoders.value_encoding,
        numeric_positions: numeric_positions?,
        mixed_tasks: mixed_tasks?,
        mixed_max_numbers: mixed_max_numbers?,
        train_input_projection: train_input_projection?,
        train_output_projection: train_output_projection?,
        solver: solver?,
        solve_every: for_alternate(solver?, solve_every?, DEFAULT_SOLVE_EVERY),
        solve_samples: for_alternate(solver?, solve_samples?, DEFAULT_SOLVE_SAMPLES),
        readout: readout?,
        loss: loss?,
        seed: seed?,
        dataset_shuffle: dataset_shuffle?,
        dtype: dtype?,
        fourier_periods: encoders.fourier_periods,
        log_threshold: encoders.log_threshold,
        target: encoders.target,
        distribution: encoders.distribution,
        huber_delta: huber_delta?,
        layer: layer?,
        train_layer_norms: train_layer_norms?,
    })
}

fn read_run(reader: &mut Reader, stage: Option<Stage>, file: Option<FileStem>) -> Option<RunSettings> {
    let from_one = |raw: &Raw| parse::whole(raw, 1, EXACT);
    let dataset_file = reader.optional("dataset.file", parse::path);
    let model_path_load = reader.optional("model_path_load", parse::path);
    let load_projections = reader.value("load_projections", parse::choice);
    let run_id = read_run_id(reader, stage, file);
    let final_path = run_id.as_ref().map(|id| format!("{}/{id}.safetensors", crate::RUNS_FOLDER));
    let model_path_save = reader.value_or("model_path_save", parse::file_to_write, final_path);
    let resume = reader.optional("resume", parse::resume);
    let checkpoint_every = reader.value("checkpoint_every", from_one);
    let keep_checkpoints = reader.value("keep_checkpoints", |raw| count(raw, 1, EXACT));
    let workers = reader.value("workers", |raw| count(raw, 1, MOST_WORKERS));
    let min_workers = reader.value("min_workers", |raw| count(raw, 1, MOST_WORKERS));
    let max_workers = reader.value("max_workers", |raw| count(raw, 1, MOST_WORKERS));
    let max_restarts = reader.value("max_restarts", small);
    let device = reader.value("device", parse::device);
    let devices_per_worker = reader.value("devices_per_worker", |raw| count(raw, 1, MOST_DEVICES));
    let collective = reader.value("collective", parse::choice);
    let deterministic = reader.value("deterministic", parse::boolean);
    let audit_every = reader.value("audit_every", |raw| parse::whole(raw, 0, EXACT));
    let prefetch_steps = reader.value("prefetch_steps", |raw| parse::whole(raw, 1, MOST_PREFETCHED));
    let eval_every = reader.value("eval_every", |raw| parse::whole(raw, 0, EXACT));
    let eval_samples = reader.value("eval_samples", |raw| parse::whole(raw, 1, MOST_EVALUATED));
    let heartbeat = reader.value("heartbeat", parse::positive_duration);
    let dead_after = reader.value("dead_after", parse::positive_duration);
    let join_debounce = reader.value("join_debounce", parse::duration);
    let coordinator_wait = reader.value("coordinator_wait", parse::positive_duration);

    if !reader.lacks_a_source() {
        checks::worker_counts(reader, min_workers, workers, max_workers);
        checks::timeouts(reader, heartbeat, dead_after);
    }
    Some(RunSettings {
        dataset_file: dataset_file?,
        model_path_load: model_path_load?,
        load_projections: load_projections?,
        model_path_save: model_path_save?.into(),
        run_id: run_id?,
        resume: resume?,
        checkpoint_every: checkpoint_every?,
        keep_checkpoints: keep_checkpoints?,
        workers: workers?,
        min_workers: min_workers?,
        max_workers: max_workers?,
        max_restarts: max_restarts?,
        device: device?,
        devices_per_worker: devices_per_worker?,
        collective: collective?,
        deterministic: deterministic?,
        audit_every: audit_every?,
        prefetch_steps: prefetch_steps?,
        eval_every: eval_every?,
        eval_samples: eval_samples?,
        heartbeat: heartbeat?,
        dead_after: dead_after?,
        join_debounce: join_debounce?,
        coordinator_wait: coordinator_wait?,
    })
}

/// `run_id` as set, else the file's name without its extension, else the stage's name.
fn read_run_id(reader: &mut Reader, stage: Option<Stage>, file: Option<FileStem>) -> Option<String> {
    let Some((path, stem)) = file else {
        return reader.value_or("run_id", parse::run_id, stage.map(|stage| stage.to_string()));
    };
    if reader.is_set("run_id") {
        return reader.value_or("run_id", parse::run_id, None);
    }
    match parse::run_id(&Raw::Text(stem.clone())) {
        Ok(id) => reader.value_or("run_id", parse::run_id, Some(id)),
        Err(fault) => {
            reader.note_problem(Problem {
                origin: path.display().to_string(),
                key: Some("run_id".to_string()),
                value: Some(stem),
                message: format!("comes from the file's name and {}", fault.message),
                hint: Some("set run_id, or rename the file".to_string()),
            });
            None
        }
    }
}

/// The largest divisor of the batch size up to 8.
fn default_micro_batch(batch_size: usize) -> usize {
    let mut size = batch_size.min(8);
    while size > 1 && !batch_size.is_multiple_of(size) {
        size -= 1;
    }
    size
}

/// `alternate` where the output projector trains alone is `exact`, so that one setting serves every stage of `launch all`.
fn fitting(solver: Solver, train_input_projection: Option<bool>) -> Solver {
    match (solver, train_input_projection) {
        (Solver::Alternate, Some(false)) => Solver::Exact,
        _ => solver,
    }
}

/// A setting that only `alternate` has; other solvers do not store it.
fn for_alternate(solver: Solver, set: Option<u64>, default: u64) -> Option<u64> {
    (solver == Solver::Alternate).then(|| set.unwrap_or(default))
}

fn default_decimals(stage: Stage) -> u32 {
    if stage == Stage::Mixed { 2 } else { 4 }
}

fn decimals(raw: &Raw) -> Result<u32, Fault> {
    Ok(parse::whole(raw, 0, 12)? as u32)
}

fn small(raw: &Raw) -> Result<u32, Fault> {
    Ok(parse::whole(raw, 0, u32::MAX.into())? as u32)
}

/// A whole number that counts things in memory; `most` fits in a `usize`.
fn count(raw: &Raw, least: u64, most: u64) -> Result<usize, Fault> {
    Ok(parse::whole(raw, least, most)? as usize)
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
