//! The gRPC service: turns streams into events for the shell, and the shell's plans into streams.
//! Made by [`crate::run`]; it decides nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use numalign_config::Config;
use numalign_data::Streams;
use numalign_projector::{Features, NormTensor, RowError, State, StateDigest};
use numalign_protocol as proto;
use numalign_protocol::coordinator_server::Coordinator;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::collective::{Nccl, NcclAbility};
use crate::complaints::clipped;
use crate::guard::Homes;
use crate::machine::{Event, Introduction, MemberId, Readiness, Report, Timing};
use crate::outbox::{Outbox, outbox};
use crate::reduce::{Contribution, Reduced, Reducer};
use crate::work::{Claim, WorkBoard, micro_batch};

/// A stream that says nothing for this long is closed.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// Characters of a host, a build or a device that are kept; of a message, see [`MOST_MESSAGE`].
const MOST_NAME: usize = 128;
const MOST_MESSAGE: usize = 4096;

/// Bytes of an `ncclUniqueId`.
const NCCL_ID: usize = 128;

/// What the service sends to the shell.
pub enum Call {
    /// A worker connected, with the way to talk to it.
    Connected(MemberId, Introduction, Outbox),
    Event(Event),
    /// A heartbeat, with the number of the newest generation that the member knows.
    Heartbeat(MemberId, u64),
    Status(oneshot::Sender<proto::StatusReply>),
}

/// Shared by all connections.
pub struct Service {
    pub config: Arc<Config>,
    pub streams: Streams,
    pub board: Arc<WorkBoard>,
    pub reducer: Arc<Reducer>,
    pub shell: mpsc::Sender<Call>,
    pub config_digest: String,
    pub next_member: AtomicU64,
    pub homes: Homes,
}

/// The service as tonic wants it: cheap to clone, one for all connections.
#[derive(Clone)]
pub struct Handle(pub Arc<Service>);

impl std::ops::Deref for Handle {
    type Target = Arc<Service>;

