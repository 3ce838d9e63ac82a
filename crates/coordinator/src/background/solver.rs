//! The solver's thread: adds up the features of committed chunks, stores the sums with checkpoints, and solves.
//! The sums are a function of the committed chunks alone. Adding and solving take up to seconds, too long for the driver.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use numalign_checkpoint::Checkpoint;
use numalign_projector::{Features, Fit, Sums};
use tokio::sync::mpsc::UnboundedSender;

use super::checkpoint_writer::CheckpointWriter;
use super::probe::Probe;

/// A round's solution, or why there is none.
pub type Solution = Result<Fit, String>;

/// The unit at which a round ends, and its solution.
pub type SolveResult = (u64, Solution);

enum Job {
    /// Chunk number of the round, and what it gathered.
    Add(u64, Arc<Features>),
    /// To be written with the sums as they are now; the number is [`CheckpointWriter::discarded`] when it was made.
    Write(Box<Checkpoint>, u64),
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
    /// Starts the thread with the sums of a round in progress, if there is one, or for a probe. Checkpoints go to `writer`, solutions to
    /// `solutions`.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn start(
        sums: Option<Sums>,
        probe: Option<Probe>,
        writer: CheckpointWriter,
        solutions: UnboundedSender<SolveResult>,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (alive, running) = mpsc::channel::<()>();
        let body = move || {
            let _alive = alive;
            let mut round = RoundSums { sums, probe, failed: None };
            while let Ok(job) = inbox.recv() {
                match job {
                    Job::Add(chunk, features) => round.add(chunk, &features),
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
            enough_memory(features.hidden())?;
            self.sums = Some(Sums::new(features.hidden()));
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
fn enough_memory(columns: usize) -> Result<(), String> {
    const WORTH_A_LOOK: u64 = 1 << 30;
    let needed = Sums::memory_bytes(columns);
    let Some(free) = free_memory().filter(|free| needed > WORTH_A_LOOK && needed > *free) else {
        return Ok(());
    };
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    Err(format!(
        "solving for {columns} columns takes {:.1} GiB, and {:.1} GiB are free; read fewer places",
        gib(needed),
        gib(free)
    ))
}

/// Bytes that the system can still give; none where it does not say.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
