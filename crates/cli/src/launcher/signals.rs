//! Signals from the terminal or the scheduler: stop, and write a checkpoint.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::error::{CliError, STOPPED};

/// What SIGINT, the terminal's Ctrl-C, does. It reaches every process of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    Stop,
    /// For a child whose parent ends it.
    Ignore,
}

/// What arrived so far.
#[derive(Debug, Clone)]
pub struct Signals {
    stop: watch::Receiver<bool>,
    checkpoint: Arc<Notify>,
}

impl Signals {
    /// Begins to listen, in the context of a runtime. The second request to stop ends the process at once, and its children
    /// with it.
    pub fn listen(interrupt: Interrupt) -> Result<Self, CliError> {
        let mut terminate_signal = signal(SignalKind::terminate())?;
        // The terminal or the session is gone. What `nohup` started ignores that, and its children do.
        let mut hangup_signal = if is_ignored(libc::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) };
        let mut interrupt_signal = signal(SignalKind::interrupt())?;
        // SLURM's warning, for example. Without a handler it would kill the process.
        let mut warning_signal = signal(SignalKind::user_defined1())?;
        let (stop, stopped) = watch::channel(false);
        let checkpoint = Arc::new(Notify::new());
        let wanted = checkpoint.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate_signal.recv() => {}
                    () = received(&mut hangup_signal) => {}
                    _ = interrupt_signal.recv() => {
                        if interrupt == Interrupt::Ignore {
                            continue;
                        }
                    }
                    _ = warning_signal.recv() => {
                        wanted.notify_one();
                        continue;
                    }
                }
                // A signal to the whole group reaches a child twice, once through its parent; that one ends it in time.
                if stop.send_replace(true) && interrupt == Interrupt::Stop {
                    std::process::exit(STOPPED.into());
                }
            }
        });
        Ok(Self { stop: stopped, checkpoint })
    }

    /// Whether the run is to end.
    pub fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Resolves once the run is to end.
    pub async fn stop(mut self) {
        if self.stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Notified when a checkpoint is wanted.
    pub fn checkpoint(&self) -> Arc<Notify> {
        self.checkpoint.clone()
    }

    /// Forgets a checkpoint that was wanted before.
    pub fn forget_checkpoint(&self) {
        std::pin::pin!(self.checkpoint.notified()).as_mut().enable();
    }
}

/// The next signal; never, of one that is not listened to.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether this process ignores a signal, as its parent wanted it to.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeros are a valid `sigaction`, which the call only fills in.
    let (result, action) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut action), action)
    };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// A file that may not grow further (`ulimit -f`) gives an error, not the end of the process. Children inherit it; a closed
/// pipe is ignored by the language itself.
pub fn ignore_file_size_signal() {
    // SAFETY: to ignore a signal runs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wanted_checkpoint_waits_until_it_is_asked_for_or_forgotten() {
        let (_stop, stopped) = watch::channel(false);
        let signals = Signals { stop: stopped, checkpoint: Arc::new(Notify::new()) };
        signals.checkpoint.notify_one();
        signals.checkpoint().notified().await;
        signals.checkpoint.notify_one();
        signals.forget_checkpoint();
        assert!(!std::pin::pin!(signals.checkpoint.notified()).as_mut().enable());
        assert!(!signals.stopped());
    }
}
