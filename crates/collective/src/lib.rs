//! How the gradient rows of one unit become one sum on every rank: always the canonical sum, added in
//! micro-batch order ([`numalign_projector::Rows`]), so the way chosen never changes a bit. Rows of the solver's chunks
//! are gathered instead: every rank learns their digest, and the coordinator gets the rows.
//!
//! Called by the worker's unit loop. [`Grpc`] sends rows to the coordinator; [`nccl`] moves them between GPUs; [`Local`] is a
//! world of one. [`Chosen`] is whichever of the first two the coordinator named for a generation.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

use std::future::Future;

pub mod nccl;

use numalign_access::Client;
use numalign_projector::features::digest_of;
use numalign_projector::{RowError, Rows};
use numalign_protocol as proto;

/// One row per micro-batch computed by this rank: its index in the unit, then `[3d+2]` floats.
pub type OwnRows = Vec<(usize, Vec<f32>)>;

/// The rows of a chunk, put together in micro-batch order.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    /// BLAKE3 of the rows ([`digest_of`]), the same on every rank.
    pub digest: [u8; 32],
    /// The rows themselves, for rank 0 to report; none where they went through the coordinator.
    pub rows: Option<Vec<f32>>,
}

/// Why a reduction gave no sum.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    #[error("the generation is over")]
    GenerationOver,
    #[error("the coordinator refused the rows of unit {unit}: {reason}")]
    Refused { unit: u64, reason: String },
    #[error("the connection to the coordinator broke in unit {unit}: {reason}")]
    Connection { unit: u64, reason: String },
    #[error(transparent)]
    Rows(#[from] RowError),
    #[error(transparent)]
    Nccl(#[from] nccl::NcclError),
}

/// Sums the rows of all ranks of one generation.
pub trait Collective: Send {
    /// The canonical sum `[3d+2]` of all micro-batches of `unit`, the same bits on every rank.
    fn all_reduce(
        &mut self,
        unit: u64,
        rows: OwnRows,
    ) -> impl Future<Output = Result<Vec<f32>, CollectiveError>> + Send;

    /// Gathers the rows of a chunk of the solver's round, moved bit for bit; `unit` is its number in the run.
    fn gather(&mut self, unit: u64, rows: OwnRows) -> impl Future<Output = Result<Gathered, CollectiveError>> + Send;
}

/// A world of one: this rank has every row.
pub struct Local {
    pub micro_batches: usize,
    /// Of a gradient row.
    pub row_len: usize,
}

impl Local {
    /// The canonical sum `[3d+2]` of a unit's rows; nobody has to be waited for.
    pub fn sum(&self, rows: OwnRows) -> Result<Vec<f32>, CollectiveError> {
        let mut all = Rows::new(self.micro_batches, self.row_len);
        for (micro_batch, row) in rows {
            all.insert(micro_batch, row)?;
        }
        Ok(all.sum()?)
    }
}

impl Collective for Local {
    async fn all_reduce(&mut self, _step: u64, rows: OwnRows) -> Result<Vec<f32>, CollectiveError> {
        self.sum(rows)
    }

    async fn gather(&mut self, _unit: u64, rows: OwnRows) -> Result<Gathered, CollectiveError> {
        let row_len = rows.first().map_or(0, |(_, row)| row.len());
        let mut all = Rows::new(self.micro_batches, row_len);
        for (micro_batch, row) in rows {
            all.insert(micro_batch, row)?;
        }
        let rows = all.concatenated()?;
        Ok(Gathered { digest: digest_of(&rows), rows: Some(rows) })
    }
}

/// Bytes of rows in one message: far below every limit on messages, whatever the hidden size.
const BYTES_AT_ONCE: usize = 4 << 20;

/// Rows go to the coordinator, which adds them and answers with the sum.
pub struct Grpc {
    pub client: Client,
    pub generation: proto::Generation,
    pub member: u64,
}

impl Grpc {
    async fn request(&mut self, unit: u64, rows: OwnRows, more: bool) -> Result<proto::ReduceReply, CollectiveError> {
        let rows = rows.iter().map(|(micro_batch, row)| proto::Row::new(*micro_batch, row));
        let (generation, member) = (Some(self.generation), self.member);
        let request = proto::ReduceRequest { generation, member, unit, rows: rows.collect(), more };
        let reply = match self.client.reduce(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                return Err(CollectiveError::Refused { unit, reason: status.message().to_owned() });
            }
            Err(status) => return Err(CollectiveError::Connection { unit, reason: status.message().to_owned() }),
        };
        if !reply.complete {
            return Err(CollectiveError::GenerationOver);
        }
        Ok(reply)
    }
}

