//! YAML, environment and flags become one validated, immutable [`Config`].
//!
//! Reading order: `types` (the result), `keys` and `table` (all keys), `layer` (one source of
//! settings), `resolve` (layers become a [`Config`]), `encoding` (its part about encoders), `checks` (rules between keys),
//! `show` (back to YAML), `recipe` (the half that travels in the checkpoint), `units` (the course of a run).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

mod checks;
mod choice;
mod encoding;
mod keys;
mod layer;
mod parse;
mod problem;
mod raw;
mod reader;
mod recipe;
mod resolve;
mod show;
mod signlog;
mod suggest;
mod table;
mod types;
mod units;

pub use choice::Choice;
pub use keys::{ENV_PREFIX, Key, KeyDefault, key, keys};
pub use layer::{INTERNAL_ENV_PREFIX, Layer, Origin, RESERVED_ENV};
pub use problem::{ConfigErrors, Problem};
pub use resolve::resolve;
pub use show::to_yaml;
pub use signlog::{signlog, signlog_inverse};
pub use types::*;
pub use units::{Position, Unit, Units};

/// A span of time as settings have it: a number of seconds, or one with `ms`, `s`, `min` or `h`; else why not, in words.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    parse::duration(&raw::Raw::Text(text.to_owned())).map_err(|fault| fault.message)
}

/// The folder of all runs: run `nn` keeps its checkpoints in `chk/nn/` and its result in `chk/nn.safetensors`.
pub const RUNS_FOLDER: &str = "chk";

/// A device as settings have it: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// Why the text is no device.
pub fn device(text: &str) -> Result<DeviceChoice, String> {
    parse::device(&raw::Raw::Text(text.to_owned())).map_err(|fault| fault.message)
}
