//! A worker's life: connects, introduces itself, loads the model, follows generations, and comes back when the
//! coordinator was lost. The entry point of this crate.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use numalign_access::client::{Unconnected, status_words};
use numalign_access::{Client, ClientAccess};
use numalign_collective::nccl::NcclError;
use numalign_collective::{Chosen, CollectiveError, Grpc};
use numalign_config::{Config, DeviceChoice};
use numalign_model::NormParameter;
use numalign_projector::{Layout, State};
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message as FromCoordinator;
use numalign_protocol::worker_message::Message as FromWorker;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::device::{Device, Loaded, Loading};
use crate::error::WorkerError;
use crate::nccl::{self, Communicators, News};
use crate::simulated::Simulated;
use crate::steps::{Steps, Watermark, samples_of};

/// This process's present rank, −1 while it has none; log lines carry it.
pub static RANK: AtomicI64 = AtomicI64::new(-1);

/// What the command line gives a worker; everything else comes from the coordinator.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://host:port`, or `https://host:port`
    pub coordinator: String,
    /// The token and certificates for it.
    pub access: ClientAccess,
    /// Overrides the run's `device`.
    pub device: Option<DeviceChoice>,
    /// This worker's place among those of its machine: it chooses the GPU where the device has no number.
    pub local_rank: Option<usize>,
    /// Timeout for a coordinator that was never reached, before its configuration is known.
    pub first_contact: Duration,
    /// How often a worker was started in this one's place before.
    pub restarts: u32,
    /// Rows without a model, for benchmarks and tests of the coordinator; none for real work.
    pub simulated: Option<Simulated>,
}

/// NCCL shows a lost rank too, as an error of its own: the coordinator's word on it is waited for this long.
const LOST_RANK: Duration = Duration::from_millis(500);

/// An attempt to connect is given this long even when the timeout is nearly over.
const LEAST_TIMEOUT: Duration = Duration::from_millis(500);

/// Joins `options.coordinator` and works until the run is done, the worker is refused, or `shutdown` resolves.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let endpoint = options.access.endpoint(&options.coordinator)?;
    let mut worker = Worker { options, endpoint, kept: None, communicators: Communicators::default(), welcomed: false };
    let ended = tokio::select! {
        ended = worker.live() => ended,
        () = shutdown => Ok(()),
    };
    worker.communicators.finish().await;
    ended
}

/// What outlives a lost connection: the model, and the last committed state.
struct Kept {
    config: Arc<Config>,
    config_text: String,
    device: Device,
    loaded: Loaded,
    watermark: Watermark,
}

struct Worker {
    options: Options,
    endpoint: Endpoint,
    kept: Option<Kept>,
    communicators: Communicators,
    /// The latest connection reached a coordinator, not only something that listens.
    welcomed: bool,
}

/// How one connection ended.
enum Ending {
    Done,
    Lost(String),
}

