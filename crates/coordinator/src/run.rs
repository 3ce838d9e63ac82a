//! One run from start to end: prepares, serves, and waits for the driver. The entry point of this crate.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use numalign_access::ServerAccess;
use numalign_access::listener::{Listener, ListenerLimits};
use numalign_checkpoint::{Checkpoint, CheckpointError, remove_abandoned, write_atomically};
use numalign_config::Config;
use numalign_data::Schedule;
use numalign_projector::State;
use numalign_protocol::StatusReply;
use numalign_protocol::coordinator_server::CoordinatorServer;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::codec::CompressionEncoding;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::address::PublishedFile;
use crate::dataset::OpenedFiles;
use crate::driver::{Driver, Outcome};
use crate::error::CoordinatorError;
use crate::final_file::{FinalFile, RETRY_AFTER};
use crate::machine::clean_audits::HostDevice;
use crate::machine::{Machine, RebalancePolicy};
use crate::rpc::auth::AuthInterceptor;
use crate::rpc::call::Call;
use crate::rpc::dispatch::Dispatcher;
use crate::rpc::guesses::SlowGuesses;
use crate::rpc::message_limits::MessageSizeLimit;
use crate::rpc::reduce::Reducer;
use crate::rpc::service::CoordinatorService;
use crate::start::{self, Start};
use crate::stderr;

/// Calls that one connection may have open at once; a worker has three.
const MAX_STREAMS: u32 = 32;

/// Bytes that one connection may send ahead of what is read from it.
const WINDOW: u32 = 1 << 20;

/// Milliseconds after which another split is considered, for tests that would wait for it.
const REBALANCE_VARIABLE: &str = "NUMALIGN_INTERNAL_REBALANCE_AFTER_MS";

/// Time for workers to read the last messages before the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Questions for the status, from this process.
pub type StatusQueries = mpsc::Receiver<oneshot::Sender<StatusReply>>;

/// Runs `config` on `socket` until every step is committed, the run fails, or `shutdown` resolves. `files` are those of its
/// data files that were read before. Each time `checkpoint_wanted` is notified, the committed state is written to the run's
/// folder. `access` says what clients must present. Who asks through `queries` gets the status as a client does.
///
/// # Errors
/// The run cannot start, failed or was stopped; see [`CoordinatorError`].
pub async fn run(
    config: Config,
    files: OpenedFiles,
    socket: TcpListener,
    access: ServerAccess,
    shutdown: impl Future<Output = ()>,
    checkpoint_wanted: Arc<Notify>,
    queries: Option<StatusQueries>,
) -> Result<Outcome, CoordinatorError> {
    let config = Arc::new(config);
    let start = start::prepare(&config, files)?;
    for line in &start.messages {
        stderr::note(line);
    }
    let shutdown = within(config.run.max_time, shutdown);
    tokio::pin!(shutdown);
    if let Some(outcome) = already_finished(&config, &start, shutdown.as_mut()).await? {
        return Ok(outcome);
    }
    check_destination(&config)?;
    let address = socket.local_addr().map_err(|error| CoordinatorError::Server(error.to_string()))?;
    let _address = PublishedFile::address(start.folder.path(), address, access.tls.is_some());
    let published = access.token.as_ref().filter(|_| access.publish_token);
    let _token = published.map(|token| PublishedFile::token(start.folder.path(), token));
    let (dispatcher, reducer) = (Arc::new(Dispatcher::default()), Arc::new(Reducer::default()));
    let streams = start.streams.clone();
    let machine = Machine::new(config.clone(), incarnation(), start.state.clone(), start.base.clone())
        .with_rebalance(rebalance_policy())
        .with_rollbacks(start.key.rollbacks(), states_of(&start));
    let machine = if config.run.dataset_file.is_some() { machine.with_sample_check() } else { machine };
    let driver = Driver::new(config.clone(), &start, machine, streams.clone(), dispatcher.clone(), reducer.clone())?;
    let backlog = driver.backlog();
    let (calls, inbox) = mpsc::channel(1024);
    if let Some(queries) = queries {
        tokio::spawn(answer_queries(queries, calls.clone()));
    }
    let service = CoordinatorService::new(
        config.clone(),
        start.key.clone(),
        streams,
        dispatcher,
        reducer.clone(),
        backlog,
        calls,
    );

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<CoordinatorServer<CoordinatorService>>().await;
    let (stop_server, stopped) = oneshot::channel::<()>();
    let listener = Listener::new(listener_limits(&config), access.tls);
    // The token is checked before a byte is decompressed, and the limits hold for what comes out.
    let service = CoordinatorServer::new(service).accept_compressed(CompressionEncoding::Gzip);
    let service = MessageSizeLimit::new(service, &config, reducer);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(numalign_protocol::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| CoordinatorError::Server(format!("its own description cannot be read: {error}")))?;
    let required = || AuthInterceptor::required(access.token.clone());
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .add_service(InterceptedService::new(health, AuthInterceptor::optional(access.token.clone())))
        .add_service(SlowGuesses::new(InterceptedService::new(reflection, required())))
        .add_service(SlowGuesses::new(InterceptedService::new(service, required())))
        .serve_with_incoming_shutdown(listener.incoming(socket), async {
            // Either way the server goes.
            let _ = stopped.await;
        });
    let mut server = tokio::spawn(server);
    let driver = driver.run(inbox, shutdown, checkpoint_wanted);
    tokio::pin!(driver);
    let outcome = tokio::select! {
        outcome = &mut driver => outcome,
        ended = &mut server => {
            let why = match ended {
                Ok(Ok(())) => "it was told to".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            return Err(CoordinatorError::Server(why));
        }
    };
    // Workers read their last message and disconnect; those that do not are not waited for.
    let _ = stop_server.send(());
    if tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
        server.abort();
    }
    drop(start.lock);
    outcome.map_err(|error| error.with_checkpoint_of(&start.folder))
}

