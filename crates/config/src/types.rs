//! The typed settings of a run. Built only by [`crate::resolve`]; every other crate reads them.
//!
//! Two halves: [`Recipe`] holds what determines the bytes of the result and travels in the checkpoint;
//! [`RunSettings`] holds how a run is carried out and never reaches the checkpoint.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is learnt: which projectors train, and what a sample looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// number → number
    Nn,
    /// text → number
    Text,
    /// text with numbers inside → number
    Mixed,
}

/// How a value becomes the scalar that the input projector sees, and how its target is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueEncoding {
    /// `x = (v − (min+max)/2) / ((max−min)/√12)`
    Standard,
    /// `x = v`
    Raw,
    /// `x = (u(v) − offset) / scale` with `u(v) = sign(v)·ln(1 + |v|/log_threshold)`: orders of magnitude apart become
    /// steps apart; standardised over the range as `standard` is.
    Signlog,
    /// `standard`, and beside it `sin` and `cos` of `2π(v − min)/period` for `fourier_periods` periods, the longest as long
    /// as the range and each half of the one before.
    Fourier,
}

/// How a target becomes the number that the output projector learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetEncoding {
    /// As `standard`, or as `raw` where the inputs are.
    Linear,
    /// As the inputs of [`ValueEncoding::Signlog`].
    Signlog,
}

/// How generated values lie in their range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    Uniform,
    /// Uniform in `sign(v)·ln(1 + |v|/log_threshold)`: every order of magnitude above the threshold equally often.
    Log,
}

/// How the projectors are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// Gradient steps on whatever trains.
    Adam,
    /// The output projector alone, as the least-squares solution over one pass.
    Exact,
    /// Gradient steps, with the output projector solved every `solve_every` steps and at the end.
    Alternate,
}

/// Where the hidden state is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readout {
    /// The last position.
    Last,
    /// The mean over all positions.
    Mean,
    /// The mean over the positions of projected numbers.
    Numbers,
}

/// The training loss, in encoded units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// `e²`
    Mse,
    /// `e²/2` up to `huber_delta`, from there on the tangent line.
    Huber,
    /// `(e·scale / max(|target|, 1 % of the range))²`, `scale` turning encoded units into value units.
    Relative,
}

/// What a `mixed` question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    Min,
    Max,
    Mean,
    Count,
}

/// How the frozen model's weights lie in memory; arithmetic is `f32` in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    #[default]
    F32,
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE 754 half precision; numbers beyond ±65504 become infinite.
    F16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    fn is_default(&self) -> bool {
        *self == Dtype::default()
    }
}

/// The device a worker is asked to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    /// `cuda` (the local rank chooses) or `cuda:N`.
    Cuda(Option<usize>),
}

/// How gradient rows are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CollectiveChoice {
    Auto,
    Grpc,
    Nccl,
}

/// Where a run continues from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resume {
    /// The newest valid checkpoint of the run folder, or a fresh start where there is none.
    Auto,
    File(PathBuf),
}

