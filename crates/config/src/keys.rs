//! The one table of all keys, from which files, variables, flags, `config show`, the JSON Schema, help texts and the structs
//! of the settings derive. `declare` says how a row is written, `key` what a key is.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::choice::{
    CollectiveChoice, CpuArithmetic, DeviceChoice, Distribution, Dtype, LoadedProjections, Loss, MissingCells, Pooling,
    Resume, Solver, Stage, TableFormat, TargetEncoding, Task, ValueEncoding,
};
use crate::key::{About, Key, KeyDefault, Part};
use crate::kind::{
    Kind, block, boolean, choice, choice_or_list, device, input_file, number_or_auto, optional, output_file, positive,
    positive_time, ranges, refused, resume, run_id, separator, share, taps, tasks, text, time, time_or_auto, whole,
    whole_or_auto,
};
use crate::raw::Raw;
use crate::span::Span;
use crate::tap::{MOST_TAPS, Tap};

/// Whole numbers up to here are exact as floats too.
pub(crate) const EXACT: u64 = (1 << 53) - 1;

/// Fewest samples of a solution: some are held out to choose the ridge.
pub(crate) const LEAST_SOLVED: u64 = 16;

/// More folds judge a ridge no better, and each costs memory and a solution.
const MOST_FOLDS: u64 = 20;

/// Bounds that no sensible run meets; they keep a slip from asking for all the memory.
const MOST_SAMPLES_PER_STEP: u64 = 1 << 24;
const MOST_WORKERS: u64 = 65_536;
const MOST_PREFETCHED: u64 = 1 << 16;
const MOST_DEVICES: u64 = 1024;
const MOST_POSITIONS: u64 = 1 << 20;
const MOST_EVALUATED: u64 = 1 << 20;

/// Where the range holds 0, values below a millionth count as small.
const SMALL: f64 = 1e-6;

// What a key is about: the headings of a help text.
const MODEL: &str = "Keys: model";
const RECIPE: &str = "Keys: recipe";
const VALUES: &str = "Keys: values";
const DATA: &str = "Keys: data";
const RUN: &str = "Keys: run";
const WORKERS: &str = "Keys: workers";
const EVALUATION: &str = "Keys: evaluation";
const TIMEOUTS: &str = "Keys: timeouts";
const WATCHING: &str = "Keys: watching";

/// The folder of all runs: run `nn` keeps its checkpoints in `chk/nn/` and its result in `chk/nn.safetensors`.
pub const RUNS_FOLDER: &str = "chk";

