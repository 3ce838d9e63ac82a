//! The coordinator: membership, shards, commits, checkpoints, status.
//!
//! It never computes with a model: it starts in milliseconds on a machine without a GPU, and moves bytes.
//!
//! Reading order: [`machine::events`] (what can happen and what follows) → [`machine`] (every decision, pure) → [`driver`]
//! (applies them) → [`rpc`] (how workers talk to it, and who may) → [`report`] and [`background`].

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod address;
pub mod background;
mod dataset;
pub mod driver;
pub mod error;
mod final_file;
#[cfg(test)]
mod fixtures;
pub mod machine;
pub mod report;
pub mod rpc;
pub mod run;
pub mod start;
mod state_key;
pub mod stderr;

pub use background::probe::REPORT as PROBE_REPORT;
pub use background::probe_needs::ProbeNeeds;
pub use dataset::{OpenedFiles, eval_file_options, split_of, streams_of, table_options};
pub use driver::Outcome;
pub use error::CoordinatorError;
pub use run::{StatusQueries, run};