/// Every setting that determines the bytes of the final checkpoint (an allow-list), as stored inside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub stage: Stage,
    pub model_name: String,
    pub num_epochs: u64,
    /// Steps per epoch.
    pub num_batches: u64,
    /// Samples per step, over all workers.
    pub batch_size: usize,
    /// Samples per micro-batch; divides `batch_size`.
    pub micro_batch_size: usize,
    pub lr: f64,
    /// Step schedule on: the learning rate is multiplied by `lr_gamma` every `lr_step_epochs` epochs.
    pub shl: bool,
    pub lr_step_epochs: u64,
    pub lr_gamma: f64,
    pub min_val: f64,
    pub max_val: f64,
    /// Decimals of a number written as text.
    pub decimals: u32,
    pub value_encoding: ValueEncoding,
    /// Positions that a lone number (stage `nn`) fills.
    pub numeric_positions: usize,
    pub mixed_tasks: Vec<Task>,
    pub mixed_max_numbers: usize,
    pub train_input_projection: bool,
    pub train_output_projection: bool,
    pub solver: Solver,
    /// Steps between rounds of `alternate`, 0 for a single round at the end; unset with other solvers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solve_every: Option<u64>,
    /// Samples of a round of `alternate`, taken in whole batches; unset with other solvers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solve_samples: Option<u64>,
    pub readout: Readout,
    pub loss: Loss,
    pub seed: u64,
    /// `dataset.shuffle`; it changes nothing without `dataset.file`.
    pub dataset_shuffle: bool,
    /// Stored where it is not the default.
    #[serde(default, skip_serializing_if = "Dtype::is_default")]
    pub dtype: Dtype,
    // The fields below are stored only where they apply and differ from the default.
    /// Periods of `fourier`; set exactly there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fourier_periods: Option<usize>,
    /// Magnitude below which `signlog` and `log` are nearly linear; set exactly where one of them is used. Positive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_threshold: Option<f64>,
    /// Where it is not what follows from `value_encoding`: see [`Recipe::target_encoding`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetEncoding>,
    /// Where it is not what follows from `value_encoding`: see [`Recipe::value_distribution`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// δ of `huber`, in encoded units; set exactly there. Positive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huber_delta: Option<f64>,
    /// Block, counted from 1, whose output is read; `None` reads the model's own last hidden state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Whether the frozen model's layer norms train too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub train_layer_norms: bool,
}

/// How a run is carried out. Nothing here may change a byte of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    pub dataset_file: Option<PathBuf>,
    pub model_path_load: Option<PathBuf>,
    /// It shows in the checkpoint through the digest of what was loaded.
    pub load_projections: LoadedProjections,
    pub model_path_save: PathBuf,
    pub run_id: String,
    pub resume: Option<Resume>,
    /// Steps between checkpoints in `chk/<run_id>/`.
    pub checkpoint_every: u64,
    pub keep_checkpoints: usize,
    pub workers: usize,
    pub min_workers: usize,
    pub max_workers: usize,
    pub max_restarts: u32,
    pub device: DeviceChoice,
    /// Devices of one worker, over which the frozen model's blocks are spread.
    pub devices_per_worker: usize,
    pub collective: CollectiveChoice,
    pub deterministic: bool,
    /// Steps between two audits, in which another rank computes a micro-batch too; 0 is off.
    pub audit_every: u64,
    /// Steps of work that are streamed ahead of the step in progress.
    pub prefetch_steps: u64,
    /// Epochs between evaluations during training; 0 is off. They add to the state's history and to nothing else.
    pub eval_every: u64,
    /// Held-out samples of an evaluation.
    pub eval_samples: u64,
    pub heartbeat: Duration,
    pub dead_after: Duration,
    pub join_debounce: Duration,
    pub coordinator_wait: Duration,
}

/// Which projectors `model_path_load` brings; the others start fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadedProjections {
    Both,
    Input,
    Output,
}

/// One validated configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub recipe: Recipe,
    pub run: RunSettings,
}

impl Recipe {
    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.num_epochs * self.num_batches
    }

    /// Micro-batches of one step.
    pub fn micro_batches(&self) -> usize {
        self.batch_size / self.micro_batch_size
    }

    /// Whether the answer to a question is one of its numbers, so that it can be the right one or another: of the smallest
    /// and the largest it is, a mean or a count is not.
    pub fn names_a_number(&self) -> bool {
        self.stage == Stage::Mixed && self.mixed_tasks.iter().any(|task| matches!(task, Task::Min | Task::Max))
    }

    /// Width of the value range.
    pub fn range(&self) -> f64 {
        self.max_val - self.min_val
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
}

impl TargetEncoding {
    /// What `target` is when nobody sets it.
    pub fn following(values: ValueEncoding) -> Self {
        if values == ValueEncoding::Signlog { TargetEncoding::Signlog } else { TargetEncoding::Linear }
    }
}

impl Distribution {
    /// What `distribution` is when nobody sets it.
    pub fn following(values: ValueEncoding) -> Self {
        if values == ValueEncoding::Signlog { Distribution::Log } else { Distribution::Uniform }
    }
}
