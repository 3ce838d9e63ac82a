//! One frozen model with its projectors: samples in, gradients or predictions out, and what can be measured of them.
//!
//! Knows neither network nor command line. Reading order: [`prepare`] (a sample becomes pieces) → [`engine`] (pieces
//! become gradients, features, errors, predictions) → [`local`] (a whole training run in this process) →
//! [`checkpointed`] (an engine from a checkpoint) → [`evaluation`], [`metrics`], [`error_analysis`], [`ablation`],
//! [`zero_shot`] (how good it is).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]
#![warn(missing_docs, clippy::missing_errors_doc)]

pub mod ablation;
pub mod checkpointed;
pub mod engine;
pub mod error;
pub mod error_analysis;
pub mod evaluation;
mod gradients;
pub mod local;
pub mod memory;
pub mod metrics;
mod prepare;
mod sample_check;
pub mod zero_shot;

pub use checkpointed::{Purpose, load_engine, training_stream};
pub use engine::Engine;
pub use error::EngineError;
pub use evaluation::{Evaluation, evaluate};
pub use local::LocalRun;
