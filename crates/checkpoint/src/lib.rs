//! One consolidated safetensors file per checkpoint: projectors, optimizer, and everything that says what they are.
//!
//! Written by the coordinator from its committed state; read by the coordinator (resume), and by the
//! command line (`eval`, `predict`, `inspect`). Files are small (tens of KB; in the middle of a solver's round some MB),
//! so they are handled whole in memory.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod error;
mod evaluations;
pub mod file;
pub mod folder;
mod solve;
mod tensor;

pub use error::CheckpointError;
pub use file::{Checkpoint, Identity};
pub use folder::{RunFolder, write_atomically};
