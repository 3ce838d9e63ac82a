//! One rank's stream of one generation: work goes out within its credits, its rows come in, their sum goes out. Polled by
//! the connection itself, so that no message passes through another task.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use numalign_protocol as proto;
use prost::Message;
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::call::Call;
use super::decode;
use super::dispatch::{Claim, micro_batch};
use super::reduce::{Answer, Contribution};
use super::service::Service;
use crate::machine::{Event, Generation, MemberId};

/// Bytes of samples in one message: far below every limit on messages.
const BYTES_AT_ONCE: usize = 1 << 20;

/// A change of plan between the claim and the wait is seen after this time.
const CLAIM_AGAIN: Duration = Duration::from_millis(50);

/// Whose stream it is, and where it begins.
pub(super) struct Assignment {
    pub generation: Generation,
    pub member: MemberId,
    /// Micro-batches of each unit.
    pub part: Range<usize>,
    /// The next unit whose work is sent.
    pub unit: u64,
}

type Outgoing = Result<proto::WorkMessage, Status>;

/// The rank comes back with the message.
type Turn = Pin<Box<dyn Future<Output = (Rank, Option<Outgoing>)> + Send>>;

/// What goes to the rank, made by one turn after the other; it ends with the generation.
pub(super) struct RankStream {
    turn: Option<Turn>,
}

impl RankStream {
    /// The stream that begins with the rank's `first` message.
    pub(super) fn new(
        service: Arc<Service>,
        assignment: Assignment,
        first: proto::RankMessage,
        inbound: Streaming<proto::RankMessage>,
    ) -> Self {
        let (awaited, ready) = (None, VecDeque::new());
        let rank = Rank { service, assignment, credit: 0, first: Some(first), inbound, awaited, ready };
        Self { turn: Some(Box::pin(rank.turn())) }
    }
}

impl Stream for RankStream {
    type Item = Outgoing;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        let Some(turn) = &mut self.turn else {
            return Poll::Ready(None);
        };
        let (rank, outgoing) = ready!(turn.as_mut().poll(context));
        // After a status nothing may follow.
        self.turn = match &outgoing {
            Some(Ok(_)) => Some(Box::pin(rank.turn())),
            Some(Err(_)) | None => None,
        };
        Poll::Ready(outgoing)
    }
}

struct Rank {
    service: Arc<Service>,
    assignment: Assignment,
    /// Units of work that it asked for and did not get.
    credit: u64,
    first: Option<proto::RankMessage>,
    inbound: Streaming<proto::RankMessage>,
    /// The sum that it waits for, and its unit.
    awaited: Option<(u64, oneshot::Receiver<Answer>)>,
    ready: VecDeque<proto::WorkMessage>,
}

impl Rank {
    async fn turn(mut self) -> (Self, Option<Outgoing>) {
        let outgoing = self.next().await.unwrap_or_else(|status| Some(Err(status)));
        (self, outgoing)
    }

    /// The next message to the rank; none if its generation is over or it hung up.
    async fn next(&mut self) -> Result<Option<Outgoing>, Status> {
        if let Some(first) = self.first.take()
            && !self.take(first).await?
        {
            return Ok(None);
        }
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(Ok(message)));
            }
            let mut holds = false;
            // While the rank waits for a sum, its work waits too: they travel together.
            if self.credit > 0 && self.awaited.is_none() {
                let Assignment { generation, unit, .. } = self.assignment;
                match self.service.dispatcher.claim(generation, unit, self.service.backlog.is_full()) {
                    Claim::Over => return Ok(None),
                    Claim::Wait => holds = true,
                    Claim::Send => {
                        self.add_work();
                        continue;
                    }
                }
            }
            tokio::select! {
                biased;
                (unit, answer) = answer_to(&mut self.awaited) => {
                    let Some(answer) = answer else {
                        return Ok(None);
                    };
                    self.awaited = None;
                    self.ready.push_back(answer.to_message(unit));
                }
                message = self.inbound.message() => {
                    let Some(message) = message? else {
                        return Ok(None);
                    };
                    if !self.take(message).await? {
                        return Ok(None);
                    }
                }
                () = self.service.dispatcher.changed(), if holds => {}
                () = tokio::time::sleep(CLAIM_AGAIN), if holds => {}
            }
        }
    }

    /// The work of the next unit, as messages.
    fn add_work(&mut self) {
        let Self { service, assignment, .. } = self;
        let Assignment { generation, member, part, unit } = assignment;
        let audited = service.dispatcher.audited_by(*generation, *member, *unit, &service.audits);
        let (mut work, mut bytes) = (Vec::with_capacity(part.len()), 0);
        for index in audited.into_iter().chain(part.clone()) {
            let mut next = micro_batch(&service.streams, &service.config, *unit, index);
            next.audit = !part.contains(&index);
            bytes += next.encoded_len();
            if bytes > BYTES_AT_ONCE && !work.is_empty() {
                let work = std::mem::take(&mut work);
                self.ready.push_back(proto::WorkMessage { sum: None, work });
                bytes = next.encoded_len();
            }
            work.push(next);
        }
        if !work.is_empty() {
            self.ready.push_back(proto::WorkMessage { sum: None, work });
        }
        *unit += 1;
        self.credit -= 1;
    }

    /// Takes in one message; false if it belongs to no present generation.
    async fn take(&mut self, message: proto::RankMessage) -> Result<bool, Status> {
        let Assignment { generation, member, .. } = self.assignment;
        self.credit = self.credit.saturating_add(u64::from(message.credit));
        if let Some(done) = message.done {
            self.service.reported(member, done).await?;
        }
        let Some(unit) = message.unit else {
            return Ok(true);
        };
        let rows = match decode::rows(&message.rows) {
            Ok(rows) => rows,
            Err(refused) => return Err(self.service.refused(member, generation, &refused).await),
        };
        let reducer = &self.service.reducer;
        if message.more {
            return match reducer.deposit(generation, member, unit, rows) {
                Ok(accepted) => Ok(accepted),
                Err(refused) => Err(self.service.refused(member, generation, &refused).await),
            };
        }
        match reducer.contribute(generation, member, unit, rows) {
            Ok(Contribution::Done(answer)) => self.ready.push_back(answer.to_message(unit)),
            Ok(Contribution::Later(answer)) => self.awaited = Some((unit, answer)),
            Ok(Contribution::NotFinite(bad, answer)) => {
                self.awaited = Some((unit, answer));
                self.service.send_to_driver(Call::Event(Event::NotFinite(generation, unit, bad))).await?;
            }
            Ok(Contribution::Stale) => return Ok(false),
            Err(refused) => return Err(self.service.refused(member, generation, &refused).await),
        }
        Ok(true)
    }
}

/// The sum that is waited for, with its unit, or none if the generation is over; pending while nothing is waited for.
async fn answer_to(awaited: &mut Option<(u64, oneshot::Receiver<Answer>)>) -> (u64, Option<Answer>) {
    match awaited {
        Some((unit, answer)) => (*unit, answer.await.ok()),
        None => std::future::pending().await,
    }
}
