//! YAML, environment and flags become one validated [`Config`].
//!
//! Reading order: `keys` (the one table of all keys, and how a row becomes a field: `declare`), `key` (what a key is),
//! `kind` and `parse` (values), `tap` (places that are read), `source` (one source of settings), `resolve` (sources become
//! a [`Config`]), `settings` (what follows from others), `rules` (between keys), `origins` (where a value was written),
//! `show` and `schema` (back to YAML, and for editors), `recipe` (the half that travels in the checkpoint).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]
#![warn(missing_docs, clippy::missing_errors_doc)]

#[macro_use]
mod declare;

mod choice;
mod config;
mod error;
mod key;
mod keys;
mod kind;
mod origins;
mod parse;
mod raw;
mod recipe;
mod resolve;
mod rules;
mod schema;
mod settings;
mod show;
mod signlog;
mod source;
mod span;
mod suggest;
mod tap;

pub use choice::{
    Arithmetic, Choice, CollectiveChoice, CpuArithmetic, DeviceChoice, Distribution, Dtype, LoadedProjections, Loss,
    MissingCells, Pooling, Resume, Solver, Stage, TableFormat, TargetEncoding, Task, ValueEncoding,
};
pub use config::Config;
pub use error::{ConfigError, ConfigErrors};
pub use key::{ENV_PREFIX, Key, KeyDefault, key, keys};
pub use keys::{RUNS_FOLDER, Recipe, RunSettings};
pub use resolve::{draft, resolve, resolve_over};
pub use schema::schema;
pub use show::{recipe_to_yaml, to_yaml};
pub use signlog::{signlog, signlog_inverse};
pub use source::{INTERNAL_ENV_PREFIX, RESERVED_ENV, Source};
pub use span::Span;
pub use tap::{MOST_TAPS, Tap};

/// A span of time as settings have it: a number of seconds, or one with `ms`, `s`, `min` or `h`.
///
/// # Errors
/// Why `text` is not one.
pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    parse::duration(&raw::Raw::Text(text.to_owned())).map_err(|error| error.message)
}

/// A device as settings have it: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// Why the text is no device.
pub fn device(text: &str) -> Result<DeviceChoice, String> {
    parse::device(&raw::Raw::Text(text.to_owned())).map_err(|error| error.message)
}
