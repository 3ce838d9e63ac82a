//! How the gradients of one unit become one sum on every rank: always the canonical sum, added in micro-batch order
//! ([`numalign_projector::Rows`]), so the choice of a collective never changes a bit. Rows of the solver's chunks are
//! gathered instead: every rank learns their digest, and the coordinator gets the rows.
//!
//! [`Grpc`] sends rows to the coordinator; [`nccl`] moves them between GPUs; [`Chosen`] is the one of the two that the
//! coordinator named for a generation.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]
#![warn(missing_docs, clippy::missing_errors_doc)]

use std::future::Future;

pub mod nccl;

use numalign_access::Client;
use numalign_access::rate_limited_log::sanitize;
use numalign_projector::{MicroBatchGradients, RowError, digest_of};
use numalign_protocol as proto;

/// Rows of micro-batches with the digest of each, made where it was computed.
pub type DigestedRows = Vec<(usize, Vec<f32>, [u8; 32])>;

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
    /// The digest of all rows as this rank received them ([`proto::codec::digest_of_rows`]); `None` if it received the sum
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

/// Characters that are kept of what a coordinator says.
const MAX_MESSAGE: usize = 4096;

/// Bytes of rows in one message: far below every limit on messages, whatever the hidden size.
const BYTES_AT_ONCE: usize = 4 << 20;

/// Rows go to the coordinator, which adds them and answers with the sum.
pub struct Grpc {
    /// The connection to the coordinator.
    pub client: Client,
    /// The generation that the rows belong to.
    pub generation: proto::Generation,
    /// This worker's number in the run.
    pub member: u64,
}

/// How often a call or a stream whose message was damaged is tried again at once.
pub const MAX_ATTEMPTS: u32 = 8;

/// Whether a message was damaged on its way, so that the same one may arrive the next time. On a connection that is lost
/// nothing arrives.
pub fn is_damage(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::DataLoss | tonic::Code::Internal | tonic::Code::Unknown)
}

impl Grpc {
    async fn request(
        &mut self,
        unit: u64,
        rows: &[(usize, Vec<f32>, [u8; 32])],
        more: bool,
    ) -> Result<proto::ReduceReply, CollectiveError> {
        let mut attempt = 1;
        loop {
            let messages = rows.iter().map(|(micro_batch, row, digest)| proto::Row::new(*micro_batch, row, *digest));
            let (generation, member) = (Some(self.generation), self.member);
            let request = proto::ReduceRequest { generation, member, unit, rows: messages.collect(), more };
            let status = match self.client.reduce(request).await.map(tonic::Response::into_inner) {
                Ok(reply) if reply.complete => return Ok(reply),
                Ok(_) => return Err(CollectiveError::GenerationOver),
                Err(status) => status,
            };
            let reason = sanitize(status.message(), MAX_MESSAGE);
            if status.code() == tonic::Code::InvalidArgument {
                return Err(CollectiveError::Refused { unit, reason });
            }
            if attempt == MAX_ATTEMPTS || !is_damage(&status) {
                return Err(CollectiveError::Connection { unit, reason });
            }
            attempt += 1;
        }
    }
}

impl Collective for Grpc {
    async fn gather(&mut self, unit: u64, rows: DigestedRows) -> Result<Gathered, CollectiveError> {
        let (mut first, mut bytes) = (0, 0);
        for (place, (_, row, _)) in rows.iter().enumerate() {
            let size = 4 * row.len();
            if place > first && bytes + size > BYTES_AT_ONCE {
                self.request(unit, &rows[first..place], true).await?;
                (first, bytes) = (place, 0);
            }
            bytes += size;
        }
        let reply = self.request(unit, &rows[first..], false).await?;
        match reply.gathered_digest.try_into() {
            Ok(digest) => Ok(Gathered { digest, rows: None, received: None }),
            Err(other) => Err(CollectiveError::Refused {
                unit,
                reason: format!("its digest of the gathered rows has {} bytes instead of 32", other.len()),
            }),
        }
    }

    async fn all_reduce(&mut self, unit: u64, rows: DigestedRows) -> Result<Summed, CollectiveError> {
        let reply = self.request(unit, &rows, false).await?;
        match proto::codec::floats_from_bytes(&reply.sum) {
            Ok(sum) => Ok(Summed { sum, received: None }),
            Err(error) => Err(CollectiveError::Refused { unit, reason: format!("its sum cannot be read: {error}") }),
        }
    }
}

/// The collective of one generation.
pub enum Chosen {
    /// Through the coordinator.
    Grpc(Box<Grpc>),
    /// Between GPUs.
    Nccl(nccl::NcclRows),
}

impl Collective for Chosen {
    async fn all_reduce(&mut self, unit: u64, rows: DigestedRows) -> Result<Summed, CollectiveError> {
        match self {
            Chosen::Grpc(grpc) => grpc.all_reduce(unit, rows).await,
            Chosen::Nccl(nccl) => nccl.all_reduce(unit, rows).await,
        }
    }

    async fn gather(&mut self, unit: u64, rows: DigestedRows) -> Result<Gathered, CollectiveError> {
        match self {
            Chosen::Grpc(grpc) => grpc.gather(unit, rows).await,
            Chosen::Nccl(nccl) => nccl.gather(unit, rows).await,
        }
    }
}
