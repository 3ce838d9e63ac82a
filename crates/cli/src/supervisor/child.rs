//! What a process that `launch` or `report` started does about its parent and about signals. Called first by `worker` and
//! `coordinator`, and by `launch` and `eval`.

use std::future::Future;
use std::sync::Arc;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::{PARENT_VARIABLE, RESTARTS_VARIABLE};
use crate::error::CliError;

/// The parent's process id, when `launch` started this process.
fn parent() -> Option<i32> {
    std::env::var(PARENT_VARIABLE).ok()?.parse().ok()
}

/// Whether `launch` started this process.
pub fn is_launched() -> bool {
    parent().is_some()
}

/// How often `launch` has started a worker in this one's place before.
pub fn restarts() -> u32 {
    std::env::var(RESTARTS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Asks the kernel to kill this process when its parent ends, whatever ends it.
pub fn die_with_parent() -> Result<(), CliError> {
    let Some(parent) = parent() else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)?;
    // The parent may have ended before the line above.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Err(CliError::new("the launcher ended before this process began"));
    }
    Ok(())
}

/// Notified at each SIGUSR1, such as SLURM's warning before the end of a job. A worker, which has nothing to write, lets
/// it pass: without a handler the signal would kill it.
pub fn checkpoint_signal() -> Result<Arc<Notify>, CliError> {
    let mut warning = signal(SignalKind::user_defined1())?;
    let notify = Arc::new(Notify::new());
    let wanted = notify.clone();
    tokio::spawn(async move {
        while warning.recv().await.is_some() {
            wanted.notify_one();
        }
    });
    Ok(notify)
}

/// Resolves at SIGTERM, and at SIGINT unless `launch` started this process: it ends its children itself.
/// A second signal ends the process at once.
pub fn shutdown_signal() -> Result<impl Future<Output = ()>, CliError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let launched = parent().is_some();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut sender = Some(sender);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {
                    if launched {
                        continue;
                    }
                }
            }
            match sender.take() {
                // Nobody listens when the run is ending anyway.
                Some(first) => drop(first.send(())),
                None => std::process::exit(1),
            }
        }
    });
    Ok(async move {
        if receiver.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
