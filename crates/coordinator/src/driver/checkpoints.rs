//! What the driver stores: checkpoints of committed states, each with the digest of the samples behind it.

use numalign_checkpoint::{Checkpoint, Identity};
use numalign_data::SampleDigest;
use numalign_projector::State;

use super::Driver;

impl Driver {
    /// Queues a checkpoint of the committed state. In a round it goes through the solver's thread, which adds the sums.
    pub(super) fn queue_checkpoint(&mut self) {
        let Some(checkpoint) = self.checkpoint() else {
            return;
        };
        if let Err(error) = self.key.keep() {
            tracing::warn!("the run's key is not in its folder: {error}");
        }
        self.record_unaudited();
        let discarded = self.writer.discarded();
        match checkpoint.state.position().gathered {
            Some(_) => self.solver.write(checkpoint, discarded),
            None => self.writer.write(&checkpoint, discarded),
        }
    }

    /// The sample digest covers exactly the committed steps; it is recomputed from the stream, never taken from a worker.
    pub(super) fn update_sample_digest(&mut self) {
        let step = self.committed_step();
        if step > self.digested_steps {
            self.sample_digest.extend(&self.streams.train, &self.config.recipe, self.digested_steps..step);
            self.digested_steps = step;
        }
    }

    /// The committed state as a checkpoint; `None` while the frozen model is unknown.
    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        self.checkpoint_of(self.machine.committed()?, self.sample_digest)
    }

    /// A state as a checkpoint, with the digest of the samples behind it.
    pub(super) fn checkpoint_of(&self, state: &State, sample_digest: SampleDigest) -> Option<Checkpoint> {
        if self.fingerprint.is_empty() {
            return None;
        }
        Some(Checkpoint {
            identity: Identity {
                recipe: self.config.recipe.clone(),
                base_fingerprint: self.fingerprint.clone(),
                tokenizer_fingerprint: self.tokenizer_fingerprint.clone(),
                arithmetic: self.arithmetic,
                layer_norms: self.layer_norms.clone(),
                dataset_digest: self.dataset_digest.clone(),
                split: self.split.clone(),
                loaded_digest: self.loaded_digest.clone(),
            },
            state: state.clone(),
            sample_digest: sample_digest.to_hex(),
            sums: None,
        })
    }

    /// Queues a checkpoint of the committed state for the run's folder.
    pub(super) fn write_checkpoint(&mut self) {
        self.update_sample_digest();
        if self.committed_step() > 0 {
            self.queue_checkpoint();
        }
    }
}
