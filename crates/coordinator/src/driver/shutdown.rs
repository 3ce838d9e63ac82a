//! How a run ends: complete, stopped or failed. Files come first, then the workers are told.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message;

use tokio::sync::mpsc;

use super::{Driver, Outcome};
use crate::error::CoordinatorError;
use crate::final_file::{FinalFile, RETRY_AFTER};
use crate::machine::{Event, MemberId};
use crate::rpc::call::Call;

/// Time for the last checkpoint of a run that was stopped or failed …
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// … and of one that is complete.
const FINISH_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a run in which messages were damaged answers workers after its end.
const FAREWELL: Duration = Duration::from_secs(5);

impl Driver {
    /// Writes both final files, then tells every worker that the run is done.
    pub(super) async fn finish(
        &mut self,
        calls: &mut mpsc::Receiver<Call>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Outcome, CoordinatorError> {
        self.console.finish();
        let step = self.committed_step();
        self.flush(FINISH_TIMEOUT);
        let Some(checkpoint) = self.checkpoint() else {
            return Err(CoordinatorError::Server("the run ended without a state".to_owned()));
        };
        let path = self.config.run.model_path_save.clone();
        let bytes = checkpoint.to_bytes();
        let mut file = FinalFile::new(path.clone(), bytes.clone());
        loop {
            match file.write(|line| self.console.print(line)) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    self.abort_all(
                        &error.to_string(),
                        "the run is complete in its folder: repeat it with --resume auto",
                    );
                    return Err(error.into());
                }
            }
            // The run's own folder may have room where the final file's has none.
            self.keep_checkpoint(step, &bytes);
            if self.stopped_within(RETRY_AFTER, calls, shutdown.as_mut()).await {
                self.abort_all("the run was stopped", "start it again with --resume auto");
                self.keep_checkpoint(step, &bytes);
                return Err(self.stopped());
            }
        }
        self.keep_checkpoint(step, &bytes);
        self.console.print(&format!("wrote {}", path.display()));
        for (machine, step) in self.machine.never_audited() {
            let (host, device) = (machine.host, machine.device);
            self.console.print(&format!(
                "{host} ({device}) left before it was audited: nobody compared its rows since step {step}"
            ));
        }
        if self.damaged > 0 {
            self.console.print(&format!("{} messages were damaged on their way and sent again", self.damaged));
        }
        if let Some(line) = self.failures.summary() {
            self.console.print(&line);
        }
        self.tell_done(step);
        if self.damaged > 0 {
            self.tell_latecomers(step, calls).await;
        }
        Ok(Outcome { step, already: false })
    }

    /// Tells every connected worker that the run is done, and ends their streams.
    fn tell_done(&mut self, step: u64) {
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            self.send(member, Message::Done(proto::Done { summary: format!("all {step} steps are committed") }));
        }
        // Dropping the outboxes ends the streams once everything in them is sent.
        self.outboxes.clear();
    }

    /// A worker that renewed its link because one of the last messages was damaged comes back, and would wait for a coordinator that
    /// has ended: for [`FAREWELL`] it is told that the run is done.
    async fn tell_latecomers(&mut self, step: u64, calls: &mut mpsc::Receiver<Call>) {
        let over = tokio::time::sleep(FAREWELL);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(call) = calls.recv() => match call {
                    Call::Connected(member, _, outbox) => {
                        self.outboxes.insert(member, outbox);
                        self.welcome(member);
                        self.tell_done(step);
                    }
                    Call::Status(reply) => {
                        // The client may have gone.
                        let _ = reply.send(self.status(Instant::now()));
                    }
                    _ => {}
                },
            }
        }
    }

    /// Writes a checkpoint of the committed state and waits for the disk, at most for `timeout`.
    pub(super) fn flush(&mut self, timeout: Duration) {
        self.console.finish();
        self.write_checkpoint();
        if timeout == STOP_TIMEOUT {
            self.writer.hurry();
        }
        let until = Instant::now() + timeout;
        if !self.solver.finish(timeout) {
            tracing::warn!("the solver's thread is still at work; the checkpoint before is valid");
        }
        if !self.writer.finish(until.saturating_duration_since(Instant::now())) {
            self.console.print(&format!(
                "the disk has not taken the last checkpoint in {:.1} s; the one before is valid",
                timeout.as_secs_f64()
            ));
        }
        let failed = self.writer.failed();
        if failed > 0 {
            tracing::error!("{failed} checkpoints could not be written");
        }
    }

    /// Ends a run that was told to stop.
    pub(super) fn stop(&mut self) -> CoordinatorError {
        for line in self.untold.all() {
            self.console.print(&line);
        }
        self.abort_all("the run was stopped", "start it again with --resume auto");
        self.flush(STOP_TIMEOUT);
        self.stopped()
    }

    /// Writes the last checkpoint to the run's folder, if the disk did not take it before.
    fn keep_checkpoint(&self, step: u64, bytes: &[u8]) {
        if self.writer.failed() > 0
            && !self.folder.file_of(step).exists()
            && let Err(error) = self.folder.write(step, bytes, self.config.run.keep_checkpoints)
        {
            tracing::debug!("{error}");
        }
    }

    /// Whether the run is told to stop within `time`; `status` is answered meanwhile.
    async fn stopped_within(
        &mut self,
        time: Duration,
        calls: &mut mpsc::Receiver<Call>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> bool {
        let over = tokio::time::sleep(time);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut shutdown => return true,
                () = &mut over => return false,
                Some(call) = calls.recv() => match call {
                    Call::Status(reply) => {
                        // The client may have gone.
                        let _ = reply.send(self.status(Instant::now()));
                    }
                    Call::Event(Event::Left(member, _)) => {
                        self.outboxes.remove(&member);
                    }
                    // Nothing is left to do; a worker that comes now tries again and is told that the run is done.
                    _ => {}
                },
            }
        }
    }

    fn stopped(&self) -> CoordinatorError {
        CoordinatorError::Stopped {
            step: self.committed_step(),
            saved: None,
            total: self.config.recipe.total_steps(),
            run_id: self.config.run.run_id.clone(),
        }
    }

    /// Tells every worker not to come back, and why.
    pub(super) fn abort_all(&mut self, reason: &str, hint: &str) {
        self.dispatcher.end();
        self.reducer.end();
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            let abort = proto::Abort {
                permanent: true,
                run_over: true,
                reason: reason.to_owned(),
                hint: hint.to_owned(),
                ..Default::default()
            };
            self.send(member, Message::Abort(abort));
        }
        self.outboxes.clear();
    }
}
