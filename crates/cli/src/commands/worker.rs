//! `numalign worker`: one worker process.

use clap::ArgMatches;
use numalign_engine::EngineError;
use numalign_worker::{Options, WorkerError};

use crate::args::text;
use crate::error::CliError;
use crate::launcher::child;
use crate::launcher::signals::Signals;
use crate::launcher::spawn::LOCAL_RANK_VARIABLE;
use crate::{clock, connect, credentials, logging, settings};

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    child::die_with_parent()?;
    logging::start("info", true);
    clock::check()?;
    let access = credentials::client(matches)?;
    let coordinator = match text(matches, "coordinator") {
        Some(url) => url.to_owned(),
        None => connect::from_environment(&access)?.ok_or_else(|| {
            CliError::usage("no coordinator is given")
                .with_hint("use --coordinator http://HOST:PORT, or set MASTER_ADDR and MASTER_PORT")
        })?,
    };
    let (device, local_rank) = (settings::device(matches)?, local_rank()?);
    let first_contact = settings::coordinator_wait()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        // A worker has no checkpoint to write; the signal that asks for one would kill it without a handler.
        let signals = Signals::listen(child::interrupt())?;
        let restarts = child::restarts();
        let options = Options { coordinator, access, device, local_rank, first_contact, restarts, simulated: None };
        numalign_worker::run(options, signals.stop()).await.map_err(failure_of)
    });
    // The device thread may be in the middle of a step; the process does not wait for it.
    runtime.shutdown_background();
    result
}

/// Under `launch` the coordinator reports on the same terminal: what it knows is not said twice.
fn failure_of(error: WorkerError) -> CliError {
    let known = matches!(
        error,
        WorkerError::Engine(EngineError::Model(_) | EngineError::Sample { .. } | EngineError::BadSample { .. })
            | WorkerError::Aborted { .. }
            | WorkerError::Dismissed { .. }
            | WorkerError::Stalled { .. }
    );
    if known && error.is_permanent() && child::is_launched() {
        tracing::debug!("{error}");
        return CliError::already_reported(1);
    }
    error.into()
}

/// This worker's number among those of its machine, as `launch`, torchrun or SLURM set it.
fn local_rank() -> Result<Option<usize>, CliError> {
    for name in [LOCAL_RANK_VARIABLE, "SLURM_LOCALID"] {
        if let Ok(text) = std::env::var(name) {
            return match text.parse() {
                Ok(rank) => Ok(Some(rank)),
                Err(_) => Err(CliError::usage(format!("{name} is `{text}`, not a number"))),
            };
        }
    }
    Ok(None)
}
