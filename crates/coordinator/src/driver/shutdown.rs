//! How a run ends: complete, stopped or failed. Files come first, then the workers are told.

use std::time::{Duration, Instant};

use numalign_checkpoint::write_atomically;
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message;

use super::{Driver, Outcome};
use crate::error::CoordinatorError;
use crate::machine::MemberId;

/// Time for the last checkpoint of a run that was stopped or failed …
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// … and of one that is complete.
const FINISH_TIMEOUT: Duration = Duration::from_secs(600);

impl Driver {
    /// Writes both final files, then tells every worker that the run is done.
    pub(super) async fn finish(&mut self) -> Result<Outcome, CoordinatorError> {
        self.console.finish();
        let step = self.committed_step();
        self.flush(FINISH_TIMEOUT);
        let Some(checkpoint) = self.checkpoint() else {
            return Err(CoordinatorError::Server("the run ended without a state".to_owned()));
        };
        let path = self.config.run.model_path_save.clone();
        if let Err(error) = write_atomically(&path, &checkpoint.to_bytes()) {
            self.abort_all(&error.to_string(), "the run is complete in its folder: repeat it with --resume auto");
            return Err(error.into());
        }
        self.console.print(&format!("wrote {}", path.display()));
        if let Some(line) = self.failures.summary() {
            self.console.print(&line);
        }
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            self.send(member, Message::Done(proto::Done { summary: format!("all {step} steps are committed") }));
        }
        // Dropping the outboxes ends the streams once everything in them is sent.
        self.outboxes.clear();
        Ok(Outcome { step, already: false })
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
        self.abort_all("the run was stopped", "start it again with --resume auto");
        self.flush(STOP_TIMEOUT);
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
            let abort =
                proto::Abort { permanent: true, reason: reason.to_owned(), hint: hint.to_owned(), run_over: true };
            self.send(member, Message::Abort(abort));
        }
        self.outboxes.clear();
    }
}
