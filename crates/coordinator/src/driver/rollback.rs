//! What the driver keeps to go back to, and how it goes back: first the run's folder says so, then everything else follows.

use std::collections::BTreeSet;
use std::sync::Arc;

use numalign_checkpoint::{Audited, AuditedMachine, Checkpoint, CheckpointError};
use numalign_data::{Audits, SampleDigest, Schedule};
use numalign_projector::{State, StateDigest};

use super::Driver;
use crate::error::CoordinatorError;
use crate::final_file::RETRY_AFTER;
use crate::machine::{Generation, RollBack};

/// How often a rollback is tried to be recorded on a disk that does not take it.
const MAX_ATTEMPTS: u32 = 60;

impl Driver {
    /// Keeps a state that the run may have to go back to.
    pub(super) fn keep_state(&mut self, state: &Arc<State>) {
        let unit = self.unit_after(state);
        if self.kept.contains_key(&unit) || !Audits::of_run(&self.config).are_on() {
            return;
        }
        if let Some(checkpoint) = self.checkpoint_of(state, self.sample_digest_at(state.step())) {
            self.kept.insert(unit, Arc::new(checkpoint));
        }
    }

    /// Drops kept states that no machine needs any more.
    pub(super) fn drop_unneeded_states(&mut self) {
        let needed: BTreeSet<u64> = self.machine.unaudited().values().map(|state| self.unit_after(state)).collect();
        self.kept.retain(|unit, _| needed.contains(unit));
    }

    /// The digest of the samples behind so many steps; made anew if it is not the present one.
    fn sample_digest_at(&self, step: u64) -> SampleDigest {
        if step == self.digested_steps {
            return self.sample_digest;
        }
        let mut digest = SampleDigest::start();
        digest.extend(&self.streams.train, &self.config.recipe, 0..step);
        digest
    }

    /// Records every machine with unaudited rows, and the states before them, in the run's folder.
    pub(super) fn record_unaudited(&mut self) {
        if !Audits::of_run(&self.config).are_on() {
            return;
        }
        let mut audited = Audited::default();
        for (machine, state) in self.machine.unaudited() {
            self.keep_state(&state);
            let unit = self.unit_after(&state);
            if let Some(kept) = self.kept.get(&unit) {
                audited.states.insert(unit, kept.clone());
                audited.machines.push(AuditedMachine { host: machine.host, device: machine.device, unit });
            }
        }
        self.kept.retain(|unit, _| audited.states.contains_key(unit));
        self.writer.keep(audited);
    }

    /// Goes back: marks the checkpoints that are void now, and forgets what came after the state.
    pub(super) async fn roll_back(&mut self, back: &RollBack) -> Result<(), CoordinatorError> {
        self.dispatcher.end();
        self.reducer.end();
        self.boundary = None;
        self.console.print(&back.why);
        self.writer.discard();
        let unit = self.unit_after(&back.to);
        self.keep_state(&back.to);
        self.kept.retain(|kept, _| *kept <= unit);
        let Some(checkpoint) = self.kept.get(&unit).cloned() else {
            return Err(CoordinatorError::Server("the run goes back before it has a state".to_owned()));
        };
        self.record_rollback(back.number, &checkpoint).await?;
        self.key.rolled_back(back.number);
        self.sample_digest = self.sample_digest_of(&checkpoint);
        self.digested_steps = back.to.step();
        self.console.rolled_back(&back.to);
        self.retract_commits();
        Ok(())
    }

    fn sample_digest_of(&self, checkpoint: &Checkpoint) -> SampleDigest {
        SampleDigest::from_hex(&checkpoint.sample_digest)
            .unwrap_or_else(|_| self.sample_digest_at(checkpoint.state.step()))
    }

    /// Without the record a coordinator that starts anew would go on from what is void, so a full disk is waited for.
    async fn record_rollback(&mut self, number: u64, to: &Checkpoint) -> Result<(), CheckpointError> {
        let units = Schedule::of_run(&self.config);
        let unit = units.index(to.state.position());
        let mut attempt = 1;
        loop {
            let done = self.folder.roll_back(number, to, |found| units.index(found.state.position()) > unit);
            match done {
                Err(error) if attempt < MAX_ATTEMPTS => {
                    self.console.print(&format!("{error}; the run goes back once this is written"));
                    tokio::time::sleep(RETRY_AFTER).await;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    /// The digest of the state after a unit, made here out of the rows that came; `None` where they did not come here.
    pub(super) fn state_made_here(&self, generation: Generation, unit: u64) -> Option<StateDigest> {
        self.reducer.made(generation, unit).map(|state| state.digest())
    }
}