impl Collective for Grpc {
    async fn gather(&mut self, unit: u64, rows: OwnRows) -> Result<Gathered, CollectiveError> {
        let (mut part, mut bytes) = (OwnRows::new(), 0);
        for (micro_batch, row) in rows {
            let size = 4 * row.len();
            if !part.is_empty() && bytes + size > BYTES_AT_ONCE {
                self.request(unit, std::mem::take(&mut part), true).await?;
                bytes = 0;
            }
            bytes += size;
            part.push((micro_batch, row));
        }
        let reply = self.request(unit, part, false).await?;
        match reply.gathered_digest.try_into() {
            Ok(digest) => Ok(Gathered { digest, rows: None }),
            Err(other) => Err(CollectiveError::Refused {
                unit,
                reason: format!("its digest of the gathered rows has {} bytes instead of 32", other.len()),
            }),
        }
    }

    async fn all_reduce(&mut self, unit: u64, rows: OwnRows) -> Result<Vec<f32>, CollectiveError> {
        let reply = self.request(unit, rows, false).await?;
        proto::codec::floats_from_bytes(&reply.sum)
            .map_err(|error| CollectiveError::Refused { unit, reason: format!("its sum cannot be read: {error}") })
    }
}

/// The collective of one generation.
pub enum Chosen {
    Grpc(Grpc),
    Nccl(nccl::NcclRows),
}

impl Collective for Chosen {
    async fn all_reduce(&mut self, unit: u64, rows: OwnRows) -> Result<Vec<f32>, CollectiveError> {
        match self {
            Chosen::Grpc(grpc) => grpc.all_reduce(unit, rows).await,
            Chosen::Nccl(nccl) => nccl.all_reduce(unit, rows).await,
        }
    }

    async fn gather(&mut self, unit: u64, rows: OwnRows) -> Result<Gathered, CollectiveError> {
        match self {
            Chosen::Grpc(grpc) => grpc.gather(unit, rows).await,
            Chosen::Nccl(nccl) => nccl.gather(unit, rows).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// A world of one never waits, so one poll is enough.
    fn reduce(local: &mut Local, rows: OwnRows) -> Result<Vec<f32>, CollectiveError> {
        let mut future = pin!(local.all_reduce(0, rows));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("a world of one waited"),
        }
    }

    #[test]
    fn local_adds_in_micro_batch_order() {
        let mut local = Local { micro_batches: 3, row_len: 2 };
        // In another order 1e8 would swallow the ones.
        let rows = vec![(2, vec![-1e8, 0.5]), (0, vec![1.0, -0.0]), (1, vec![1e8, -0.0])];
        let sum = reduce(&mut local, rows.clone()).unwrap();
        assert_eq!(sum, vec![(1.0f32 + 1e8) - 1e8, 0.5]);
        let mut canonical = Rows::new(3, 2);
        for (micro_batch, row) in rows {
            canonical.insert(micro_batch, row).unwrap();
        }
        assert_eq!(sum, canonical.sum().unwrap());
        assert_ne!(sum[0], (-1e8f32 + 1e8) + 1.0, "the order shows");
    }

    #[test]
    fn local_gathers_in_micro_batch_order() {
        let mut local = Local { micro_batches: 2, row_len: 1 };
        let mut future = pin!(local.gather(0, vec![(1, vec![3.0, 4.0]), (0, vec![1.0, -0.0])]));
        let Poll::Ready(Ok(gathered)) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("a world of one has every row at once");
        };
        let expected = vec![1.0, -0.0, 3.0, 4.0];
        assert_eq!(gathered, Gathered { digest: digest_of(&expected), rows: Some(expected) });
    }

    #[test]
    fn local_refuses_what_is_not_one_row_per_micro_batch() {
        let mut local = Local { micro_batches: 2, row_len: 1 };
        let mut refusal = |rows| reduce(&mut local, rows).unwrap_err().to_string();
        assert_eq!(refusal(vec![(1, vec![1.0])]), "the row of micro-batch 0 is missing");
        assert_eq!(refusal(vec![(2, vec![1.0])]), "micro-batch 2 is not one of 2");
        assert_eq!(refusal(vec![(0, vec![])]), "the row of micro-batch 0 has 0 floats instead of 1");
        let twice = vec![(0, vec![1.0]), (0, vec![2.0]), (1, vec![1.0])];
        assert_eq!(refusal(twice), "the row of micro-batch 0 came twice with different bits");
    }
}