    fn deref(&self) -> &Arc<Service> {
        &self.0
    }
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Handle {
    type ControlStream = Answer<proto::CoordinatorMessage>;
    type WorkStream = Answer<proto::MicroBatch>;

    async fn control(
        &self,
        request: Request<Streaming<proto::WorkerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let connection = Homes::connection_of(&request)?;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(FIRST_WORD, inbound.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))?;
        let Some(proto::worker_message::Message::Hello(hello)) = first.transpose()?.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let introduction = self.introduction(hello)?;
        let member = MemberId(self.next_member.fetch_add(1, Ordering::Relaxed));
        self.homes.settle(member, connection);
        let (outbox, messages) = outbox();
        self.tell(Call::Connected(member, introduction, outbox)).await?;
        let service = self.0.clone();
        tokio::spawn(async move { service.listen(member, inbound).await });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn work(&self, request: Request<Streaming<proto::WorkCredit>>) -> Result<Response<Self::WorkStream>, Status> {
        let connection = Homes::connection_of(&request)?;
        let mut credits = request.into_inner();
        let first = tokio::time::timeout(FIRST_WORD, credits.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no credit within 10 s"))?;
        let Some(first) = first.transpose()? else {
            return Err(Status::invalid_argument("no credit was given"));
        };
        let generation = first.generation.ok_or_else(|| Status::invalid_argument("no generation"))?.into();
        let member = MemberId(first.member);
        self.homes.check(member, connection)?;
        let Some((first_unit, part)) = self.board.part_of(generation, member) else {
            return Err(Status::failed_precondition("that generation is over"));
        };
        let (sender, messages) = mpsc::channel(part.len().max(1));
        let service = self.0.clone();
        tokio::spawn(async move {
            let mut unit = first_unit;
            let mut credit = u64::from(first.units);
            loop {
                if credit == 0 {
                    match credits.next().await {
                        Some(Ok(more)) => credit = u64::from(more.units),
                        _ => return,
                    }
                    continue;
                }
                let changed = service.board.changed();
                match service.board.claim(generation, unit) {
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
                let audited = match service.config.run.deterministic {
                    true => service.board.audited_by(generation, member, unit, service.config.run.audit_every),
                    false => None,
                };
                for index in audited.into_iter().chain(part.clone()) {
                    let mut message = micro_batch(&service.streams, &service.config, generation, unit, index);
                    message.audit = !part.contains(&index);
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                unit += 1;
                credit -= 1;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn reduce(&self, request: Request<proto::ReduceRequest>) -> Result<Response<proto::ReduceReply>, Status> {
        let connection = Homes::connection_of(&request)?;
        let request = request.into_inner();
        let generation = request.generation.ok_or_else(|| Status::invalid_argument("no generation"))?.into();
        self.homes.check(MemberId(request.member), connection)?;
        let mut rows = Vec::with_capacity(request.rows.len());
        for row in request.rows {
            if row.values.len() % 4 != 0 {
                return Err(Status::invalid_argument("a row is not whole floats"));
            }
            let values = row.values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            rows.push((row.micro_batch as usize, values));
        }
        let refused = |error: RowError| Status::invalid_argument(error.to_string());
        let member = MemberId(request.member);
        if request.more {
            let complete = self.reducer.deposit(generation, member, request.unit, rows).map_err(refused)?;
            return Ok(Response::new(proto::ReduceReply { complete, ..Default::default() }));
        }
        let reduced = match self.reducer.contribute(generation, member, request.unit, rows).map_err(refused)? {
            Contribution::Done(reduced) => Some(reduced),
            Contribution::Later(receiver) => receiver.await.ok(),
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
        self.tell(Call::Status(sender)).await?;
        reply.await.map(Response::new).map_err(|_| Status::unavailable("the run is ending"))
    }
}

impl Service {
    async fn tell(&self, message: Call) -> Result<(), Status> {
        self.shell.send(message).await.map_err(|_| Status::unavailable("the run has ended"))
    }

    fn introduction(&self, hello: proto::Hello) -> Result<Introduction, Status> {
        if hello.protocol != proto::PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "protocol {} of build {} does not match this coordinator's {} of build {}",
                hello.protocol,
                clipped(&hello.build, MOST_NAME),
                proto::PROTOCOL,
                env!("CARGO_PKG_VERSION")
            )));
        }
        let mut rejoin_state = None;
        if let Some(claimed) = hello.rejoin_state
            && claimed.run_id == self.config.run.run_id
            && claimed.config_digest == self.config_digest
        {
            let state = State::from_bytes(&claimed.state)
                .map_err(|error| Status::invalid_argument(format!("the rejoin state: {error}")))?;
            let total = self.config.recipe.total_steps();
            if state.step() > total {
                let reason = format!("its rejoin state is after {} of {total} steps", state.step());
                return Err(Status::invalid_argument(reason));
            }
            rejoin_state = Some(state);
        }
        let host = clipped(&hello.host, MOST_NAME);
        Ok(Introduction { host, pid: hello.pid, restarts: hello.restarts, rejoin_state })
    }

    /// Rank 0's report of a chunk together with the features that the gRPC collective gathered here.
    fn with_features(&self, call: Option<Call>) -> Result<Option<Call>, String> {
        let Some(Call::Event(Event::Reported(member, mut report))) = call else {
            return Ok(call);
        };
        if let Some(state) = report.state.as_ref().filter(|_| report.features.is_none())
            && let Some(rows) = self.reducer.take_gathered(report.generation, report.unit)
        {
            report.features = Some(features(state, rows)?);
        }
        Ok(Some(Call::Event(Event::Reported(member, report))))
    }

    /// Reads a worker's messages until its stream ends.
    async fn listen(&self, member: MemberId, mut inbound: Streaming<proto::WorkerMessage>) {
        let why = loop {
            let message = match inbound.next().await {
                Some(Ok(message)) => message,
                Some(Err(status)) => break format!("its stream broke: {}", status.message()),
                None => break "its stream ended".to_owned(),
            };
            let call = match call_of(member, message).and_then(|call| self.with_features(call)) {
                Ok(Some(call)) => call,
                Ok(None) => continue,
                Err(why) => break why,
            };
            if self.shell.send(call).await.is_err() {
                return;
            }
        };
        self.homes.leave(member);
        // The shell may be gone by then; the worker is, too.
        let _ = self.shell.send(Call::Event(Event::Left(member, why))).await;
    }
}

/// Gathered rows as features of the state's hidden size; an error ends the membership of who sent them.
fn features(state: &State, rows: Vec<f32>) -> Result<Arc<Features>, String> {
    let features = Features::new(state.layout().hidden(), rows);
    features.map(Arc::new).map_err(|error| format!("its features cannot be used: {error}"))
}

/// A worker's message as a call; an error ends its membership.
fn call_of(member: MemberId, message: proto::WorkerMessage) -> Result<Option<Call>, String> {
    use proto::worker_message::Message;
    let Some(message) = message.message else {
        return Ok(None);
    };
    Ok(Some(Call::Event(match message {
        Message::Hello(_) => return Err("it said Hello twice".to_owned()),
        Message::Heartbeat(heartbeat) => return Ok(Some(Call::Heartbeat(member, heartbeat.generation))),
        Message::Failure(failure) if failure.permanent => {
            Event::FailedForGood(member, clipped(&failure.message, MOST_MESSAGE))
        }
        Message::Failure(failure) => Event::Left(member, clipped(&failure.message, MOST_MESSAGE)),
        Message::NcclId(id) => {
            let generation = id.generation.ok_or("it sent an NCCL id of no generation")?.into();
            if id.id.len() != NCCL_ID {
                return Err(format!("it sent an NCCL id of {} bytes instead of {NCCL_ID}", id.id.len()));
            }
            Event::NcclId(member, generation, id.id)
        }
        Message::NcclFailed(failed) => {
            let generation = failed.generation.ok_or("it reported NCCL of no generation")?.into();
            Event::NcclFailed(member, generation, clipped(&failed.reason, MOST_MESSAGE))
        }
        Message::Ready(ready) => Event::Ready(member, readiness_of(ready)?),
        Message::UnitDone(done) => {
            let digest = StateDigest::from_slice(&done.digest).ok_or("it sent a digest that is not 32 bytes")?;
            let mut rows = Vec::with_capacity(done.rows.len());
            for row in done.rows {
                let digest = row.digest.try_into().map_err(|_| "it sent a row digest that is not 32 bytes")?;
                rows.push((row.micro_batch as usize, digest));
            }
            let state = match done.state.is_empty() {
                true => None,
                false => Some(State::from_bytes(&done.state).map_err(|error| error.to_string())?),
            };
            let gathered = done.features.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let features = match &state {
                Some(state) if !done.features.is_empty() => Some(features(state, gathered.collect())?),
                _ => None,
            };
            Event::Reported(
                member,
                Report {
                    generation: done.generation.ok_or("it reported a unit of no generation")?.into(),
                    unit: done.unit,
                    loss: done.loss,
                    digest,
                    state,
                    features,
                    rows,
                    timing: Timing {
                        compute: measured(done.compute_us),
                        data_wait: measured(done.data_wait_us),
                        reduce: measured(done.reduce_us),
                        peak_rss_mib: done.peak_rss_mib,
                    },
                },
            )
        }
    })))
}

/// A time that a worker measured; more than a day is a slip of its clock, and sums of such would overflow.
fn measured(microseconds: u64) -> Duration {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    Duration::from_micros(microseconds).min(DAY)
}

fn nccl_of(ability: Option<proto::NcclAbility>, why_not: &str) -> Nccl {
    match ability {
        Some(its) => Ok(NcclAbility {
            version: its.version,
            gpu: clipped(&its.gpu, MOST_NAME),
            replica: its.replica,
            shares_gpu: its.shares_gpu,
        }),
        None if why_not.is_empty() => Err("it did not say whether it has NCCL".to_owned()),
        None => Err(clipped(why_not, MOST_MESSAGE)),
    }
}

fn readiness_of(ready: proto::Ready) -> Result<Readiness, String> {
    let (mut layer_norms, mut layer_norm_values) = (Vec::new(), Vec::new());
    for tensor in ready.layer_norms {
        if tensor.values.len() % 4 != 0 {
            return Err(format!("its layer norm {} is not whole floats", tensor.name));
        }
        let values = tensor.values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        layer_norms.push(NormTensor { name: tensor.name, len: values.len() });
        layer_norm_values.extend(values);
    }
    Ok(Readiness {
        base_fingerprint: ready.base_fingerprint,
        hidden_size: ready.hidden_size as usize,
        model_parameters: ready.model_parameters,
        weights: ready.weights,
        device: ready.device,
        probe_digest: ready.probe_digest,
        nccl: nccl_of(ready.nccl, &ready.no_nccl),
        layer_norms,
        layer_norm_values,
    })
}
