//! Samples and which rank computes them: the streams of every stage, numbers as people write them, the grammar of marked
//! numbers, tables, the digest of committed samples and the shard plan. Everything here is pure, except for reading a file.
//!
//! Reading order: [`sample`] → [`stream`] (sample `i` of a run) → [`generate`], or [`dataset`] over [`table`] (where it comes
//! from) → [`plan`] (its micro-batch and rank) → [`audit`] (what is computed twice).

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod audit;
pub mod constant;
pub mod dataset;
pub mod doubts;
pub mod error;
pub mod generate;
pub mod grammar;
pub mod jsonl;
pub mod number;
pub mod plan;
pub mod question;
pub mod random;
pub mod sample;
pub mod sample_digest;
pub mod schedule;
pub mod shown;
pub mod stream;
pub mod table;
mod text;

pub use audit::{Audit, AuditedRanks, Audits};
pub use constant::{constant_error, median};
pub use dataset::{Dataset, Side};
pub use doubts::{Doubt, doubts};
pub use error::DataError;
pub use grammar::{GrammarError, Segment};
pub use number::{DecimalMark, NumberError, NumberRule};
pub use plan::{MicroBatchId, assign, assign_weighted, held_out_of, samples_of, samples_of_chunk};
pub use question::{QuestionError, question};
pub use random::{Domain, SampleRng};
pub use sample::{Input, Sample};
pub use sample_digest::{SampleDigest, SampleDigestError};
pub use schedule::{Position, Schedule, Unit};
pub use stream::{SampleStream, Streams};
