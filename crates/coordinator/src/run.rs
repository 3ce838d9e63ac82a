//! One run from start to end: prepares, serves, and waits for the shell. The entry point of this crate.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use numalign_access::ServerAccess;
use numalign_checkpoint::{CheckpointError, write_atomically};
use numalign_config::Config;
use numalign_data::Streams;
use numalign_protocol::coordinator_server::CoordinatorServer;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::address::AddressFile;
use crate::error::CoordinatorError;
use crate::failures::FailureLog;
use crate::gate::{Gate, GateLimits};
use crate::guard::{Bounded, Guard, Homes};
use crate::heard::Unheard;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::reduce::Reducer;
use crate::service::{Handle, Service};
use crate::shell::{Outcome, Shell};
use crate::solving::Solver;
use crate::start::{self, Start};
use crate::stderr;
use crate::work::WorkBoard;
use crate::writer::Writer;

/// Calls that one connection may have open at once; a worker has three.
const MOST_STREAMS: u32 = 32;

/// Bytes that one connection may send ahead of what is read from it.
const WINDOW: u32 = 1 << 20;

/// Time that workers get to read the last messages before the server goes.
const FAREWELL: Duration = Duration::from_millis(500);

/// Runs `config` on `listener` until every step is committed, the run fails, or `shutdown` resolves. Each time
/// `checkpoint_wanted` is notified, the committed state is written to the run's folder. `access` says what is demanded of
/// whoever connects.
pub async fn run(
    config: Config,
    listener: TcpListener,
    access: ServerAccess,
    shutdown: impl Future<Output = ()>,
    checkpoint_wanted: Arc<Notify>,
) -> Result<Outcome, CoordinatorError> {
    let config = Arc::new(config);
    let start = start::prepare(&config)?;
    for line in &start.story {
        stderr::note(line);
    }
    if let Some(outcome) = already_finished(&config, &start)? {
        return Ok(outcome);
    }
    check_destination(&config)?;
    let address = listener.local_addr().map_err(|error| CoordinatorError::Server(error.to_string()))?;
    let _address = AddressFile::publish(start.folder.path(), address, access.tls.is_some());
    let incarnation = incarnation();
    let config_text = serde_json::to_string(&*config)
        .map_err(|error| CoordinatorError::Server(format!("the configuration cannot be written as JSON: {error}")))?;
    let (board, reducer) = (Arc::new(WorkBoard::default()), Arc::new(Reducer::default()));
    let (calls, inbox) = mpsc::channel(1024);
    let streams = Streams::new(start.stream.clone(), &config.recipe)?;
    let service = Handle(Arc::new(Service {
        config: config.clone(),
        streams: streams.clone(),
        board: board.clone(),
        reducer: reducer.clone(),
        shell: calls,
        config_digest: config_digest(&config),
        next_member: AtomicU64::new(1),
        homes: Homes::default(),
    }));
    let folder = start.folder.path().to_owned();
    let writer = Writer::start(start.folder.clone(), config.run.keep_checkpoints)
        .map_err(|error| CoordinatorError::Server(format!("the checkpoint thread does not start: {error}")))?;
    let (solutions, solved) = mpsc::unbounded_channel();
    let solver = Solver::start(start.sums.clone(), writer.clone(), solutions)
        .map_err(|error| CoordinatorError::Server(format!("the solver's thread does not start: {error}")))?;
    let ledger_step = start.committed_step();
    let shell = Shell {
        config: config.clone(),
        config_text,
        replaced: start.replaces.then(|| start.folder.clone()),
        machine: Machine::new(config.clone(), incarnation, start.state.clone(), start.fingerprint.clone()),
        incarnation,
        board,
        reducer,
        streams,
        progress: Progress::new(config.clone(), &folder),
        writer,
        solver,
        fingerprint: start.fingerprint.clone().unwrap_or_default(),
        layer_norms: start.layer_norms.clone(),
        dataset_digest: start.dataset_digest.clone(),
        loaded_digest: start.loaded_digest.clone(),
        ledger: start.ledger,
        ledger_step,
        outboxes: HashMap::new(),
        boundary: None,
        failures: FailureLog::default(),
        unheard: Unheard::default(),
        unreachable: Vec::new(),
        started: Instant::now(),
        last_reason: String::new(),
    };

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<CoordinatorServer<Handle>>().await;
    let (stop_server, stopped) = oneshot::channel::<()>();
    let gate = Gate::new(gate_limits(&config), access.tls);
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(MOST_STREAMS)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
        .add_service(InterceptedService::new(health, Guard::open(access.token.clone())))
        .add_service(InterceptedService::new(Bounded::new(service), Guard::strict(access.token)))
        .serve_with_incoming_shutdown(gate.incoming(listener), async {
            // Either way the server goes.
            let _ = stopped.await;
        });
    let mut server = tokio::spawn(server);
    let shell = shell.run(inbox, solved, shutdown, checkpoint_wanted);
    tokio::pin!(shell);
    let outcome = tokio::select! {
        outcome = &mut shell => outcome,
        ended = &mut server => {
            let why = match ended {
                Ok(Ok(())) => "it was told to".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            return Err(CoordinatorError::Server(why));
        }
    };
    // Workers read their last message and hang up; those that do not are not waited for.
    let _ = stop_server.send(());
    if tokio::time::timeout(FAREWELL, &mut server).await.is_err() {
        server.abort();
    }
    drop(start.lock);
    outcome.map_err(|error| error.with_checkpoint_of(&start.folder))
}

/// The limits that this process's limit on open files leaves.
fn gate_limits(config: &Config) -> GateLimits {
    let wanted = GateLimits::for_workers(config.run.max_workers);
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        Some(files) if files < wanted.descriptors() => {
            tracing::warn!("the limit on open files is {files} (ulimit -n): fewer workers than max_workers find room");
            wanted.within(files)
        }
        _ => wanted,
    }
}

