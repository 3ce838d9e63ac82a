//! One rank's stream of one generation: micro-batches and sums come, rows, reports and credits go. It is the gRPC collective
//! too. A stream in which a message was damaged is opened again.

use std::collections::VecDeque;

use numalign_access::Client;
use numalign_access::rate_limited_log::sanitize;
use numalign_collective::{Collective, CollectiveError, DigestedRow, DigestedRows, Gathered, Summed};
use numalign_protocol as proto;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// How often a stream whose message was damaged is opened again before its unit counts as lost.
pub(crate) const MAX_ATTEMPTS: u32 = 8;

/// Characters that are kept of what a coordinator says.
const MAX_MESSAGE: usize = 4096;

/// Bytes of rows in one message: far below every limit on messages, whatever the hidden size.
const BYTES_AT_ONCE: usize = 4 << 20;

/// Messages that may wait to be sent.
const UNSENT: usize = 4;

/// The stream, and what came on it before it was asked for.
pub(crate) struct Link {
    client: Client,
    generation: proto::Generation,
    member: u64,
    /// Units whose work may come ahead.
    ahead: u32,
    /// None before it was opened.
    stream: Option<Stream>,
    work: VecDeque<proto::MicroBatch>,
    /// What goes with the next rows.
    report: Option<proto::UnitDone>,
    committed: Option<proto::Committed>,
}

struct Stream {
    outgoing: mpsc::Sender<proto::RankMessage>,
    inbound: Streaming<proto::WorkMessage>,
}

/// Whether a message was damaged on its way, so that the same one may arrive the next time. On a connection that is lost
/// nothing arrives.
pub(crate) fn is_damage(status: &Status) -> bool {
    matches!(status.code(), Code::DataLoss | Code::Internal | Code::Unknown)
}

/// What a status means for the generation.
pub(crate) fn failed(unit: u64, status: &Status) -> CollectiveError {
    let reason = sanitize(status.message(), MAX_MESSAGE);
    match status.code() {
        Code::InvalidArgument => CollectiveError::Refused { unit, reason },
        _ => CollectiveError::Connection { unit, reason },
    }
}

impl Link {
    /// Not opened yet.
    pub fn new(client: Client, generation: proto::Generation, member: u64, ahead: u32) -> Self {
        let (work, report, committed) = (VecDeque::new(), None, None);
        Self { client, generation, member, ahead, stream: None, work, report, committed }
    }

    /// Opens the stream, or another one in its place, whose work begins with `unit`.
    ///
    /// # Errors
    /// The coordinator does not answer, or the generation is over.
    pub async fn open(&mut self, unit: u64) -> Result<(), CollectiveError> {
        self.work.clear();
        self.stream = None;
        let mut attempt = 1;
        loop {
            let (outgoing, messages) = mpsc::channel(UNSENT);
            // The channel has room for it.
            let _ = outgoing.try_send(proto::RankMessage {
                generation: Some(self.generation),
                member: self.member,
                credit: self.ahead,
                from_unit: unit,
                ..proto::RankMessage::default()
            });
            match self.client.work(ReceiverStream::new(messages)).await {
                Ok(answer) => {
                    self.stream = Some(Stream { outgoing, inbound: answer.into_inner() });
                    return Ok(());
                }
                Err(status) if is_damage(&status) && attempt < MAX_ATTEMPTS => attempt += 1,
                Err(status) => return Err(failed(unit, &status)),
            }
        }
    }

