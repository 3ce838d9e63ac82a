//! How the gradients of one unit become one sum on every rank: always the canonical sum, added in micro-batch order
//! ([`numalign_projector::Rows`]), so the choice of a collective never changes a bit. Rows of the solver's chunks are
//! gathered instead: every rank learns their digest, and the coordinator gets the rows.
//!
//! [`nccl`] moves rows between GPUs. Over gRPC they travel with everything else that a unit needs, so that collective is
//! part of the worker's link to the coordinator.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]
#![warn(missing_docs, clippy::missing_errors_doc)]

use std::future::Future;

pub mod nccl;

use numalign_projector::{MicroBatchGradients, RowError, digest_of};

/// The row of a micro-batch with its digest, made where it was computed.
pub type DigestedRow = (usize, Vec<f32>, [u8; 32]);

/// Rows of micro-batches with the digest of each.
pub type DigestedRows = Vec<DigestedRow>;

/// Rows as they were computed, each with its digest.
pub fn digested(rows: MicroBatchGradients) -> DigestedRows {
    let with_digest = |(micro_batch, row): (usize, Vec<f32>)| {
        let digest = digest_of(&row);
        (micro_batch, row, digest)
    };
    rows.into_iter().map(with_digest).collect()
}

/// Rows without their digests.
pub fn plain(rows: DigestedRows) -> MicroBatchGradients {
    rows.into_iter().map(|(micro_batch, row, _)| (micro_batch, row)).collect()
}

/// The sum of a unit's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Summed {
    /// The canonical sum `[row_len]`.
    pub sum: Vec<f32>,
    /// The digest of all rows as this rank received them ([`numalign_protocol::codec::digest_of_rows`]); `None` if it received the sum
    /// alone.
    pub received: Option<[u8; 32]>,
}

/// The rows of a chunk, put together in micro-batch order.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    /// BLAKE3 of the rows ([`numalign_projector::features::digest_of`]), the same on every rank.
    pub digest: [u8; 32],
    /// The rows themselves, for rank 0 to report; `None` if they went through the coordinator.
    pub rows: Option<Vec<f32>>,
    /// As in [`Summed`].
    pub received: Option<[u8; 32]>,
}

/// Why a reduction gave no sum.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    /// The coordinator ended the generation, and its rows with it.
    #[error("the generation is over")]
    GenerationOver,
    /// The coordinator does not accept the rows.
    #[error("the coordinator refused the rows of unit {unit}: {reason}")]
    Refused {
        /// Number of the unit in the run.
        unit: u64,
        /// What the coordinator says.
        reason: String,
    },
    /// The coordinator did not answer.
    #[error("the connection to the coordinator broke in unit {unit}: {reason}")]
    Connection {
        /// Number of the unit in the run.
        unit: u64,
        /// What the connection says.
        reason: String,
    },
    /// Rows that have no sum.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// NCCL's, or its thread's.
    #[error(transparent)]
    Nccl(#[from] nccl::NcclError),
}

/// Sums the rows of all ranks of one generation.
pub trait Collective: Send {
    /// The canonical sum of all micro-batches of `unit`, the same bits on every rank.
    ///
    /// # Errors
    /// The generation ended, or the rows of all ranks cannot be brought together.
    fn all_reduce(
        &mut self,
        unit: u64,
        rows: DigestedRows,
    ) -> impl Future<Output = Result<Summed, CollectiveError>> + Send;

    /// Gathers the rows of a chunk of the solver's round, moved bit for bit; `unit` is its number in the run.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`].
    fn gather(
        &mut self,
        unit: u64,
        rows: DigestedRows,
    ) -> impl Future<Output = Result<Gathered, CollectiveError>> + Send;
}
