//! Writes checkpoints on a thread of its own, beside the training and never in its way.
//! Started by [`crate::run`], fed by the shell and the solver's thread.

use std::sync::mpsc;
use std::thread::JoinHandle;

use numalign_checkpoint::{Checkpoint, RunFolder};

/// Checkpoints that may wait for a slow disk; they are tens of KB each.
const MOST_QUEUED: usize = 256;

/// The way to the thread.
#[derive(Clone)]
pub struct Queue(mpsc::SyncSender<(u64, Vec<u8>)>);

impl Queue {
    /// Queues a checkpoint.
    pub fn write(&self, checkpoint: &Checkpoint) {
        let step = checkpoint.state.step();
        if self.0.try_send((step, checkpoint.to_bytes())).is_err() {
            tracing::warn!("the disk is too slow: the checkpoint of step {step} is left out");
        }
    }
}

/// The thread and its queue.
pub struct Writer {
    queue: Option<Queue>,
    thread: Option<JoinHandle<u64>>,
}

impl Writer {
    /// Starts the thread; it keeps the newest `keep` files.
    pub fn start(folder: RunFolder, keep: usize) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<(u64, Vec<u8>)>(MOST_QUEUED);
        let thread = std::thread::Builder::new().name("checkpoints".to_owned()).spawn(move || {
            let mut failures = 0;
            while let Ok((step, bytes)) = jobs.recv() {
                if let Err(error) = folder.write(step, &bytes, keep) {
                    failures += 1;
                    tracing::error!(
                        "{error}; training goes on, the previous checkpoint stays ({failures} failed so far)"
                    );
                }
            }
            failures
        })?;
        Ok(Self { queue: Some(Queue(queue)), thread: Some(thread) })
    }

    /// The way to the thread, for as long as it is not finished; none afterwards.
    pub fn queue(&self) -> Option<&Queue> {
        self.queue.as_ref()
    }

    /// Waits until everything queued is written; answers with the number of failed writes. Every clone of the queue
    /// must be gone by then.
    pub fn finish(&mut self) -> u64 {
        self.queue = None;
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or(1))
    }
}
