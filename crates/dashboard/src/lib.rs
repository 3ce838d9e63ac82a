//! A page to watch a run: HTTP, Prometheus, TensorBoard. Nothing here touches a run.
//!
//! Reading order: [`source`] (what a command has to tell of a run) → [`tail`] and [`history`] (`metrics.jsonl`, read as it
//! grows and thinned) → [`board`] (all that is known of the runs shown) → [`server`] (the port), with [`guard`] (who may
//! ask), `routes`, `events` (the live stream) and [`metrics`] (Prometheus). [`alerts`] says what deserves a look, and
//! [`tensorboard`] writes event files from the same `metrics.jsonl`.

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod address;
pub mod alerts;
pub mod board;
mod disk;
mod events;
pub mod guard;
pub mod history;
pub mod metrics;
mod moving;
mod routes;
pub mod server;
pub mod source;
pub mod tail;
pub mod tensorboard;

pub use address::HttpAddress;
pub use board::Board;
pub use server::{Access, ServerError, serve};
pub use source::{CheckpointFact, Facts, RunSource};
