//! A worker: joins a coordinator, computes micro-batches with a frozen model, reduces, updates, reports.
//!
//! Reading order: `steps` (the units of one generation) → `link` (their stream) → `device` (the thread that computes) → `session` (connections,
//! one after the other) → `handshake`, `control_loop`, `generation` (one connection).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]
#![warn(missing_docs, clippy::missing_errors_doc)]

mod connection;
mod control_loop;
mod device;
pub mod error;
pub mod fault;
mod generation;
mod handshake;
mod link;
pub mod nccl;
pub mod session;
pub mod simulated;
mod steps;
mod uncommitted;

pub use error::WorkerError;
pub use handshake::pid_namespace;
pub use session::{Options, run};