impl Start {
    /// Updates that `ledger` covers already.
    fn committed_step(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.step())
    }
}

/// BLAKE3 of the settings that determine the run's states; a worker of another run does not have it.
pub fn config_digest(config: &Config) -> String {
    blake3::hash(config.digest_text().as_bytes()).to_hex().to_string()
}

/// A run whose last step is committed needs no workers: its result is written again, and that is all.
fn already_finished(config: &Config, start: &Start) -> Result<Option<Outcome>, CoordinatorError> {
    let (Some(state), Some(fingerprint)) = (&start.state, &start.fingerprint) else {
        return Ok(None);
    };
    let next = config.units().next(state.position());
    if config.run.resume.is_none() || next != numalign_config::Unit::End {
        return Ok(None);
    }
    let checkpoint = numalign_checkpoint::Checkpoint {
        identity: numalign_checkpoint::Identity {
            recipe: config.recipe.clone(),
            base_fingerprint: fingerprint.clone(),
            layer_norms: start.layer_norms.clone(),
            dataset_digest: start.dataset_digest.clone(),
            loaded_digest: start.loaded_digest.clone(),
        },
        state: state.clone(),
        sample_digest: start.ledger.to_hex(),
        sums: None,
    };
    let path = &config.run.model_path_save;
    write_atomically(path, &checkpoint.to_bytes())?;
    stderr::note(&format!(
        "the run is finished: all {} steps are committed; {} holds the result",
        state.step(),
        path.display()
    ));
    Ok(Some(Outcome { step: state.step(), already: true }))
}

/// A result that cannot be written is found out before the training, not after it.
fn check_destination(config: &Config) -> Result<(), CoordinatorError> {
    let path = &config.run.model_path_save;
    if path.is_dir() {
        let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(CheckpointError::Write { path: path.clone(), source }.into());
    }
    let mut probe = path.as_os_str().to_owned();
    probe.push(".probe");
    let probe = std::path::PathBuf::from(probe);
    write_atomically(&probe, b"")?;
    // An empty file left behind would be untidy, nothing more.
    let _ = std::fs::remove_file(&probe);
    Ok(())
}

/// A number that no other coordinator process has, and that nobody can guess.
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
