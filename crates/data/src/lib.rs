//! Samples and who computes them: the streams of every stage, the marked-number grammar, JSONL files,
//! the ledger of committed samples and the shard plan. Everything here is pure, except for reading a file.
//!
//! The coordinator draws samples from a [`SampleStream`], hands out micro-batches by [`plan`], has some computed twice
//! by [`audit`] and keeps the [`Ledger`]; the worker parses mixed texts with [`grammar`]; the command line writes files with [`jsonl`].

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod audit;
pub mod error;
pub mod generate;
pub mod grammar;
pub mod grid;
mod json_line;
mod json_object;
pub mod jsonl;
pub mod ledger;
pub mod permutation;
pub mod plan;
pub mod random;
pub mod sample;
pub mod schedule;
pub mod stream;
pub mod streams;
mod values;
pub mod wording;

pub use audit::{Audit, audit_due, audit_of};
pub use error::{DataError, LineProblem};
pub use grammar::{GrammarError, Segment};
pub use ledger::{Ledger, LedgerError};
pub use plan::{MicroBatchId, assign, assign_weighted, held_out_of, samples_of, samples_of_chunk};
pub use random::{Domain, SampleRng};
pub use sample::{Input, Sample};
pub use schedule::{Position, Schedule, Unit};
pub use stream::SampleStream;
pub use streams::Streams;
