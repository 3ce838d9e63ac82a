//! The checkpoint thread: writes files beside the training, and never delays it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use numalign_checkpoint::{Audited, Checkpoint, CheckpointError, RunFolder};

/// Checkpoints that may wait for a slow disk; they are tens of KB each.
const MAX_QUEUED: usize = 256;

/// What the thread and its owner share.
#[derive(Default)]
struct Queue {
    /// Step and bytes, oldest first.
    jobs: VecDeque<(u64, Vec<u8>)>,
    /// The thread is writing one.
    busy: bool,
    closed: bool,
    failed: u64,
    /// How often everything was discarded: what was made before then is void.
    discarded: u64,
    /// To be written before the next checkpoint …
    audited: Option<Audited>,
    /// … and at once.
    is_audited_due: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change of the queue is whole, so a panic elsewhere leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle of the thread; clones share it.
#[derive(Clone)]
pub struct CheckpointWriter {
    shared: Arc<Shared>,
}

impl CheckpointWriter {
    /// Starts the thread; it keeps the newest `keep` files.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn start(folder: RunFolder, keep: usize) -> std::io::Result<Self> {
        let mut written = BTreeMap::new();
        Self::with(move |audited, checkpoint| {
            // Before older checkpoints go.
            if let Some(audited) = audited {
                folder.keep_audited(audited, &mut written)?;
            }
            checkpoint.map_or(Ok(()), |(step, bytes)| folder.write(step, bytes, keep).map(|_| ()))
        })
    }

    fn with(
        mut write: impl FnMut(Option<&Audited>, Option<(u64, &[u8])>) -> Result<(), CheckpointError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::Builder::new().name("checkpoints".to_owned()).spawn(move || {
            loop {
                let mut queue = theirs.lock();
                while queue.jobs.is_empty() && !queue.is_audited_due {
                    if queue.closed {
                        return;
                    }
                    queue = theirs.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                queue.busy = true;
                queue.is_audited_due = false;
                let (audited, job, discarded) = (queue.audited.take(), queue.jobs.pop_front(), queue.discarded);
                drop(queue);
                let checkpoint = job.as_ref().map(|(step, bytes)| (*step, bytes.as_slice()));
                let result = write(audited.as_ref(), checkpoint);
                let mut queue = theirs.lock();
                queue.busy = false;
                if let Err(error) = result {
                    if queue.audited.is_none() && queue.discarded == discarded {
                        queue.audited = audited;
                    }
                    queue.failed += 1;
                    tracing::error!(
                        "{error}; training goes on, the previous checkpoint stays ({} failed so far)",
                        queue.failed
                    );
                }
                theirs.changed.notify_all();
            }
        })?;
        Ok(Self { shared })
    }

    /// How often everything was discarded so far; goes with a checkpoint to [`CheckpointWriter::write`].
    pub fn discarded(&self) -> u64 {
        self.shared.lock().discarded
    }

    /// Queues a checkpoint, unless everything was discarded since it was made.
    pub fn write(&self, checkpoint: &Checkpoint, discarded: u64) {
        self.push(checkpoint.state.step(), checkpoint.to_bytes(), discarded);
    }

    /// What the run may have to go back to, to be written at once, and before the next checkpoint in any case.
    pub fn keep(&self, audited: Audited) {
        let mut queue = self.shared.lock();
        (queue.audited, queue.is_audited_due) = (Some(audited), true);
        self.shared.changed.notify_all();
    }

    /// Drops everything that is queued, and waits for what is being written.
    pub fn discard(&self) {
        let mut queue = self.shared.lock();
        queue.jobs.clear();
        (queue.audited, queue.is_audited_due) = (None, false);
        queue.discarded += 1;
        while queue.busy {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn push(&self, step: u64, bytes: Vec<u8>, discarded: u64) {
        let mut queue = self.shared.lock();
        if queue.discarded != discarded {
            return;
        }
        if queue.jobs.len() >= MAX_QUEUED {
            queue.failed += 1;
            tracing::warn!("the disk is too slow: the checkpoint of step {step} is left out");
            return;
        }
        queue.jobs.push_back((step, bytes));
        self.shared.changed.notify_all();
    }

    /// Checkpoints that could not be written so far.
    pub fn failed(&self) -> u64 {
        self.shared.lock().failed
    }

    /// Drops all queued checkpoints but the newest: there is no time for a slow disk.
    pub fn hurry(&self) {
        let mut queue = self.shared.lock();
        let older = queue.jobs.len().saturating_sub(1);
        queue.jobs.drain(..older);
    }

    /// Waits until everything queued is written, at most for `timeout`. False if that was not enough.
    pub fn finish(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut queue = self.shared.lock();
        queue.closed = true;
        self.shared.changed.notify_all();
        while queue.busy || !queue.jobs.is_empty() || queue.is_audited_due {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (queue, _) = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_disk_that_is_behind_gets_the_newest_and_is_not_waited_for_too_long() {
        let (entered, at_work) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let written = Arc::new(Mutex::new(Vec::new()));
        let list = written.clone();
        let mut writer = CheckpointWriter::with(move |_, checkpoint| {
            let step = checkpoint.unwrap().0;
            entered.send(step).unwrap();
            gate.recv().unwrap();
            list.lock().unwrap().push(step);
            Ok(())
        })
        .unwrap();
        for step in [10, 20, 30, 40] {
            writer.push(step, Vec::new(), 0);
        }
        assert_eq!(at_work.recv(), Ok(10));
        writer.hurry();
        assert!(!writer.finish(Duration::from_millis(20)), "it hangs in the first write");
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert!(writer.finish(Duration::from_secs(60)));
        assert_eq!(*written.lock().unwrap(), [10, 40]);
    }

    #[test]
    fn what_was_made_before_everything_was_discarded_is_never_written() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let list = written.clone();
        let mut writer = CheckpointWriter::with(move |_, checkpoint| {
            std::thread::sleep(Duration::from_millis(20));
            list.lock().unwrap().push(checkpoint.unwrap().0);
            Ok(())
        })
        .unwrap();
        for step in 0..100 {
            writer.push(step, Vec::new(), 0);
        }
        writer.discard();
        let before = written.lock().unwrap().len();
        writer.push(200, Vec::new(), 0);
        writer.push(201, Vec::new(), writer.discarded());
        assert!(writer.finish(Duration::from_secs(60)));
        assert_eq!(written.lock().unwrap()[before..], [201]);
    }

    #[test]
    fn failures_are_counted_and_the_next_one_is_tried() {
        let mut writer = CheckpointWriter::with(|_, checkpoint| {
            let step = checkpoint.unwrap().0;
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            if step == 1 { Err(CheckpointError::Write { path: "x".into(), source }) } else { Ok(()) }
        })
        .unwrap();
        writer.push(1, Vec::new(), 0);
        while writer.failed() == 0 {
            std::thread::yield_now();
        }
        writer.push(2, Vec::new(), 0);
        assert!(writer.finish(Duration::from_secs(60)));
        assert_eq!(writer.failed(), 1);
    }
}