impl Worker {
    async fn live(&mut self) -> Result<(), WorkerError> {
        let mut since = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let connected = Instant::now();
            let timeout = self.timeout();
            let reason = match self.connect_once(timeout.saturating_sub(since.elapsed())).await? {
                Ending::Done => return Ok(()),
                Ending::Lost(reason) => reason,
            };
            // A connection that worked for a while starts the timeout anew.
            if self.welcomed && connected.elapsed() > Duration::from_secs(2) {
                since = Instant::now();
                pause = Duration::from_millis(50);
            }
            let timeout = self.timeout();
            if since.elapsed() > timeout {
                return Err(WorkerError::Unreachable {
                    url: self.options.coordinator.clone(),
                    seconds: since.elapsed().as_secs_f64(),
                    reason,
                });
            }
            tracing::info!("no coordinator ({reason}); trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn timeout(&self) -> Duration {
        self.kept.as_ref().map_or(self.options.first_contact, |kept| kept.config.run.coordinator_wait)
    }

    fn hello(&self) -> proto::Hello {
        let rejoin_state = self.kept.as_ref().and_then(|kept| {
            let state = kept.watermark.state()?;
            Some(proto::RejoinState {
                run_id: kept.config.run.run_id.clone(),
                config_digest: config_digest(&kept.config),
                state: state.to_bytes(),
            })
        });
        proto::Hello {
            protocol: proto::PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            rejoin_state,
            restarts: self.options.restarts,
        }
    }

    /// One connection, from Hello to its end; something that listens gets `timeout` to say Welcome.
    async fn connect_once(&mut self, timeout: Duration) -> Result<Ending, WorkerError> {
        self.welcomed = false;
        let met = match tokio::time::timeout(timeout.max(LEAST_TIMEOUT), self.meet()).await {
            Ok(met) => met?,
            Err(_) => return Ok(Ending::Lost("it accepts connections and says nothing".to_owned())),
        };
        let Met { mut connection, welcome, mut inbound } = match met {
            Ok(met) => met,
            Err(ending) => return Ok(ending),
        };
        self.welcomed = true;
        let ending = self.follow(&mut connection, welcome, &mut inbound).await;
        connection.stop_steps();
        self.communicators.end();
        ending
    }

    /// Connects and says Hello; the connection with the Welcome, or how it ended before.
    async fn meet(&self) -> Result<Result<Met, Ending>, WorkerError> {
        let access = &self.options.access;
        let client = match access.connect(&self.endpoint).await {
            Ok(client) => client,
            Err(Unconnected::Lost(reason)) => return Ok(Err(Ending::Lost(reason))),
            Err(Unconnected::Refused(refusal)) => return Err(refusal.into()),
        };
        let (reports, outbound) = mpsc::channel::<proto::WorkerMessage>(64);
        let hello = proto::WorkerMessage { message: Some(FromWorker::Hello(self.hello())) };
        if reports.send(hello).await.is_err() {
            return Ok(Err(Ending::Lost("the connection closed at once".to_owned())));
        }
        let mut inbound = match client.clone().control(ReceiverStream::new(outbound)).await {
            Ok(inbound) => inbound.into_inner(),
            Err(status) => return refused_or_lost(access, &status).map(Err),
        };
        let first = match inbound.message().await {
            Ok(Some(first)) => first.message,
            Ok(None) => return Ok(Err(Ending::Lost("the coordinator hung up".to_owned()))),
            Err(status) => return refused_or_lost(access, &status).map(Err),
        };
        let welcome = match first {
            Some(FromCoordinator::Welcome(welcome)) => welcome,
            Some(FromCoordinator::Abort(abort)) => return ended_by(abort).map(Err),
            _ => return Err(WorkerError::Protocol("its first message is not Welcome".to_owned())),
        };
        let connection = Connection {
            client,
            reports,
            member: welcome.member,
            incarnation: welcome.incarnation,
            generation: 0,
            steps: None,
        };
        Ok(Ok(Met { connection, welcome, inbound }))
    }

    async fn follow(
        &mut self,
        connection: &mut Connection,
        welcome: proto::Welcome,
        inbound: &mut tonic::Streaming<proto::CoordinatorMessage>,
    ) -> Result<Ending, WorkerError> {
        let config: Config = serde_json::from_str(&welcome.config)
            .map_err(|error| WorkerError::Protocol(format!("its configuration cannot be read: {error}")))?;
        config.check().map_err(|error| WorkerError::Protocol(format!("its configuration is not valid: {error}")))?;
        let config = Arc::new(config);
        let mut heartbeat = tokio::time::interval(config.run.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A model loaded for another run is of no use.
        let mut loading: Option<Loading> = None;
        let mut device = None;
        match &self.kept {
            Some(kept) if kept.config_text == welcome.config => connection.ready(&kept.loaded).await,
            _ => {
                self.kept = None;
                let (wanted, per_worker) = (self.options.device, config.run.devices_per_worker);
                let wanted = wanted.unwrap_or(config.run.device);
                let choice = numalign_model::load::choose_device(wanted, self.options.local_rank, per_worker);
                let (started, receiver) = match &self.options.simulated {
                    Some(simulated) => simulated.start(),
                    None => {
                        let probe = samples_of(welcome.probe)?;
                        Device::start(config.clone(), choice, self.options.local_rank, probe)?
                    }
                };
                device = Some(started);
                loading = Some(receiver);
            }
        }
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let message = match message {
                        Ok(Some(message)) => message.message,
                        Ok(None) => return Ok(Ending::Lost("the coordinator hung up".to_owned())),
                        Err(status) => return refused_or_lost(&self.options.access, &status),
                    };
                    match message {
                        Some(FromCoordinator::Begin(begin)) => self.begin(connection, begin)?,
                        Some(FromCoordinator::Pause(pause)) => {
                            tracing::info!("{}", pause.reason);
                            connection.stop_steps();
                            self.communicators.end();
                        }
                        Some(FromCoordinator::NcclId(id)) => self.communicators.form(&id)?,
                        Some(FromCoordinator::Committed(committed)) => {
                            if let Some(kept) = &self.kept {
                                kept.watermark.committed(committed.unit);
                            }
                        }
                        Some(FromCoordinator::Done(done)) => {
                            tracing::info!("done: {}", done.summary);
                            return Ok(Ending::Done);
                        }
                        Some(FromCoordinator::Abort(abort)) => return ended_by(abort),
                        Some(FromCoordinator::Welcome(_)) | None => {}
                    }
                }
                _ = heartbeat.tick() => connection.send(FromWorker::Heartbeat(proto::Heartbeat { generation: connection.generation })).await,
                loaded = wait_for(&mut loading) => {
                    loading = None;
                    match loaded {
                        Ok(loaded) => {
                            connection.ready(&loaded).await;
                            if let Some(device) = device.take() {
                                self.kept = Some(Kept {
                                    config: config.clone(),
                                    config_text: welcome.config.clone(),
                                    device,
                                    loaded,
                                    watermark: Watermark::new(config.units()),
                                });
                            }
                        }
                        Err(error) => return connection.give_up(error).await,
                    }
                }
                news = self.communicators.news() => match news {
                    News::Made(id) => connection.send(FromWorker::NcclId(id)).await,
                    // Another process gets the GPU back.
                    News::Failed(error @ NcclError::Stuck { .. }) => {
                        return connection.give_up(CollectiveError::from(error).into()).await;
                    }
                    News::Failed(error) => connection.nccl_failed(&error).await,
                },
                ended = steps_end(&mut connection.steps) => match ended {
                    // The generation ended under it, or the connection did: the control stream tells which.
                    Ok(()) | Err(WorkerError::Collective(CollectiveError::GenerationOver | CollectiveError::Connection { .. })) => {}
                    Err(error @ WorkerError::Collective(CollectiveError::Nccl(NcclError::Stuck { .. }))) => {
                        return connection.give_up(error).await;
                    }
                    Err(WorkerError::Collective(CollectiveError::Nccl(error))) => connection.nccl_failed(&error).await,
                    Err(error) => return connection.give_up(error).await,
                },
            }
        }
    }

    fn begin(&mut self, connection: &mut Connection, begin: proto::Begin) -> Result<(), WorkerError> {
        connection.stop_steps();
        self.communicators.end();
        connection.generation = begin.generation.map_or(0, |generation| generation.number);
        let (Some(kept), Some(generation)) = (&self.kept, begin.generation) else {
            return Err(WorkerError::Protocol("a generation began before the model was loaded".to_owned()));
        };
        let state = Arc::new(State::from_bytes(&begin.state)?);
        check_begin(&begin, &state, kept)?;
        kept.watermark.restart(state.clone());
        RANK.store(i64::from(begin.rank), Ordering::Relaxed);
        tracing::info!(
            "generation {}: rank {} of {}, micro-batches {}..{}, from step {}",
            generation.number,
            begin.rank,
            begin.world,
            begin.first_micro_batch,
            begin.end_micro_batch,
            state.step()
        );
        let collective = match begin.nccl {
            true => {
                let row_len = state.layout().row_len();
                Chosen::Nccl(self.communicators.begin(&kept.config, &begin, generation, &kept.loaded.nccl, row_len)?)
            }
            false => Chosen::Grpc(Grpc { client: connection.client.clone(), generation, member: connection.member }),
        };
        let steps = Steps {
            config: kept.config.clone(),
            client: connection.client.clone(),
            device: kept.device.clone(),
            collective,
            generation,
            member: connection.member,
            rank: begin.rank,
            part: begin.first_micro_batch as usize..begin.end_micro_batch as usize,
            state,
            watermark: kept.watermark.clone(),
            reports: connection.reports.clone(),
        };
        connection.steps = Some(tokio::spawn(steps.run()));
        Ok(())
    }
}

