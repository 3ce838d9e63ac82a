//! A worker: joins a coordinator, computes micro-batches with a frozen model, reduces, updates, reports.
//!
//! Reading order: [`steps`] (one generation) → [`device`] (the thread that computes) → [`session`] (a life).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod device;
pub mod error;
pub mod fault;
pub mod nccl;
pub mod session;
pub mod simulated;
pub mod steps;

pub use error::WorkerError;
pub use session::{Options, run};
