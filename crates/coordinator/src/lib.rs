//! The coordinator: membership, shards, commits, checkpoints, status.
//!
//! It never computes with a model: it starts in milliseconds on a box without a GPU, and moves bytes.
//! Called by `numalign coordinator` and by tests, through [`run`].
//!
//! Reading order: [`events`] (the words) → [`machine`] (what is decided, with [`audit`] and [`shares`]) → [`shell`] (what is done about it) → [`service`]
//! (how workers talk to it) → [`gate`] and [`guard`] (who may).

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod address;
pub mod audit;
pub mod collective;
pub mod complaints;
pub mod error;
pub mod events;
pub mod failures;
pub mod gate;
pub mod guard;
pub mod heard;
pub mod machine;
pub mod outbox;
pub mod progress;
pub mod reduce;
pub mod run;
pub mod service;
pub mod shares;
pub mod shell;
pub mod solving;
pub mod start;
pub mod stderr;
pub mod work;
pub mod writer;

pub use error::CoordinatorError;
pub use run::run;
pub use shell::Outcome;
