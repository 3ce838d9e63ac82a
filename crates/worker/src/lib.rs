//! A worker: joins a coordinator, computes micro-batches with a frozen model, reduces, updates, reports.
//!
//! Called by `numalign worker` through [`run`]. [`Engine`], which knows how a sample becomes a gradient row or a
//! prediction, also serves `eval`, `predict`, `hidden`, `replay` and `bench`.
//!
//! Reading order: [`engine`] (one micro-batch) → [`steps`] (one generation) → [`session`] (a life).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod ablation;
pub mod breakdown;
pub mod device;
pub mod engine;
pub mod error;
pub mod evaluation;
pub mod fault;
pub mod local;
pub mod memory;
pub mod nccl;
pub mod session;
pub mod simulated;
pub mod steps;

pub use engine::Engine;
pub use error::WorkerError;
pub use local::LocalRun;
pub use session::{Options, run};
