//! How the gradient rows of one step become one sum on every rank: always the canonical sum, added in
//! micro-batch order ([`numalign_projector::Rows`]), so the way chosen never changes a bit.
//!
//! Called by the worker's step loop. [`Grpc`] sends rows to the coordinator; [`Local`] is a world of one.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

use std::future::Future;

use numalign_projector::{RowError, Rows};
use numalign_wire as wire;
use numalign_wire::coordinator_client::CoordinatorClient;
use tonic::transport::Channel;

/// One row per micro-batch computed by this rank: its index in the step, then `[3d+2]` floats.
pub type OwnRows = Vec<(usize, Vec<f32>)>;

/// Why a reduction gave no sum.
#[derive(Debug, thiserror::Error)]
pub enum CollectiveError {
    #[error("the generation is over")]
    GenerationOver,
    #[error("the coordinator refused the rows of step {step}: {reason}")]
    Refused { step: u64, reason: String },
    #[error("the connection to the coordinator broke in step {step}: {reason}")]
    Connection { step: u64, reason: String },
    #[error(transparent)]
    Rows(#[from] RowError),
}

/// Sums the rows of all ranks of one generation.
pub trait Collective: Send {
    /// The canonical sum `[3d+2]` of all micro-batches of `step`, the same bits on every rank.
    fn all_reduce(&mut self, step: u64, rows: OwnRows) -> impl Future<Output = Result<Vec<f32>, CollectiveError>> + Send;
}

/// A world of one: this rank has every row.
pub struct Local {
    pub micro_batches: usize,
    pub row_len: usize,
}

impl Collective for Local {
    async fn all_reduce(&mut self, _step: u64, rows: OwnRows) -> Result<Vec<f32>, CollectiveError> {
        let mut all = Rows::new(self.micro_batches, self.row_len);
        for (micro_batch, row) in rows {
            all.insert(micro_batch, row)?;
        }
        Ok(all.sum()?)
    }
}

/// Rows go to the coordinator, which adds them and answers with the sum.
pub struct Grpc {
    pub client: CoordinatorClient<Channel>,
    pub generation: wire::Generation,
    pub member: u64,
}

impl Collective for Grpc {
    async fn all_reduce(&mut self, step: u64, rows: OwnRows) -> Result<Vec<f32>, CollectiveError> {
        let rows = rows.into_iter().map(|(micro_batch, row)| wire::Row {
            micro_batch: micro_batch as u32,
            values: row.iter().flat_map(|value| value.to_le_bytes()).collect(),
        });
        let request =
            wire::ReduceRequest { generation: Some(self.generation), member: self.member, step, rows: rows.collect() };
        let reply = match self.client.reduce(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if status.code() == tonic::Code::InvalidArgument => {
                return Err(CollectiveError::Refused { step, reason: status.message().to_owned() });
            }
            Err(status) => return Err(CollectiveError::Connection { step, reason: status.message().to_owned() }),
        };
        if !reply.complete {
            return Err(CollectiveError::GenerationOver);
        }
        Ok(reply.sum.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}
