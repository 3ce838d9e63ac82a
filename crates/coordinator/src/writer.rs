//! Writes checkpoints on a thread of its own, beside the training and never in its way.
//! Started by [`crate::run`], fed by the shell.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use numalign_checkpoint::{Checkpoint, RunFolder};

/// Checkpoints that may wait for a slow disk; they are tens of KB each.
const MOST_QUEUED: usize = 256;

/// The thread and its queue.
pub struct Writer {
    queue: Option<mpsc::SyncSender<(u64, Vec<u8>)>>,
    thread: Option<JoinHandle<()>>,
    failed: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the thread; it keeps the newest `keep` files.
    pub fn start(folder: RunFolder, keep: usize) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<(u64, Vec<u8>)>(MOST_QUEUED);
        let failed = Arc::new(AtomicU64::new(0));
        let count = failed.clone();
        let thread = std::thread::Builder::new().name("checkpoints".to_owned()).spawn(move || {
            while let Ok((step, bytes)) = jobs.recv() {
                if let Err(error) = folder.write(step, &bytes, keep) {
                    let failures = count.fetch_add(1, Ordering::Relaxed) + 1;
                    tracing::error!(
                        "{error}; training goes on, the previous checkpoint stays ({failures} failed so far)"
                    );
                }
            }
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), failed })
    }

    /// Queues a checkpoint.
    pub fn write(&self, checkpoint: &Checkpoint) {
        if let Some(queue) = &self.queue
            && queue.try_send((checkpoint.state.step(), checkpoint.to_bytes())).is_err()
        {
            let step = checkpoint.state.step();
            self.failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("the disk is too slow: the checkpoint of step {step} is left out");
        }
    }

    /// Checkpoints that could not be written so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until everything queued is written; answers with the number of failed writes.
    pub fn finish(&mut self) -> u64 {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            // It panicked: whatever it was writing is not there.
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.failed()
    }
}
