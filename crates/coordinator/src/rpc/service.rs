//! The gRPC service: turns workers' streams into calls for the driver, and the driver's plans into streams. It decides
//! nothing.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use numalign_config::Config;
use numalign_data::{Audits, Streams};
use numalign_protocol as proto;
use numalign_protocol::coordinator_server::Coordinator;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::call::Call;
use super::connections::ConnectionRegistry;
use super::decode;
use super::dispatch::{Claim, Dispatcher, micro_batch};
use super::outbox::outbox;
use super::reduce::{Contribution, Reduced, Reducer, RowsRefused};
use crate::background::solver::Backlog;
use crate::machine::{Event, Generation, MemberId};
use crate::state_key::StateKey;

/// A stream must bring its first message within this time.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// What all connections share.
struct Service {
    config: Arc<Config>,
    config_digest: String,
    audits: Audits,
    key: StateKey,
    streams: Streams,
    dispatcher: Arc<Dispatcher>,
    reducer: Arc<Reducer>,
    /// Chunks are not handed out faster than they are added.
    backlog: Backlog,
    driver: mpsc::Sender<Call>,
    next_member: AtomicU64,
    connections: ConnectionRegistry,
}

/// The generated service trait is implemented for this: one service for all connections.
#[derive(Clone)]
pub struct CoordinatorService(Arc<Service>);

