//! A device without a model, whose rows are made up: for measuring and testing the coordinator with many workers. All
//! else — session, work, reduction, update, digest, reports — is the real worker's code.

use std::sync::Arc;

use numalign_config::Arithmetic;
use numalign_data::Sample;
use numalign_model::Description;
use numalign_projector::{ErrorSums, Layout};
use tokio::sync::{mpsc, oneshot};

use crate::device::{Device, Job, Loaded, Loading, RowKind};

/// How a simulated device behaves.
#[derive(Clone)]
pub struct Simulated {
    /// Hidden size of the model that is not there.
    pub hidden: usize,
    /// Called with the number of the update whenever a rank's rows are asked for.
    pub observer: Arc<dyn Fn(u64) + Send + Sync>,
}

impl std::fmt::Debug for Simulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulated").field("hidden", &self.hidden).finish_non_exhaustive()
    }
}

impl Simulated {
    /// A device of the given hidden size, without an observer.
    pub fn new(hidden: usize) -> Self {
        Self { hidden, observer: Arc::new(|_| {}) }
    }

    /// Starts the device, a task of the current runtime; it is ready at once.
    pub(crate) fn start(&self) -> (Device, Loading) {
        let (jobs, mut inbox) = mpsc::channel::<Job>(2);
        let (loaded, receiver) = oneshot::channel();
        // The receiver is still here.
        let _ = loaded.send(Ok(self.facts()));
        let observer = self.observer.clone();
        tokio::spawn(async move {
            while let Some(job) = inbox.recv().await {
                let job = match job {
                    Job::Rows(job) => job,
                    Job::Check(_, reply) => {
                        // The connection may have ended in the meantime.
                        let _ = reply.send(Ok(()));
                        continue;
                    }
                    Job::Freeze => std::future::pending().await,
                };
                observer(job.state.step());
                let layout = job.state.layout();
                let rows = job.micro_batches.iter().map(|(micro_batch, samples)| match job.kind {
                    RowKind::Gradients => (*micro_batch, row(layout)),
                    RowKind::Errors => (*micro_batch, ErrorSums::default().to_row(layout)),
                    RowKind::Features => (*micro_batch, features(layout.read_width(), samples)),
                });
                // The generation may have ended in the meantime.
                let _ = job.reply.send(Ok(rows.collect()));
            }
        });
        (Device { jobs }, receiver)
    }

    fn facts(&self) -> Loaded {
        Loaded {
            description: Description {
                name: "simulated".to_owned(),
                weights: "simulated",
                device: "simulated".to_owned(),
                arithmetic: Arithmetic::F32,
            },
            nccl: Err("it is simulated".to_owned()),
            fingerprint: blake3::hash(b"simulated").to_hex().to_string(),
            tokenizer_fingerprint: None,
            longest_text: u64::MAX,
            hidden_size: self.hidden,
            parameters: 0,
            trial_digest: blake3::hash(&self.hidden.to_le_bytes()).as_bytes().to_vec(),
            layer_norms: Vec::new(),
        }
    }
}

/// Every micro-batch's row: small slopes of both signs, and a loss of one half.
fn row(layout: Layout) -> Vec<f32> {
    let mut row: Vec<f32> = (0..layout.len()).map(|i| ((i % 7) as f32 - 3.0) * 1e-3).collect();
    row.push(0.5);
    row
}

/// A micro-batch's features: floats that vary with the sample's index, and a target that is one of them.
fn features(hidden: usize, samples: &[Sample]) -> Vec<f32> {
    let mut row = Vec::with_capacity(samples.len() * (hidden + 1));
    for sample in samples {
        let float = |i: usize| (sample.index.wrapping_mul(31).wrapping_add(17 * i as u64) % 23) as f32;
        row.extend((0..hidden).map(float));
        row.push(float(0));
    }
    row
}