/// A generation must fit the run and the model, or its arithmetic would make no sense.
fn check_begin(begin: &proto::Begin, state: &State, kept: &Kept) -> Result<(), WorkerError> {
    let wrong = |reason: String| Err(WorkerError::Protocol(reason));
    let micro_batches = kept.config.recipe.micro_batches();
    let (first, end) = (begin.first_micro_batch as usize, begin.end_micro_batch as usize);
    if first > end || end > micro_batches {
        return wrong(format!("a generation gives micro-batches {first}..{end} of {micro_batches}"));
    }
    if begin.rank >= begin.world {
        return wrong(format!("a generation gives rank {} of {}", begin.rank, begin.world));
    }
    let norms = kept.loaded.layer_norms.iter().map(|norm| norm.values.len()).sum();
    let (found, wanted) = (state.layout(), Layout::of(&kept.config.recipe, kept.loaded.hidden_size, norms));
    if found != wanted {
        return wrong(format!("a generation's state has the layout {found:?}, this model and recipe {wanted:?}"));
    }
    Ok(())
}

/// A coordinator that was reached.
struct Met {
    connection: Connection,
    welcome: proto::Welcome,
    inbound: tonic::Streaming<proto::CoordinatorMessage>,
}

/// BLAKE3 of the settings that determine the run's states, as the coordinator computes it.
fn config_digest(config: &Config) -> String {
    blake3::hash(config.digest_text().as_bytes()).to_hex().to_string()
}