/// What a work stream sends.
struct Assignment {
    generation: Generation,
    member: MemberId,
    /// Micro-batches of each unit.
    part: Range<usize>,
    /// The first unit.
    unit: u64,
    /// Units that the worker asked for so far.
    credit: u64,
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for CoordinatorService {
    type ControlStream = ResponseStream<proto::CoordinatorMessage>;
    type WorkStream = ResponseStream<proto::MicroBatch>;

    async fn control(
        &self,
        request: Request<Streaming<proto::WorkerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let connection = ConnectionRegistry::connection_of(&request)?;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, inbound.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))?;
        let Some(proto::worker_message::Message::Hello(hello)) = first.transpose()?.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let join_request = decode::join_request(hello, &self.0.config, &self.0.config_digest, &self.0.key)?;
        let member = MemberId(self.0.next_member.fetch_add(1, Ordering::Relaxed));
        self.0.connections.insert(member, connection);
        let (outbox, messages) = outbox();
        self.0.send_to_driver(Call::Connected(member, join_request, outbox)).await?;
        let service = self.0.clone();
        tokio::spawn(async move { service.listen(member, inbound).await });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn work(&self, request: Request<Streaming<proto::WorkCredit>>) -> Result<Response<Self::WorkStream>, Status> {
        let connection = ConnectionRegistry::connection_of(&request)?;
        let mut credits = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, credits.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no credit within 10 s"))?;
        let Some(first) = first.transpose()? else {
            return Err(Status::invalid_argument("no credit was given"));
        };
        let generation = first.generation.ok_or_else(|| Status::invalid_argument("no generation"))?;
        let member = MemberId(first.member);
        self.0.connections.check(member, connection)?;
        let Some((first_unit, part)) = self.0.dispatcher.part_of(generation, member) else {
            return Err(Status::failed_precondition("that generation is over"));
        };
        let (sender, messages) = mpsc::channel(part.len().max(1));
        let service = self.0.clone();
        let unit = first_unit.max(first.from_unit);
        let assignment = Assignment { generation, member, part, unit, credit: u64::from(first.units) };
        tokio::spawn(async move { service.send_work(assignment, credits, sender).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn reduce(&self, request: Request<proto::ReduceRequest>) -> Result<Response<proto::ReduceReply>, Status> {
        let connection = ConnectionRegistry::connection_of(&request)?;
        let request = request.into_inner();
        let generation = request.generation.ok_or_else(|| Status::invalid_argument("no generation"))?;
        self.0.connections.check(MemberId(request.member), connection)?;
        let (member, unit) = (MemberId(request.member), request.unit);
        let rows = match decode::rows(&request.rows) {
            Ok(rows) => rows,
            Err(refused) => return Err(self.0.refused(member, generation, &refused).await),
        };
        if request.more {
            let complete = match self.0.reducer.deposit(generation, member, unit, rows) {
                Ok(complete) => complete,
                Err(refused) => return Err(self.0.refused(member, generation, &refused).await),
            };
            return Ok(Response::new(proto::ReduceReply { complete, ..Default::default() }));
        }
        let contribution = match self.0.reducer.contribute(generation, member, unit, rows) {
            Ok(contribution) => contribution,
            Err(refused) => return Err(self.0.refused(member, generation, &refused).await),
        };
        let reduced = match contribution {
            Contribution::Done(reduced) => Some(reduced),
            Contribution::Later(receiver) => receiver.await.ok(),
            Contribution::NotFinite(bad, receiver) => {
                self.0.send_to_driver(Call::Event(Event::NotFinite(generation, unit, bad))).await?;
                receiver.await.ok()
            }
            Contribution::Stale => None,
        };
        let mut reply = proto::ReduceReply { complete: reduced.is_some(), ..Default::default() };
        match reduced {
            Some(Reduced::Sum(sum)) => reply.sum = sum,
            Some(Reduced::Gathered(digest)) => reply.gathered_digest = digest.to_vec(),
            None => {}
        }
        Ok(Response::new(reply))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusReply>, Status> {
        let (sender, reply) = oneshot::channel();
        self.0.send_to_driver(Call::Status(sender)).await?;
        reply.await.map(Response::new).map_err(|_| Status::unavailable("the run is ending"))
    }
}

impl CoordinatorService {
    /// The service of one run; calls go to the driver.
    pub fn new(
        config: Arc<Config>,
        key: StateKey,
        streams: Streams,
        dispatcher: Arc<Dispatcher>,
        reducer: Arc<Reducer>,
        backlog: Backlog,
        driver: mpsc::Sender<Call>,
    ) -> Self {
        Self(Arc::new(Service {
            config_digest: config.digest(),
            audits: Audits::of_run(&config),
            config,
            key,
            streams,
            dispatcher,
            reducer,
            backlog,
            driver,
            next_member: AtomicU64::new(1),
            connections: ConnectionRegistry::default(),
        }))
    }
}

impl Service {
    /// The driver learns whose rows were refused; the sender gets the reason.
    async fn refused(&self, member: MemberId, generation: Generation, refused: &RowsRefused) -> Status {
        let reason = refused.to_string();
        let event = Event::RowsRefused(member, generation, reason.clone());
        match self.send_to_driver(Call::Event(event)).await {
            Ok(()) => Status::invalid_argument(reason),
            Err(over) => over,
        }
    }

    async fn send_to_driver(&self, message: Call) -> Result<(), Status> {
        self.driver.send(message).await.map_err(|_| Status::unavailable("the run has ended"))
    }

    /// Sends a member's micro-batches, unit by unit, within its credits, until the generation is over.
    async fn send_work(
        &self,
        assignment: Assignment,
        mut credits: Streaming<proto::WorkCredit>,
        sender: mpsc::Sender<Result<proto::MicroBatch, Status>>,
    ) {
        let Assignment { generation, member, part, mut unit, mut credit } = assignment;
        loop {
            if credit == 0 {
                match credits.next().await {
                    Some(Ok(more)) => credit = u64::from(more.units),
                    Some(Err(status)) => {
                        // The worker opens another stream, if it is still there.
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                    None => return,
                }
                continue;
            }
            let changed = self.dispatcher.changed();
            match self.dispatcher.claim(generation, unit, self.backlog.is_full()) {
                Claim::Over => return,
                Claim::Wait => {
                    tokio::select! {
                        () = changed => {}
                        () = sender.closed() => return,
                        // A change between the claim and the wait is seen at the next turn.
                        () = tokio::time::sleep(Duration::from_millis(50)) => {}
                    }
                    continue;
                }
                Claim::Send => {}
            }
            let audited = self.dispatcher.audited_by(generation, member, unit, &self.audits);
            for index in audited.into_iter().chain(part.clone()) {
                let mut message = micro_batch(&self.streams, &self.config, generation, unit, index);
                message.audit = !part.contains(&index);
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            unit += 1;
            credit -= 1;
        }
    }

    /// A report together with what the gRPC collective received here: of an audited unit the digests of the rank's rows, so
    /// that an audit compares them and not what the rank says of itself; of a chunk, from rank 0, the features.
    fn with_received(&self, call: Option<Call>) -> Result<Option<Call>, String> {
        let Some(Call::Event(Event::Reported(member, mut report))) = call else {
            return Ok(call);
        };
        if let Some(state) = report.state.as_ref().filter(|_| report.features.is_none())
            && let Some(rows) = self.reducer.take_gathered(report.generation, report.unit)
        {
            report.features = Some(decode::features(state, rows)?);
        }
        if self.audits.due(report.unit)
            && let Some(received) = self.reducer.received(report.generation, member, report.unit)
            && !received.is_empty()
        {
            report.rows.retain(|(micro_batch, _)| received.iter().all(|(other, _)| other != micro_batch));
            report.rows.extend(received);
        }
        Ok(Some(Call::Event(Event::Reported(member, report))))
    }

    /// Reads a worker's messages until its stream ends.
    async fn listen(&self, member: MemberId, mut inbound: Streaming<proto::WorkerMessage>) {
        let reason = loop {
            let message = match inbound.next().await {
                Some(Ok(message)) => message,
                Some(Err(status)) => break format!("its stream broke: {}", status.message()),
                None => break "its stream ended".to_owned(),
            };
            let call = match decode::worker_message(member, message).and_then(|call| self.with_received(call)) {
                Ok(Some(call)) => call,
                Ok(None) => continue,
                Err(reason) => break reason,
            };
            if self.driver.send(call).await.is_err() {
                return;
            }
        };
        self.connections.remove(member);
        // The driver may be gone by then; the worker is, too.
        let _ = self.driver.send(Call::Event(Event::Left(member, reason))).await;
    }
}
