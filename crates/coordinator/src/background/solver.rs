//! The solver's thread: adds up the features of committed chunks, stores the sums with checkpoints, and solves.
//! The sums are a function of the committed chunks alone. Adding and solving take up to seconds, too long for the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use numalign_checkpoint::Checkpoint;
use numalign_projector::{Features, Fit, Sums};
use tokio::sync::mpsc::UnboundedSender;

use super::checkpoint_writer::CheckpointWriter;
use super::memory::free_memory;
use super::probe::Probe;
use super::probe_needs::gib;

/// A round's solution, or why there is none.
pub type Solution = Result<Fit, String>;

/// The unit at which a round ends, and its solution.
pub type SolveResult = (u64, Solution);

/// Bytes of committed chunks that the solver's thread has not added yet. It can be slower than the workers: where many
/// places are read, or onto a slow disk.
#[derive(Debug, Clone, Default)]
pub struct Backlog(Arc<AtomicU64>);

impl Backlog {
    /// From here on no chunk is handed out until some are added.
    pub(super) const MOST: u64 = 256 << 20;

    /// Whether further chunks have to wait.
    pub fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= Self::MOST
    }

    fn grow(&self, features: &Features) {
        self.0.fetch_add(4 * features.values().len() as u64, Ordering::Relaxed);
    }

    fn shrink(&self, features: &Features) {
        self.0.fetch_sub(4 * features.values().len() as u64, Ordering::Relaxed);
    }
}

enum Job {
    /// Chunk number of the round, and what it gathered.
    Add(u64, Arc<Features>),
    /// To be written with the sums as they are now; the number is [`CheckpointWriter::discarded`] when it was made.
    Write(Box<Checkpoint>, u64),
    Solve(u64),
}

/// A handle of the thread.
pub struct SolverThread {
    /// Each chunk is needed, so none is refused; the backlog holds new ones back.
    jobs: Option<mpsc::Sender<Job>>,
    backlog: Backlog,
    /// Ends with the thread.
    running: mpsc::Receiver<()>,
}

impl SolverThread {
    /// Starts the thread with the sums of a round in progress, if there is one, or for a probe. Later rounds choose the ridge
    /// with `folds`, or with none (0). Checkpoints go to `writer`, solutions to `solutions`.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn start(
        sums: Option<Sums>,
        folds: usize,
        probe: Option<Probe>,
        writer: CheckpointWriter,
        solutions: UnboundedSender<SolveResult>,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (alive, running) = mpsc::channel::<()>();
        let backlog = Backlog::default();
        let added = backlog.clone();
        let body = move || {
            let _alive = alive;
            let mut round = RoundSums { sums, folds, probe, failed: None };
            while let Ok(job) = inbox.recv() {
                match job {
                    Job::Add(chunk, features) => {
                        round.add(chunk, &features);
                        added.shrink(&features);
                    }
                    Job::Write(mut checkpoint, discarded) => {
                        if checkpoint.stores_sums() {
                            checkpoint.sums = round.sums.clone();
                        }
                        writer.write(&checkpoint, discarded);
                    }
                    Job::Solve(unit) => {
                        // The driver may have ended meanwhile; then the solution is not needed.
                        let _ = solutions.send((unit, round.solve()));
                    }
                }
            }
        };
        std::thread::Builder::new().name("solver".to_owned()).spawn(body)?;
        Ok(Self { jobs: Some(jobs), backlog, running })
    }

    /// What is not added yet.
    pub fn backlog(&self) -> Backlog {
        self.backlog.clone()
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
        self.backlog.grow(&features);
        self.send(Job::Add(chunk, features));
    }

    /// Writes a checkpoint of a round in progress, with its sums, unless the writer discards everything before.
    pub fn write(&self, checkpoint: Checkpoint, discarded: u64) {
        self.send(Job::Write(Box::new(checkpoint), discarded));
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

/// The round in progress.
struct RoundSums {
    /// `None` before the first round, and in a probe.
    sums: Option<Sums>,
    folds: usize,
    probe: Option<Probe>,
    /// Why a chunk could not be added.
    failed: Option<String>,
}

impl RoundSums {
    /// The first chunk of a round resets the sums.
    fn add(&mut self, chunk: u64, features: &Features) {
        if chunk == 0 {
            self.failed = None;
        }
        if self.failed.is_none()
            && let Err(reason) = self.try_add(chunk, features)
        {
            tracing::error!("chunk {chunk} cannot be added: {reason}");
            (self.sums, self.failed) = (None, Some(reason));
        }
    }

    fn try_add(&mut self, chunk: u64, features: &Features) -> Result<(), String> {
        if let Some(probe) = &mut self.probe {
            return probe.add(chunk, features);
        }
        if chunk == 0 {
            enough_memory(features.hidden(), self.folds)?;
            self.sums = Some(Sums::new(features.hidden(), self.folds));
        }
        let sums = self.sums.as_mut().ok_or("no round is in progress")?;
        sums.add(features).map_err(|error| error.to_string())
    }

    fn solve(&mut self) -> Solution {
        if let Some(reason) = &self.failed {
            return Err(reason.clone());
        }
        if let Some(probe) = &mut self.probe {
            return probe.solve();
        }
        let sums = self.sums.as_ref().ok_or_else(|| "its sums are missing".to_owned())?;
        sums.solve().map_err(|error| error.to_string())
    }
}

/// Refuses sums that would not fit into free memory. Those of a few thousand columns are not worth a look.
fn enough_memory(columns: usize, folds: usize) -> Result<(), String> {
    const WORTH_A_LOOK: u64 = 1 << 30;
    let needed = Sums::memory_bytes(columns, folds);
    let Some(free) = free_memory().filter(|free| needed > WORTH_A_LOOK && needed > *free) else {
        return Ok(());
    };
    Err(format!(
        "solving for {columns} columns takes {} of memory, and {} are free; read fewer places",
        gib(needed),
        gib(free)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_full_until_chunks_are_added() {
        let features = Features::new(1023, vec![0.0; 64 << 20 >> 2]).unwrap();
        let backlog = Backlog::default();
        for _ in 0..4 {
            assert!(!backlog.is_full());
            backlog.grow(&features);
        }
        assert!(backlog.is_full());
        backlog.shrink(&features);
        assert!(!backlog.is_full());
    }
}
