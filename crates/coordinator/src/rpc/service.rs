//! The gRPC service: turns workers' streams into calls for the driver, and the driver's plans into streams. It decides
//! nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use numalign_config::Config;
use numalign_data::{Audits, Streams};
use numalign_protocol as proto;
use numalign_protocol::coordinator_server::Coordinator;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::call::Call;
use super::connections::ConnectionRegistry;
use super::decode;
use super::dispatch::Dispatcher;
use super::outbox::outbox;
use super::rank_stream::{Assignment, RankStream};
use super::reduce::{Reducer, RowsRefused};
use crate::background::solver::Backlog;
use crate::machine::{Event, Generation, MemberId};
use crate::state_key::StateKey;

/// A stream must bring its first message within this time.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// What all connections share.
pub(super) struct Service {
    pub(super) config: Arc<Config>,
    config_digest: String,
    pub(super) audits: Audits,
    key: StateKey,
    pub(super) streams: Streams,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) reducer: Arc<Reducer>,
    /// Chunks are not handed out faster than they are added.
    pub(super) backlog: Backlog,
    driver: mpsc::Sender<Call>,
    next_member: AtomicU64,
    connections: ConnectionRegistry,
}

/// The generated service trait is implemented for this: one service for all connections.
#[derive(Clone)]
pub struct CoordinatorService(Arc<Service>);

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for CoordinatorService {
    type ControlStream = ResponseStream<proto::CoordinatorMessage>;
    type WorkStream = ResponseStream<proto::WorkMessage>;

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

    async fn work(
        &self,
        request: Request<Streaming<proto::RankMessage>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let connection = ConnectionRegistry::connection_of(&request)?;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, inbound.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no message within 10 s"))?;
        let Some(first) = first.transpose()? else {
            return Err(Status::invalid_argument("no credit was given"));
        };
        let generation = first.generation.ok_or_else(|| Status::invalid_argument("no generation"))?;
        let member = MemberId(first.member);
        self.0.connections.check(member, connection)?;
        let Some((first_unit, part)) = self.0.dispatcher.part_of(generation, member) else {
            return Err(Status::failed_precondition("that generation is over"));
        };
        let assignment = Assignment { generation, member, part, unit: first_unit.max(first.from_unit) };
        let messages = RankStream::new(self.0.clone(), assignment, first, inbound);
        Ok(Response::new(Box::pin(messages)))
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
    pub(super) async fn refused(&self, member: MemberId, generation: Generation, refused: &RowsRefused) -> Status {
        let reason = refused.to_string();
        let event = Event::RowsRefused(member, generation, reason.clone());
        match self.send_to_driver(Call::Event(event)).await {
            Ok(()) => Status::invalid_argument(reason),
            Err(over) => over,
        }
    }

    pub(super) async fn send_to_driver(&self, message: Call) -> Result<(), Status> {
        self.driver.send(message).await.map_err(|_| Status::unavailable("the run has ended"))
    }

    /// A report that came with rows; one that makes no sense ends the membership.
    pub(super) async fn reported(&self, member: MemberId, done: proto::UnitDone) -> Result<(), Status> {
        let message = proto::WorkerMessage { message: Some(proto::worker_message::Message::UnitDone(done)) };
        match decode::worker_message(member, message).and_then(|call| self.with_received(call)) {
            Ok(Some(call)) => self.send_to_driver(call).await,
            Ok(None) => Ok(()),
            Err(reason) => {
                self.send_to_driver(Call::Event(Event::Left(member, reason.clone()))).await?;
                Err(Status::invalid_argument(reason))
            }
        }
    }

    /// A report together with what the gRPC collective has here. Rank 0's gets the state that was made here, so that none
    /// has to be sent, and of a chunk the features. Of an audited unit it gets the digests of the rank's rows, so that an
    /// audit compares what was received and not what the rank says of itself.
    fn with_received(&self, call: Option<Call>) -> Result<Option<Call>, String> {
        let Some(Call::Event(Event::Reported(member, mut report))) = call else {
            return Ok(call);
        };
        if self.reducer.is_first_rank(report.generation, member)
            && let Some(state) = self.reducer.made(report.generation, report.unit)
        {
            if let Some(rows) = self.reducer.take_gathered(report.generation, report.unit) {
                report.features = Some(decode::features(&state, rows)?);
            }
            report.state = Some(state);
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