struct Connection {
    client: Client,
    reports: mpsc::Sender<proto::WorkerMessage>,
    member: u64,
    incarnation: u64,
    /// Number of the newest generation that was begun here.
    generation: u64,
    steps: Option<JoinHandle<Result<(), WorkerError>>>,
}

impl Connection {
    /// A closed channel means a lost connection, which the inbound stream reports.
    async fn send(&self, message: FromWorker) {
        let _ = self.reports.send(proto::WorkerMessage { message: Some(message) }).await;
    }

    /// NCCL's failure ends the generation, unless a lost rank was its cause: then the news of that is on its way.
    async fn nccl_failed(&self, error: &NcclError) {
        tracing::warn!("{error}");
        let generation = proto::Generation { incarnation: self.incarnation, number: self.generation };
        let (reports, failed) = (self.reports.clone(), nccl::failed(generation, error));
        tokio::spawn(async move {
            tokio::time::sleep(LOST_RANK).await;
            // A connection that closed in the meantime has nothing to be told.
            let _ = reports.send(proto::WorkerMessage { message: Some(FromWorker::NcclFailed(failed)) }).await;
        });
    }

    async fn ready(&self, loaded: &Loaded) {
        let (ability, no_nccl) = nccl::to_proto(&loaded.nccl);
        let ready = proto::Ready {
            base_fingerprint: loaded.fingerprint.clone(),
            hidden_size: loaded.hidden_size as u32,
            model_parameters: loaded.parameters,
            weights: loaded.description.weights.to_owned(),
            device: loaded.description.device.clone(),
            probe_digest: loaded.probe_digest.clone(),
            layer_norms: loaded.layer_norms.iter().map(layer_norm).collect(),
            nccl: ability,
            no_nccl,
        };
        self.send(FromWorker::Ready(ready)).await;
    }

    /// Tells the coordinator why this worker cannot go on, and ends it.
    async fn give_up(&self, error: WorkerError) -> Result<Ending, WorkerError> {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" (hint: {hint})"));
        // Another process may fare better after a panic; a wrong model or bad data stay what they are.
        let permanent = !matches!(
            error,
            WorkerError::Device(_) | WorkerError::Collective(CollectiveError::Nccl(NcclError::Stuck { .. }))
        );
        let failure = proto::Failure { permanent, message: format!("{error}{hint}") };
        self.send(FromWorker::Failure(failure)).await;
        // The message must leave before the process does.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Err(error)
    }

    fn stop_steps(&mut self) {
        if let Some(steps) = self.steps.take() {
            steps.abort();
        }
    }
}

fn layer_norm(norm: &NormParameter) -> proto::LayerNorm {
    proto::LayerNorm::new(norm.name.clone(), &norm.values)
}

/// The loading model's news; never, while nothing loads.
async fn wait_for(loading: &mut Option<Loading>) -> Result<Loaded, WorkerError> {
    match loading {
        Some(receiver) => {
            receiver.await.unwrap_or_else(|_| Err(WorkerError::Device("it panicked; its message is above".to_owned())))
        }
        None => std::future::pending().await,
    }
}

/// The end of the generation's task; never, while there is none.
async fn steps_end(steps: &mut Option<JoinHandle<Result<(), WorkerError>>>) -> Result<(), WorkerError> {
    let Some(handle) = steps else {
        return std::future::pending().await;
    };
    let ended = handle.await;
    *steps = None;
    match ended {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Ok(()),
        Err(error) => Err(WorkerError::Device(format!("the step loop panicked: {error}"))),
    }
}

fn ended_by(abort: proto::Abort) -> Result<Ending, WorkerError> {
    if abort.permanent {
        return Err(WorkerError::Aborted { reason: abort.reason, hint: abort.hint });
    }
    Ok(Ending::Lost(abort.reason))
}

/// What another build or a closed door says is final; everything else is a lost connection.
fn refused_or_lost(access: &ClientAccess, status: &tonic::Status) -> Result<Ending, WorkerError> {
    if let Some(refusal) = access.refusal(status) {
        return Err(refusal.into());
    }
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument | tonic::Code::Unimplemented => {
            Err(WorkerError::Refused { reason: status.message().to_owned() })
        }
        _ => Ok(Ending::Lost(status_words(status))),
    }
}