// In the order in which they are shown; the members of a nested group (`dataset.…`) stand together.
keys! {
    Recipe stage: Stage = "nn", RECIPE, choice(),
        "What is learnt: number to number, text to number, or text with numbers inside to number";
    Recipe model_name: String = "demo", MODEL, text(),
        "The frozen model: a folder, a .gguf file, a hub id, demo, or synthetic:<size>[:seed]";
    Recipe dtype: Dtype = "f32", MODEL, choice(),
        "How frozen weights are kept in memory; q8_0 and q4_0 are made while loading, other q's come in .gguf", sparse 1;
    Recipe arithmetic: CpuArithmetic = "f32", MODEL, choice(),
        "Precision of the factors of a CPU's products in the frozen model; bf16 is fast with AVX512-BF16", sparse 16;
    Recipe add_special_tokens: bool = "false", MODEL, boolean(),
        "Put the tokenizer's special tokens (BOS, EOS) around each text, as transformers does by default", sparse 10;
    Recipe num_epochs: u64 = "60", RECIPE, whole(1, EXACT), "Epochs of the run; may grow on resume";
    Recipe num_batches: u64 = "10", RECIPE, whole(1, EXACT), "Steps per epoch";
    Recipe batch_size: usize = "8", RECIPE, whole(1, MOST_SAMPLES_PER_STEP), "Samples per step, over all workers";
    Recipe micro_batch_size: usize =
        (derived "batch_size up to 8", |settings| Some(default_micro_batch(settings.batch_size?))),
        RECIPE, whole(1, MOST_SAMPLES_PER_STEP), "Samples per micro-batch, the unit of work; divides batch_size";
    Recipe lr: f64 = "0.003", RECIPE, positive(), "Learning rate at the start";
    Recipe shl: bool = "true", RECIPE, boolean(), "Lower the learning rate in steps";
    Recipe lr_step_epochs: u64 = "10", RECIPE, whole(1, EXACT), "Epochs between two changes of the learning rate";
    Recipe lr_gamma: f64 = "0.5", RECIPE, positive(), "Factor on the learning rate at each change";
    Recipe min_val: f64 = "0", VALUES, number_or_auto(), "Smallest value; auto, the default with a dataset: of its targets";
    Recipe max_val: f64 = "100", VALUES, number_or_auto(), "Upper end of the values; auto as with min_val";
    /// Of the first number in an input, of the second and so on; the last one holds for all that follow. Empty: `min_val`
    /// to `max_val`.
    Recipe input_ranges: Vec<Span> = "[]", VALUES, ranges(),
        "Ranges of the numbers in an input, by place, where a dataset's own differ from its targets'", sparse 10;
    Recipe decimals: u32 =
        (derived "4, or 2 in stage mixed", |settings| Some(if settings.stage? == Stage::Mixed { 2 } else { 4 })),
        VALUES, whole(0, 12), "Decimals of a number written as text";
    Recipe value_encoding: ValueEncoding = "standard", VALUES, choice(),
        "How a value is scaled before it enters the model; signlog suits wide ranges";
    /// Set exactly where `value_encoding` is `fourier`.
    Recipe fourier_periods: Option<usize> =
        (derived "8 with value_encoding fourier",
            |settings| Some((settings.value_encoding? == ValueEncoding::Fourier).then_some(8))),
        VALUES, optional(whole(1, 64)),
        "Periods of the fourier encoding: the range, its half, its quarter and so on", sparse 2;
    /// Set where it is not what follows from `value_encoding`: see [`Recipe::target_encoding`].
    Recipe target: Option<TargetEncoding> =
        (derived "linear, or signlog with value_encoding signlog", |settings| settings.value_encoding.map(|_| None)),
        VALUES, optional(choice()), "How the output projector's targets are scaled", sparse 4,
        shown |settings| settings.target_encoding().map_or(Json::Null, |target| json!(target));
    /// Set where it is not what follows from `value_encoding`: see [`Recipe::value_distribution`].
    Recipe distribution: Option<Distribution> =
        (derived "uniform, or log with value_encoding signlog", |settings| settings.value_encoding.map(|_| None)),
        VALUES, optional(choice()),
        "How generated values spread over their range; log: every order of magnitude equally often", sparse 5,
        shown |settings| settings.value_distribution().map_or(Json::Null, |distribution| json!(distribution));
    /// Set exactly where `value_encoding`, `target` or `distribution` is logarithmic. Positive.
    Recipe log_threshold: Option<f64> =
        (derived "the smallest magnitude of the range, or 1e-6 where it holds 0", default_threshold),
        VALUES, optional(positive()), "Magnitude below which signlog and log are nearly linear", sparse 3;
    Recipe numeric_positions: usize = "1", VALUES, whole(1, MOST_POSITIONS),
        "Positions that a lone number fills (stage nn only)";
    Recipe mixed_tasks: Vec<Task> = "[min]", DATA, tasks(), "What the questions of stage mixed ask for";
    Recipe mixed_max_numbers: usize = "10", DATA, whole(1, 1000), "Most numbers in one question of stage mixed";
    Recipe train_input_projection: bool =
        (derived "true, or false in stage text", |settings| Some(settings.stage? != Stage::Text)),
        RECIPE, boolean(), "Train the projector that turns a number into an embedding";
    Recipe train_output_projection: bool = "true", RECIPE, boolean(),
        "Train the projector that turns a hidden state into a number";
    Recipe train_layer_norms: bool = "false", RECIPE, boolean(), "Train the frozen model's layer norms too", sparse 8;
    Refused train_transformer: bool = "false", RECIPE, refused(),
        "Not possible: the model stays frozen; train_layer_norms is what there is", shown |_| json!(false);
    Recipe solver: Solver = "adam", RECIPE, choice(),
        "How projectors are found; if only the output projector trains, alternate means exact";
    /// Set exactly with `alternate`; 0 is a single round at the end. Solutions in between made the result no better: a
    /// projector that is replaced takes the input side off its way (mixed on the demo model, 1,500 steps: 1.29 % at the
    /// end only, 1.32 every 200 steps, 1.44 every 100).
    Recipe solve_every: Option<u64> =
        (derived "0 with solver alternate", |settings| Some((settings.solver? == Solver::Alternate).then_some(0))),
        RECIPE, optional(whole(0, EXACT)),
        "Steps between two solutions with solver alternate; 0 solves at the end only", sparse 0;
    /// Set exactly with `alternate`.
    Recipe solve_samples: Option<u64> =
        (derived "4096 with solver alternate",
            |settings| Some((settings.solver? == Solver::Alternate).then_some(4096))),
        RECIPE, optional(whole(LEAST_SOLVED, EXACT)),
        "Samples of a solution with solver alternate, in whole batches", sparse 0;
    /// 0 is none; never 1.
    Recipe ridge_folds: usize = "0", RECIPE, whole(0, MOST_FOLDS),
        "Folds of the cross-validation that chooses a solution's ridge; 0 holds out an eighth of the samples", sparse 15;
    Recipe pooling: Pooling = "last", MODEL, choice_or_list(),
        "Positions whose hidden states are read: the last, the mean of all, or of the projected numbers",
        formerly "readout", stored "readout";
    /// `None` is -1.
    Recipe layer: Option<usize> = "-1", MODEL, block(),
        "Block whose output is read, from 1; 0 is the embeddings, -1 the model's own last hidden state", sparse 7;
    /// Places that are read side by side; empty where `layer` and `pooling` name the only one. Lists in those become taps.
    Recipe taps: Vec<Tap> = "[]", MODEL, taps(),
        "Several places read at once, such as [1:mean, 2:last], in the place of layer and pooling", sparse 12;
    /// The round solves every place alone, and the most promising ones together.
    Recipe probe: Option<usize> = unset, RECIPE, optional(whole(1, MOST_TAPS as u64)),
        "Maximum number of read positions that a probe may choose; `numalign probe` sets it", sparse 13;
    Recipe loss: Loss = "mse", RECIPE, choice(),
        "The training loss, in encoded units; relative divides the error by the target";
    /// Set exactly with `huber`. Positive.
    Recipe huber_delta: Option<f64> =
        (derived "1 with loss huber", |settings| Some((settings.loss? == Loss::Huber).then_some(1.0))),
        RECIPE, optional(positive()), "Error, in encoded units, above which the Huber loss is linear", sparse 6;
    Recipe seed: u64 = "0", RECIPE, whole(0, u64::MAX), "Seed of the samples and of the projectors";
    Run dataset_file: Option<PathBuf> = unset, DATA, optional(input_file()),
        "File of samples: JSONL, CSV or Parquet; without it they are generated", named "dataset.file";
    Recipe dataset_shuffle: bool = "true", DATA, boolean(), "Shuffle the lines of the file, anew for each pass",
        named "dataset.shuffle";
    Recipe dataset_decimal_comma: bool = "false", DATA, boolean(),
        "Numbers in the file's strings have a decimal comma, as in 1.234,50", named "dataset.decimal_comma", sparse 9;
    Run dataset_format: Option<TableFormat> = unset, DATA, optional(choice()),
        "How the file is read, where its ending does not say", named "dataset.format";
    Run dataset_separator: Option<String> = unset, DATA, optional(separator()),
        "Separator of a CSV file, where its header does not show it: one character, or tab", named "dataset.separator";
    /// `None` is the column `input`.
    Recipe dataset_input: Option<String> = (derived "input", |_| Some(None)), DATA, optional(text()),
        "Column of the input, or a template: {column} is text, $${column}&& a marked number",
        named "dataset.input", sparse 11,
        shown |settings| shown_column(settings.dataset_input.as_ref(), "input");
    /// `None` is the column `output`.
    Recipe dataset_output: Option<String> = (derived "output", |_| Some(None)), DATA, optional(text()),
        "Column of the target", named "dataset.output", sparse 12,
        shown |settings| shown_column(settings.dataset_output.as_ref(), "output");
    Recipe dataset_missing: MissingCells = "refuse", DATA, choice(),
        "Rows with an empty cell or no number where one is needed: refuse the file, or skip them",
        named "dataset.missing", sparse 13;
    Run dataset_eval_file: Option<PathBuf> = unset, DATA, optional(input_file()),
        "File of held-out rows, read as dataset.file", named "dataset.eval_file";
    /// `None` is 0.
    Recipe dataset_eval_share: Option<f64> = unset, DATA, optional(share()),
        "Share of the file's rows that are held out; 0.1 by default, in file order 0",
        named "dataset.eval_share", sparse 14;
    Run model_path_load: Option<PathBuf> = unset, RUN, optional(input_file()),
        "Start from the projectors of this checkpoint";
    /// It shows in the checkpoint through the digest of what was loaded.
    Run load_projections: LoadedProjections = "both", RUN, choice(),
        "Which projectors model_path_load brings; the others start fresh";
    Run run_id: String = (derived "the name of the configuration file, or the stage", default_run_id),
        RUN, run_id(), "Name of the run; its checkpoints are in chk/<run_id>";
    Run model_path_save: PathBuf =
        (derived "chk/<run_id>.safetensors",
            |settings| Some(format!("{RUNS_FOLDER}/{}.safetensors", settings.run_id.as_ref()?).into())),
        RUN, output_file(), "The final checkpoint";
    Run resume: Option<Resume> = unset, RUN, optional(resume()),
        "Continue a run: auto takes the newest checkpoint of the run";
    Run trust_returning_state: bool = "false", RUN, boolean(),
        "Continue from a returning worker's state although the key in the run's folder was lost";
    Run checkpoint_every: u64 = "100", RUN, whole(1, EXACT), "Steps between two checkpoints";
    Run max_time: Option<Duration> = unset, RUN, optional(positive_time()),
        "Stop after this long, with a checkpoint to continue from";
    Run log_every: u64 = "10", RUN, whole(0, EXACT),
        "Steps between two lines of loss in metrics.jsonl; 0 leaves only those of the epochs";
    Run keep_checkpoints: usize = "3", RUN, whole(1, EXACT), "How many of the newest checkpoints are kept";
    Run workers: usize = "2", WORKERS, whole_or_auto(1, MOST_WORKERS),
        "Workers that launch starts or the coordinator waits for; auto (launch): one per GPU, at least 1";
    Run min_workers: usize = "1", WORKERS, whole(1, MOST_WORKERS), "Fewest workers to train with";
    Run max_workers: usize = "64", WORKERS, whole(1, MOST_WORKERS), "Most workers that are admitted";
    Run max_restarts: u32 = "3", WORKERS, whole(0, u32::MAX as u64),
        "Restarts of workers without progress before the run fails";
    Run device: DeviceChoice = "auto", WORKERS, device(), "Device of the workers";
    Run devices_per_worker: usize = "1", WORKERS, whole(1, MOST_DEVICES),
        "Devices of one worker; each holds a stretch of the frozen model's blocks";
    /// What a checkpoint stores is what its products were rounded to ([`crate::Arithmetic`]), not this wish.
    Run exact_f32: bool = "false", WORKERS, boolean(),
        "Multiply matrices in f32 on GPUs too, without TF32, bf16 or f16: slower, and near the CPU's numbers";
    Run collective: CollectiveChoice = "auto", WORKERS, choice(),
        "How gradients are exchanged; auto takes nccl where every replica is on a GPU of its own";
    Run deterministic: bool = "true", WORKERS, boolean(), "Refuse workers that would compute other bits";
    Run audit_every: u64 = "50", WORKERS, whole(0, EXACT),
        "Steps between two audits, in which other ranks compute a micro-batch too; 0 is off";
    Run prefetch_steps: u64 = "4", WORKERS, whole(1, MOST_PREFETCHED), "Steps of work that are sent ahead";
    /// Evaluations add to the state's history and to nothing else.
    Run eval_every: u64 = "0", EVALUATION, whole(0, EXACT), "Epochs between two evaluations during training; 0 is off";
    Run eval_samples: u64 = "200", EVALUATION, whole(1, MOST_EVALUATED),
        "Held-out samples of an evaluation during training";
    Run eval_count: u64 = "1000", EVALUATION, whole(1, 100_000_000),
        "Held-out samples of the evaluation at the end of launch";
    Run heartbeat: Duration = "0.5s", TIMEOUTS, positive_time(), "Time between two signs of life of a worker";
    Run dead_after: Duration = "3s", TIMEOUTS, positive_time(),
        "Silence after which a worker counts as dead; at least twice heartbeat";
    /// `None` is `auto`: the larger of 60 s and 20 times the rank's slowest recent unit.
    Run stall_after: Option<Duration> = "auto", TIMEOUTS, time_or_auto(),
        "How long a live rank may owe rows or a report; auto is 60s, or 20 of its units if that is more";
    Run join_debounce: Duration = "0.2s", TIMEOUTS, time(),
        "How long a join waits for others, so that they come in together";
    Run arbiter_wait: Duration = "600s", TIMEOUTS, time(),
        "How long a run waits for one worker more, when two ranks contradict each other";
    Run coordinator_wait: Duration = "30s", TIMEOUTS, positive_time(), "How long a worker waits for the coordinator";
    /// `None` is any free port of loopback for `launch`, and nowhere for `coordinator`.
    Run http: Option<String> = unset, WATCHING, optional(text()),
        "Where the page to watch the run is served: HOST:PORT, or off; launch takes loopback by default";
    /// `None` is the join token, which is asked for beyond loopback.
    Run http_token_file: Option<PathBuf> = unset, WATCHING, optional(input_file()),
        "File with the token that the page asks for; beyond loopback the join token by default";
    Run tensorboard: bool = "false", WATCHING, boolean(), "Write event files for TensorBoard to chk/<run_id>/tensorboard";
}

/// The largest divisor of the batch size up to 8.
fn default_micro_batch(batch_size: usize) -> usize {
    let mut size = batch_size.min(8);
    while size > 1 && !batch_size.is_multiple_of(size) {
        size -= 1;
    }
    size
}

/// A column that has a name of its own by default.
fn shown_column(set: Option<&Option<String>>, default: &str) -> Json {
    set.map_or(Json::Null, |name| json!(name.as_deref().unwrap_or(default)))
}

/// The smallest magnitude of the range, or [`SMALL`] where it holds 0.
fn default_threshold(settings: &Settings) -> Option<Option<f64>> {
    if !settings.is_logarithmic()? {
        return Some(None);
    }
    let (min, max) = (settings.min_val?, settings.max_val?);
    let smallest = if min > 0.0 { min } else { -max };
    Some(Some(if smallest > 0.0 { smallest.max(f64::from(f32::MIN_POSITIVE)) } else { SMALL }))
}

/// The file's name without its extension, else the stage's name.
fn default_run_id(settings: &Settings) -> Option<String> {
    match &settings.run_id_of_file {
        Some(name) => name.clone(),
        None => settings.stage.map(|stage| stage.to_string()),
    }
}
