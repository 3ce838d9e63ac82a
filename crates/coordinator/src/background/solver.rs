//! The solver's thread: adds up the features of committed chunks, stores the sums with checkpoints, and solves.
//! The sums are a function of the committed chunks alone. Adding and solving take up to seconds, too long for the driver.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use numalign_checkpoint::Checkpoint;
use numalign_projector::{Features, Fit, Sums};
use tokio::sync::mpsc::UnboundedSender;

use super::checkpoint_writer::CheckpointWriter;

/// A round's solution, or why there is none.
pub type Solution = Result<Fit, String>;

/// The unit at which a round ends, and its solution.
pub type SolveResult = (u64, Solution);

enum Job {
    /// Chunk number of the round, and what it gathered.
    Add(u64, Arc<Features>),
    /// To be written with the sums as they are now.
    Write(Box<Checkpoint>),
    Solve(u64),
}

/// A handle of the thread.
pub struct SolverThread {
    /// One round waits here at most; each chunk is needed, so none is refused.
    jobs: Option<mpsc::Sender<Job>>,
    /// Ends with the thread.
    running: mpsc::Receiver<()>,
}

impl SolverThread {
    /// Starts the thread with the sums of a round in progress, if there is one. Checkpoints go to `writer`, solutions to
    /// `solutions`.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn start(
        sums: Option<Sums>,
        writer: CheckpointWriter,
        solutions: UnboundedSender<SolveResult>,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (alive, running) = mpsc::channel::<()>();
        let body = move || {
            let _alive = alive;
            let mut round = RoundSums { sums };
            while let Ok(job) = inbox.recv() {
                match job {
                    Job::Add(chunk, features) => round.add(chunk, &features),
                    Job::Write(mut checkpoint) => {
                        checkpoint.sums = round.sums.clone();
                        writer.write(&checkpoint);
                    }
                    Job::Solve(unit) => {
                        // The driver may have ended meanwhile; then the solution is not needed.
                        let _ = solutions.send((unit, round.solve()));
                    }
                }
            }
        };
        std::thread::Builder::new().name("solver".to_owned()).spawn(body)?;
        Ok(Self { jobs: Some(jobs), running })
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs
            && jobs.send(job).is_err()
        {
            tracing::error!("the solver's thread is gone; its message is above");
        }
    }

    /// Adds a committed chunk, number `chunk` of its round.
    pub fn add(&self, chunk: u64, features: Arc<Features>) {
        self.send(Job::Add(chunk, features));
    }

    /// Writes a checkpoint of a round in progress, with its sums.
    pub fn write(&self, checkpoint: Checkpoint) {
        self.send(Job::Write(Box::new(checkpoint)));
    }

    /// Solves for the output projector at unit `unit`, once everything before is added.
    pub fn solve(&self, unit: u64) {
        self.send(Job::Solve(unit));
    }

    /// Waits until everything sent is done, at most for `timeout`. False if that was not enough.
    pub fn finish(&mut self, timeout: Duration) -> bool {
        self.jobs = None;
        // Nothing is ever sent here: the thread's end shows as a channel without senders.
        self.running.recv_timeout(timeout) != Err(mpsc::RecvTimeoutError::Timeout)
    }
}

/// The sums of the round in progress; `None` before the first one.
struct RoundSums {
    sums: Option<Sums>,
}

impl RoundSums {
    /// The first chunk of a round resets the sums.
    fn add(&mut self, chunk: u64, features: &Features) {
        if chunk == 0 {
            self.sums = Some(Sums::new(features.hidden()));
        }
        let added = match &mut self.sums {
            Some(sums) => sums.add(features).map_err(|error| error.to_string()),
            None => Err("no round is in progress".to_owned()),
        };
        if let Err(reason) = added {
            tracing::error!("chunk {chunk} cannot be added: {reason}");
            self.sums = None;
        }
    }

    fn solve(&self) -> Solution {
        let sums = self.sums.as_ref().ok_or_else(|| "its sums are missing".to_owned())?;
        sums.solve().map_err(|error| error.to_string())
    }
}
