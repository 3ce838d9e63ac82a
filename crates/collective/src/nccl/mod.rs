//! Rows over NCCL: one all-reduce per unit over a buffer with a place for every row, on a stream and a thread of their
//! own; then every rank adds the rows in micro-batch order on the host, with the code of all other collectives.
//!
//! A [`Formation`] is begun with each generation and given the id that the coordinator broadcasts; [`NcclRows`] reduces.
//! [`library`] tells what is installed.
//!
//! Reading order: [`rows`] (what is moved) → [`communicator`] (how) → [`thread`] (where) → here.

use numalign_projector::{MicroBatchGradients, digest_of};
use numalign_protocol::codec::Digest;
use tokio::sync::{mpsc, oneshot};

mod communicator;
pub mod library;
mod rows;
mod thread;

pub use communicator::NcclError;
pub use library::{Nccl, UniqueId};
pub use thread::Wanted;

use crate::{Collective, CollectiveError, DigestedRows, Gathered, Summed, digested, plain};
use thread::{Order, Orders, Started};

/// One process's communicators, one after the other: the next is formed when the thread of the one before has left NCCL.
#[derive(Default)]
pub struct Formations {
    before: Option<thread::Gone>,
}

/// A communicator in the making: the session's side of it.
pub struct Formation {
    orders: Orders,
}

/// Rank 0's id, once it is made; the other ranks never see it resolve.
pub type MadeId = oneshot::Receiver<Result<UniqueId, NcclError>>;

impl Formations {
    /// Begins to form a communicator for units of `micro_batches` gradients of `row_len` floats.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn begin(
        &mut self,
        wanted: Wanted,
        micro_batches: usize,
        row_len: usize,
    ) -> std::io::Result<(Formation, NcclRows, MadeId)> {
        let Started { orders, gone, id } = thread::start(wanted, self.before.take())?;
        self.before = Some(gone);
        let rows = NcclRows { orders: orders.clone(), micro_batches, row_len };
        Ok((Formation { orders }, rows, id))
    }
}

impl Formations {
    /// Waits until the last thread has left NCCL, for `timeout` at most: a process should not end under it.
    pub async fn finish(&mut self, timeout: std::time::Duration) {
        if let Some(gone) = self.before.take() {
            // Whatever came of it, the process ends now.
            let _ = tokio::time::timeout(timeout, gone).await;
        }
    }
}

impl Formation {
    /// The id that the coordinator handed out: the ranks find each other with it.
    pub fn form(&self, id: UniqueId) {
        // A thread that ended answers the next sum with its reason.
        let _ = self.orders.orders.send(Order::Form(id));
    }
}

/// The generation is over: the thread stops what it does and aborts.
impl Drop for Formation {
    fn drop(&mut self) {
        self.orders.cancelled.set();
    }
}

/// The unit loop's side of a communicator.
pub struct NcclRows {
    orders: Orders,
    /// Of a unit.
    micro_batches: usize,
    /// Of a gradient row.
    row_len: usize,
}

impl NcclRows {
    /// Every rank's rows of `unit`, and their digest.
    async fn exchange(
        &self,
        unit: u64,
        row_len: usize,
        rows: &MicroBatchGradients,
    ) -> Result<(numalign_projector::Rows, Digest), CollectiveError> {
        let words = rows::pack(unit, self.micro_batches, row_len, rows)?;
        let (reply, answer) = oneshot::channel();
        // If the thread is gone, the reply's sender is dropped with the order.
        let _ = self.orders.orders.send(Order::Sum(words, reply));
        let words = match answer.await {
            Ok(Ok(words)) => words,
            Ok(Err(NcclError::Cancelled)) => return Err(CollectiveError::GenerationOver),
            Ok(Err(error)) => return Err(error.into()),
            // A thread that was told to end drops the reply; so does one that panicked.
            Err(_) if self.orders.cancelled.is_set() => return Err(CollectiveError::GenerationOver),
            Err(_) => return Err(NcclError::Ended.into()),
        };
        rows::unpack(unit, self.micro_batches, row_len, &words)
    }
}

impl Collective for NcclRows {
    async fn all_reduce(&mut self, unit: u64, rows: DigestedRows) -> Result<Summed, CollectiveError> {
        let (rows, received) = self.exchange(unit, self.row_len, &plain(rows)).await?;
        Ok(Summed { sum: rows.sum()?, received: Some(received) })
    }

    async fn gather(&mut self, unit: u64, rows: DigestedRows) -> Result<Gathered, CollectiveError> {
        let rows = plain(rows);
        // Every rank has a micro-batch, and all rows of a chunk have one length.
        let row_len = rows.first().map_or(0, |(_, row)| row.len());
        let (rows, received) = self.exchange(unit, row_len, &rows).await?;
        let rows = rows.concatenated()?;
        Ok(Gathered { digest: digest_of(&rows), rows: Some(rows), received: Some(received) })
    }
}

/// All-reduces made-up rows among `gpus`, a rank and a thread each, and compares with the sum on the host. For `selftest`.
///
/// # Errors
/// NCCL's, or that a bit differs.
pub async fn check(gpus: &[usize], row_len: usize, deadline: std::time::Duration) -> Result<(), String> {
    let world = gpus.len();
    let (sums, mut received) = mpsc::channel(world.max(1));
    let value = |micro_batch: usize, i: usize| ((i * 31 + micro_batch * 17) % 97) as f32 * 0.37 - 15.0;
    let row = |micro_batch: usize| -> Vec<f32> { (0..row_len).map(|i| value(micro_batch, i)).collect() };
    let mut expected = vec![0.0f32; row_len];
    for micro_batch in 0..world {
        for (sum, value) in expected.iter_mut().zip(row(micro_batch)) {
            *sum += value;
        }
    }
    let mut formations = Vec::new();
    let mut first_id = None;
    for (rank, gpu) in gpus.iter().enumerate() {
        let mut own = Formations::default();
        let wanted = Wanted { gpu: *gpu, rank, world, deadline };
        let (formation, mut ranks_rows, id) =
            own.begin(wanted, world, row_len).map_err(|error| format!("no thread can be started: {error}"))?;
        first_id.get_or_insert(id);
        formations.push((own, formation));
        let (sums, own_rows) = (sums.clone(), digested(vec![(rank, row(rank))]));
        tokio::spawn(async move {
            // The receiver ends with the check.
            let _ = sums.send(ranks_rows.all_reduce(0, own_rows).await).await;
        });
    }
    let Some(first_id) = first_id else {
        return Err("there is no GPU".to_owned());
    };
    let id = tokio::time::timeout(deadline, first_id).await;
    let id = id.map_err(|_| format!("NCCL made no id within {} s", deadline.as_secs()))?;
    let id = id.map_err(|_| "the first rank's thread ended".to_owned())?;
    let id = id.map_err(|error| error.to_string())?;
    for (_, formation) in &formations {
        formation.form(id);
    }
    for _ in 0..world {
        let Summed { sum, .. } = match tokio::time::timeout(deadline * 2, received.recv()).await {
            Ok(Some(sum)) => sum.map_err(|error| error.to_string())?,
            Ok(None) => return Err("a rank ended without a sum".to_owned()),
            Err(_) => return Err(format!("no sum within {:.0} s", (deadline * 2).as_secs_f64())),
        };
        if let Some(i) = (0..row_len).find(|i| sum[*i].to_bits() != expected[*i].to_bits()) {
            return Err(format!("float {i} of the sum is {}, on the host {}", sum[i], expected[i]));
        }
    }
    Ok(())
}