    /// Whether there is work that was not taken yet.
    pub fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// The next micro-batch; none if the generation is over.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn micro_batch(&mut self) -> Result<Option<proto::MicroBatch>, Status> {
        loop {
            if let Some(work) = self.work.pop_front() {
                return Ok(Some(work));
            }
            match self.message().await? {
                Some(message) => self.work.extend(message.work),
                None => return Ok(None),
            }
        }
    }

    async fn message(&mut self) -> Result<Option<proto::WorkMessage>, Status> {
        match &mut self.stream {
            Some(stream) => stream.inbound.message().await,
            None => Ok(None),
        }
    }

    /// Asks for one unit more; for a rank whose rows go elsewhere.
    pub fn ask(&mut self) {
        if let Some(stream) = &self.stream {
            // The stream's end shows itself at the next receive.
            let _ = stream.outgoing.try_send(proto::RankMessage { credit: 1, ..proto::RankMessage::default() });
        }
    }

    /// Sends `report` with the next rows, unless it is taken back before.
    pub fn enclose(&mut self, report: proto::UnitDone) {
        self.report = Some(report);
    }

    /// Whether a report waits for rows to travel with.
    pub fn has_report(&self) -> bool {
        self.report.is_some()
    }

    /// Takes the report back that waits for rows to travel with.
    pub fn take_report(&mut self) -> Option<proto::UnitDone> {
        self.report.take()
    }

    /// What was committed, as far as sums told it since the last call.
    pub fn take_committed(&mut self) -> Option<proto::Committed> {
        self.committed.take()
    }

    /// Sends the rows of `unit`, with the report of the one before and the credit for another one; answers with their sum.
    async fn exchange(&mut self, unit: u64, rows: &DigestedRows) -> Result<proto::Sum, CollectiveError> {
        let report = self.report.take();
        let mut credit = 1;
        let mut attempt = 1;
        loop {
            match self.try_exchange(unit, rows, report.clone(), credit).await {
                Ok(Some(sum)) => return Ok(sum),
                Ok(None) => return Err(CollectiveError::GenerationOver),
                Err(status) if is_damage(&status) && attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                    // A stream that is opened asks for all work that may come ahead.
                    credit = 0;
                    self.open(unit + 1).await?;
                }
                Err(status) => return Err(failed(unit, &status)),
            }
        }
    }

    async fn try_exchange(
        &mut self,
        unit: u64,
        rows: &DigestedRows,
        report: Option<proto::UnitDone>,
        credit: u32,
    ) -> Result<Option<proto::Sum>, Status> {
        let Some(stream) = &self.stream else {
            return Ok(None);
        };
        let parts = parts_of(rows);
        let last = parts.len() - 1;
        let (mut report, mut credit) = (report, credit);
        for (place, part) in parts.into_iter().enumerate() {
            let row = |(micro_batch, row, digest): &DigestedRow| proto::Row::new(*micro_batch, row, *digest);
            let message = proto::RankMessage {
                credit: std::mem::take(&mut credit),
                unit: Some(unit),
                rows: part.iter().map(row).collect(),
                more: place < last,
                done: report.take(),
                ..proto::RankMessage::default()
            };
            if stream.outgoing.send(message).await.is_err() {
                // What comes says why.
                break;
            }
        }
        while let Some(message) = self.message().await? {
            self.work.extend(message.work);
            let Some(sum) = message.sum.filter(|sum| sum.unit == unit) else {
                continue;
            };
            self.committed = sum.committed.clone().or(self.committed.take());
            return Ok(Some(sum));
        }
        Ok(None)
    }
}

/// The rows in parts that fit a message; at least one, if an empty one.
fn parts_of(rows: &[DigestedRow]) -> Vec<&[DigestedRow]> {
    let (mut parts, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (place, (_, row, _)) in rows.iter().enumerate() {
        let size = 4 * row.len();
        if place > first && bytes + size > BYTES_AT_ONCE {
            parts.push(&rows[first..place]);
            (first, bytes) = (place, 0);
        }
        bytes += size;
    }
    parts.push(&rows[first..]);
    parts
}

impl Collective for Link {
    async fn all_reduce(&mut self, unit: u64, rows: DigestedRows) -> Result<Summed, CollectiveError> {
        let sum = self.exchange(unit, &rows).await?;
        match proto::codec::floats_from_bytes(&sum.sum) {
            Ok(sum) => Ok(Summed { sum, received: None }),
            Err(error) => Err(CollectiveError::Refused { unit, reason: format!("its sum cannot be read: {error}") }),
        }
    }

    async fn gather(&mut self, unit: u64, rows: DigestedRows) -> Result<Gathered, CollectiveError> {
        let sum = self.exchange(unit, &rows).await?;
        match sum.gathered_digest.try_into() {
            Ok(digest) => Ok(Gathered { digest, rows: None, received: None }),
            Err(other) => Err(CollectiveError::Refused {
                unit,
                reason: format!("its digest of the gathered rows has {} bytes instead of 32", other.len()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parted_where_a_message_would_be_too_large() {
        let rows = |lens: &[usize]| lens.iter().map(|len| (0, vec![0.0; len / 4], [0; 32])).collect::<DigestedRows>();
        let lens = |rows: &DigestedRows| parts_of(rows).iter().map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(lens(&rows(&[])), [0], "a rank without rows asks for the sum too");
        assert_eq!(lens(&rows(&[8, 8, 8])), [3]);
        let half = BYTES_AT_ONCE / 2;
        assert_eq!(lens(&rows(&[half, half, 8, half, 2 * BYTES_AT_ONCE, 8])), [2, 2, 1, 1]);
    }

    #[test]
    fn only_rows_that_are_refused_are_the_senders_fault() {
        let meaning = |code| failed(3, &Status::new(code, "so\x1b"));
        let CollectiveError::Refused { unit: 3, reason } = meaning(Code::InvalidArgument) else { panic!("refused") };
        assert!(reason.starts_with("so") && !reason.contains('\x1b'), "{reason:?}");
        for code in [Code::FailedPrecondition, Code::Unavailable, Code::DataLoss] {
            assert!(matches!(meaning(code), CollectiveError::Connection { unit: 3, .. }), "{code:?}");
        }
    }
}