/// The machines with unaudited rows, and the states before those.
fn states_of(start: &Start) -> BTreeMap<HostDevice, Arc<State>> {
    let state = |(machine, kept): (&HostDevice, &Arc<Checkpoint>)| (machine.clone(), Arc::new(kept.state.clone()));
    start.unaudited.iter().map(state).collect()
}

/// Resolves when `shutdown` does, or after `limit`, which is told.
async fn within(limit: Option<Duration>, shutdown: impl Future<Output = ()>) {
    let Some(limit) = limit else { return shutdown.await };
    if tokio::time::timeout(limit, shutdown).await.is_err() {
        stderr::note("max_time is over: stopping");
    }
}

/// Hands the queries of this process to the driver, as the service does with those of clients.
async fn answer_queries(mut queries: StatusQueries, calls: mpsc::Sender<Call>) {
    while let Some(reply) = queries.recv().await {
        if calls.send(Call::Status(reply)).await.is_err() {
            return;
        }
    }
}

/// The default policy, unless a test asks for an earlier split.
fn rebalance_policy() -> RebalancePolicy {
    let policy = RebalancePolicy::default();
    match std::env::var(REBALANCE_VARIABLE).ok().and_then(|text| text.parse().ok()) {
        Some(milliseconds) => RebalancePolicy { after: Duration::from_millis(milliseconds), ..policy },
        None => policy,
    }
}

/// The limits that this process's limit on open files leaves.
fn listener_limits(config: &Config) -> ListenerLimits {
    let wanted = ListenerLimits::for_workers(config.run.max_workers);
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        Some(files) if files < wanted.descriptors() => {
            tracing::warn!("the limit on open files is {files} (ulimit -n): fewer workers than max_workers find room");
            wanted.within(files)
        }
        _ => wanted,
    }
}

/// A run whose last step is committed needs no workers: its result is written again, and that is all.
async fn already_finished(
    config: &Config,
    start: &Start,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Outcome>, CoordinatorError> {
    let (Some(state), Some(base)) = (&start.state, &start.base) else {
        return Ok(None);
    };
    let next = Schedule::of_run(config).next(state.position());
    if config.run.resume.is_none() || next != numalign_data::Unit::End {
        return Ok(None);
    }
    let checkpoint = Checkpoint {
        identity: numalign_checkpoint::Identity {
            recipe: config.recipe.clone(),
            base_fingerprint: base.fingerprint.clone(),
            tokenizer_fingerprint: base.tokenizer.clone(),
            arithmetic: base.arithmetic.unwrap_or_default(),
            layer_norms: start.layer_norms.clone(),
            dataset_digest: start.dataset_digest.clone(),
            split: start.split.clone(),
            loaded_digest: start.loaded_digest.clone(),
        },
        state: state.clone(),
        sample_digest: start.sample_digest.to_hex(),
        sums: None,
    };
    let path = &config.run.model_path_save;
    let mut file = FinalFile::new(path.clone(), checkpoint.to_bytes());
    while !file.write(stderr::note)? {
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => {}
            () = &mut shutdown => return Err(CoordinatorError::Stopped {
                step: state.step(),
                total: config.recipe.total_steps(),
                run_id: config.run.run_id.clone(),
                saved: None,
            }),
        }
    }
    stderr::note(&format!(
        "the run is finished: all {} steps are committed; {} holds the result",
        state.step(),
        path.display()
    ));
    Ok(Some(Outcome { step: state.step(), already: true }))
}

/// Finds out before the training, not after it, whether the result can be written.
fn check_destination(config: &Config) -> Result<(), CoordinatorError> {
    let path = &config.run.model_path_save;
    if path.is_dir() {
        let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(CheckpointError::Write { path: path.clone(), source }.into());
    }
    let mut empty = path.as_os_str().to_owned();
    empty.push(".writable");
    let empty = std::path::PathBuf::from(empty);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    remove_abandoned(folder.unwrap_or(Path::new(".")));
    write_atomically(&empty, b"")?;
    // An empty file left behind would be untidy, nothing more.
    let _ = std::fs::remove_file(&empty);
    Ok(())
}

/// A number that no other coordinator process has, and that cannot be guessed.
fn incarnation() -> u64 {
    let mut hasher = blake3::Hasher::new();
    let mut random = [0u8; 16];
    // Without the kernel's randomness the rest still tells two processes apart.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    hasher.update(&random);
    hasher.update(&std::process::id().to_le_bytes());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    hasher.update(&now.as_nanos().to_le_bytes());
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}
