//! The one table of all keys. YAML, environment, flags, `config show` and the docs derive from it.
//! Read through `keys`.

use std::path::PathBuf;
use std::time::Duration;

use serde_yaml::Value;

use crate::choice::Choice;
use crate::keys::{Key, KeyDefault};
use crate::types::{Config, Resume};

/// In the order in which they are shown; the members of a group (`dataset.…`) stand together.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "stage",
        default: KeyDefault::Value("nn"),
        value_name: "nn|text|mixed",
        help: "What is learnt: number to number, text to number, or text with numbers inside to number",
        shown: |c| c.recipe.stage.name().into(),
    },
    Key {
        name: "model_name",
        default: KeyDefault::Value("demo"),
        value_name: "NAME",
        help: "The frozen model: a folder, a .gguf file, a hub id, demo, or synthetic:<size>[:seed]",
        shown: |c| text(&c.recipe.model_name),
    },
    Key {
        name: "dtype",
        default: KeyDefault::Value("f32"),
        value_name: "f32|bf16|f16",
        help: "How the frozen model's weights lie in memory; arithmetic is f32 in any case",
        shown: |c| c.recipe.dtype.name().into(),
    },
    Key {
        name: "num_epochs",
        default: KeyDefault::Value("60"),
        value_name: "N",
        help: "Epochs of the run; may grow on resume",
        shown: |c| c.recipe.num_epochs.into(),
    },
    Key {
        name: "num_batches",
        default: KeyDefault::Value("10"),
        value_name: "N",
        help: "Steps per epoch",
        shown: |c| c.recipe.num_batches.into(),
    },
    Key {
        name: "batch_size",
        default: KeyDefault::Value("8"),
        value_name: "N",
        help: "Samples per step, over all workers",
        shown: |c| (c.recipe.batch_size as u64).into(),
    },
    Key {
        name: "micro_batch_size",
        default: KeyDefault::Worked("batch_size up to 8"),
        value_name: "N",
        help: "Samples per micro-batch, the unit of work; divides batch_size",
        shown: |c| (c.recipe.micro_batch_size as u64).into(),
    },
    Key {
        name: "lr",
        default: KeyDefault::Value("0.003"),
        value_name: "X",
        help: "Learning rate at the start",
        shown: |c| c.recipe.lr.into(),
    },
    Key {
        name: "shl",
        default: KeyDefault::Value("true"),
        value_name: "true|false",
        help: "Lower the learning rate in steps",
        shown: |c| c.recipe.shl.into(),
    },
    Key {
        name: "lr_step_epochs",
        default: KeyDefault::Value("10"),
        value_name: "N",
        help: "Epochs between two changes of the learning rate",
        shown: |c| c.recipe.lr_step_epochs.into(),
    },
    Key {
        name: "lr_gamma",
        default: KeyDefault::Value("0.5"),
        value_name: "X",
        help: "Factor on the learning rate at each change",
        shown: |c| c.recipe.lr_gamma.into(),
    },
    Key {
        name: "min_val",
        default: KeyDefault::Value("0"),
        value_name: "X",
        help: "Smallest value",
        shown: |c| c.recipe.min_val.into(),
    },
    Key {
        name: "max_val",
        default: KeyDefault::Value("100"),
        value_name: "X",
        help: "Upper end of the values",
        shown: |c| c.recipe.max_val.into(),
    },
    Key {
        name: "decimals",
        default: KeyDefault::Worked("4, or 2 in stage mixed"),
        value_name: "N",
        help: "Decimals of a number written as text",
        shown: |c| c.recipe.decimals.into(),
    },
    Key {
        name: "value_encoding",
        default: KeyDefault::Value("standard"),
        value_name: "standard|raw|signlog|fourier",
        help: "How a value is scaled before it enters the model; signlog suits wide ranges",
        shown: |c| c.recipe.value_encoding.name().into(),
    },
    Key {
        name: "fourier_periods",
        default: KeyDefault::Worked("8 with value_encoding fourier"),
        value_name: "N",
        help: "Periods of the fourier encoding: the range, its half, its quarter and so on",
        shown: |c| c.recipe.fourier_periods.map_or(Value::Null, |periods| (periods as u64).into()),
    },
    Key {
        name: "target",
        default: KeyDefault::Worked("linear, or signlog with value_encoding signlog"),
        value_name: "linear|signlog",
        help: "How the output projector's targets are scaled",
        shown: |c| c.recipe.target_encoding().name().into(),
    },
    Key {
        name: "distribution",
        default: KeyDefault::Worked("uniform, or log with value_encoding signlog"),
        value_name: "uniform|log",
        help: "How generated values lie in their range; log: every order of magnitude equally often",
        shown: |c| c.recipe.value_distribution().name().into(),
    },
    Key {
        name: "log_threshold",
        default: KeyDefault::Worked("the smallest magnitude of the range, or 1e-6 where it holds 0"),
        value_name: "X",
        help: "Magnitude below which signlog and log are nearly linear",
        shown: |c| c.recipe.log_threshold.map_or(Value::Null, Into::into),
    },
    Key {
        name: "numeric_positions",
        default: KeyDefault::Value("1"),
        value_name: "N",
        help: "Positions that a lone number fills (stage nn only)",
        shown: |c| (c.recipe.numeric_positions as u64).into(),
    },
    Key {
        name: "mixed_tasks",
        default: KeyDefault::Value("[min]"),
        value_name: "min,max,mean,count",
        help: "What the questions of stage mixed ask for",
        shown: |c| task_list(c),
    },
    Key {
        name: "mixed_max_numbers",
        default: KeyDefault::Value("10"),
        value_name: "N",
        help: "Most numbers in one question of stage mixed",
        shown: |c| (c.recipe.mixed_max_numbers as u64).into(),
    },
    Key {
        name: "train_input_projection",
        default: KeyDefault::Worked("true, or false in stage text"),
        value_name: "true|false",
        help: "Train the projector that turns a number into an embedding",
        shown: |c| c.recipe.train_input_projection.into(),
    },
    Key {
        name: "train_output_projection",
        default: KeyDefault::Value("true"),
        value_name: "true|false",
        help: "Train the projector that turns a hidden state into a number",
        shown: |c| c.recipe.train_output_projection.into(),
    },
    Key {
        name: "train_layer_norms",
        default: KeyDefault::Value("false"),
        value_name: "true|false",
        help: "Train the frozen model's layer norms too",
        shown: |c| c.recipe.train_layer_norms.into(),
    },
    Key {
        name: "train_transformer",
        default: KeyDefault::Value("false"),
        value_name: "false",
        help: "Not possible: the model stays frozen; train_layer_norms is what there is",
        shown: |_| false.into(),
    },
    Key {
        name: "solver",
        default: KeyDefault::Value("adam"),
        value_name: "adam|exact|alternate",
        help: "How projectors are found; alternate becomes exact where the output projector trains alone",
        shown: |c| c.recipe.solver.name().into(),
    },
    Key {
        name: "solve_every",
        default: KeyDefault::Worked("0 with solver alternate"),
        value_name: "N",
        help: "Steps between two solutions with solver alternate; 0 solves at the end only",
        shown: |c| c.recipe.solve_every.map_or(Value::Null, Into::into),
    },
    Key {
        name: "solve_samples",
        default: KeyDefault::Worked("4096 with solver alternate"),
        value_name: "N",
        help: "Samples of a solution with solver alternate, in whole batches",
        shown: |c| c.recipe.solve_samples.map_or(Value::Null, Into::into),
    },
    Key {
        name: "readout",
        default: KeyDefault::Value("last"),
        value_name: "last|mean|numbers",
        help: "Positions whose hidden states are read: the last, the mean of all, or of the projected numbers",
        shown: |c| c.recipe.readout.name().into(),
    },
    Key {
        name: "layer",
        default: KeyDefault::Value("-1"),
        value_name: "-1|N",
        help: "Block whose output is read, from 1; -1 is the model's own last hidden state",
        shown: |c| c.recipe.layer.map_or_else(|| (-1).into(), |layer| (layer as u64).into()),
    },
    Key {
        name: "loss",
        default: KeyDefault::Value("mse"),
        value_name: "mse|huber|relative",
        help: "The training loss, in encoded units; relative divides the error by the target",
        shown: |c| c.recipe.loss.name().into(),
    },
    Key {
        name: "huber_delta",
        default: KeyDefault::Worked("1 with loss huber"),
        value_name: "X",
        help: "Error, in encoded units, from which huber grows in a line",
        shown: |c| c.recipe.huber_delta.map_or(Value::Null, Into::into),
    },
    Key {
        name: "seed",
        default: KeyDefault::Value("0"),
        value_name: "N",
        help: "Seed of the samples and of the projectors",
        shown: |c| c.recipe.seed.into(),
    },
    Key {
        name: "dataset.file",
        default: KeyDefault::Unset,
        value_name: "PATH",
        help: "JSONL file of samples; without it they are generated",
        shown: |c| path(c.run.dataset_file.as_ref()),
    },
    Key {
        name: "dataset.shuffle",
        default: KeyDefault::Value("true"),
        value_name: "true|false",
        help: "Shuffle the lines of the file, anew for each pass",
        shown: |c| c.recipe.dataset_shuffle.into(),
    },
    Key {
        name: "model_path_load",
        default: KeyDefault::Unset,
        value_name: "PATH",
        help: "Start from the projectors of this checkpoint",
        shown: |c| path(c.run.model_path_load.as_ref()),
    },
    Key {
        name: "load_projections",
        default: KeyDefault::Value("both"),
        value_name: "both|input|output",
        help: "Which projectors model_path_load brings; the others start fresh",
        shown: |c| c.run.load_projections.name().into(),
    },
    Key {
        name: "model_path_save",
        default: KeyDefault::Worked("chk/<run_id>.safetensors"),
        value_name: "PATH",
        help: "The final checkpoint",
        shown: |c| path(Some(&c.run.model_path_save)),
    },
    Key {
        name: "run_id",
        default: KeyDefault::Worked("the name of the configuration file, or the stage"),
        value_name: "NAME",
        help: "Name of the run; its checkpoints lie in chk/<run_id>",
        shown: |c| text(&c.run.run_id),
    },
    Key {
        name: "resume",
        default: KeyDefault::Unset,
        value_name: "auto|PATH",
        help: "Continue a run: auto takes the newest checkpoint of the run",
        shown: |c| resume(c),
    },
    Key {
        name: "checkpoint_every",
        default: KeyDefault::Value("100"),
        value_name: "N",
        help: "Steps between two checkpoints",
        shown: |c| c.run.checkpoint_every.into(),
    },
    Key {
        name: "keep_checkpoints",
        default: KeyDefault::Value("3"),
        value_name: "N",
        help: "How many of the newest checkpoints are kept",
        shown: |c| (c.run.keep_checkpoints as u64).into(),
    },
    Key {
        name: "workers",
        default: KeyDefault::Value("2"),
        value_name: "N|auto",
        help: "Workers that launch starts; auto (launch only) is one per visible GPU, or 1 where there is none",
        shown: |c| (c.run.workers as u64).into(),
    },
    Key {
        name: "min_workers",
        default: KeyDefault::Value("1"),
        value_name: "N",
        help: "Fewest workers to train with",
        shown: |c| (c.run.min_workers as u64).into(),
    },
    Key {
        name: "max_workers",
        default: KeyDefault::Value("64"),
        value_name: "N",
        help: "Most workers that are admitted",
        shown: |c| (c.run.max_workers as u64).into(),
    },
    Key {
        name: "max_restarts",
        default: KeyDefault::Value("3"),
        value_name: "N",
        help: "Restarts of workers without progress before the run fails",
        shown: |c| c.run.max_restarts.into(),
    },
    Key {
        name: "device",
        default: KeyDefault::Value("auto"),
        value_name: "auto|cpu|cuda|cuda:N",
        help: "Device of the workers",
        shown: |c| text(&c.run.device.to_string()),
    },
    Key {
        name: "devices_per_worker",
        default: KeyDefault::Value("1"),
        value_name: "N",
        help: "Devices of one worker; each holds a stretch of the frozen model's blocks",
        shown: |c| (c.run.devices_per_worker as u64).into(),
    },
    Key {
        name: "collective",
        default: KeyDefault::Value("auto"),
        value_name: "auto|grpc|nccl",
        help: "How gradients are exchanged; auto takes nccl where every replica is on a GPU of its own",
        shown: |c| c.run.collective.name().into(),
    },
    Key {
        name: "deterministic",
        default: KeyDefault::Value("true"),
        value_name: "true|false",
        help: "Refuse workers that would compute other bits",
        shown: |c| c.run.deterministic.into(),
    },
    Key {
        name: "audit_every",
        default: KeyDefault::Value("50"),
        value_name: "N",
        help: "Steps between two audits, in which other ranks compute a micro-batch too; 0 is off",
        shown: |c| c.run.audit_every.into(),
    },
    Key {
        name: "prefetch_steps",
        default: KeyDefault::Value("4"),
        value_name: "N",
        help: "Steps of work that are sent ahead",
        shown: |c| c.run.prefetch_steps.into(),
    },
    Key {
        name: "eval_every",
        default: KeyDefault::Value("0"),
        value_name: "N",
        help: "Epochs between two evaluations during training; 0 is off",
        shown: |c| c.run.eval_every.into(),
    },
    Key {
        name: "eval_samples",
        default: KeyDefault::Value("200"),
        value_name: "N",
        help: "Held-out samples of an evaluation during training",
        shown: |c| c.run.eval_samples.into(),
    },
    Key {
        name: "heartbeat",
        default: KeyDefault::Value("0.5s"),
        value_name: "TIME",
        help: "Time between two signs of life of a worker",
        shown: |c| time(c.run.heartbeat),
    },
    Key {
        name: "dead_after",
        default: KeyDefault::Value("3s"),
        value_name: "TIME",
        help: "Silence after which a worker counts as dead; at least twice heartbeat",
        shown: |c| time(c.run.dead_after),
    },
    Key {
        name: "join_debounce",
        default: KeyDefault::Value("0.2s"),
        value_name: "TIME",
        help: "How long a join waits for others, so that they come in together",
        shown: |c| time(c.run.join_debounce),
    },
    Key {
        name: "coordinator_wait",
        default: KeyDefault::Value("30s"),
        value_name: "TIME",
        help: "How long a worker waits for the coordinator",
        shown: |c| time(c.run.coordinator_wait),
    },
];

fn text(text: &str) -> Value {
    Value::String(text.to_string())
}

fn path(path: Option<&PathBuf>) -> Value {
    match path {
        Some(path) => text(&path.to_string_lossy()),
        None => Value::Null,
    }
}

fn resume(config: &Config) -> Value {
    match &config.run.resume {
        None => Value::Null,
        Some(Resume::Auto) => text("auto"),
        Some(Resume::File(file)) => path(Some(file)),
    }
}

fn task_list(config: &Config) -> Value {
    let names = config.recipe.mixed_tasks.iter().map(|task| text(task.name()));
    Value::Sequence(names.collect())
}

fn time(duration: Duration) -> Value {
    text(&format!("{}s", duration.as_secs_f64()))
}
