//! Ranks that contradict each other where none has a majority: over gRPC the coordinator can make the state itself; else
//! the run waits for another worker, whose word decides.

use std::time::Instant;

use numalign_projector::StateDigest;

use super::Machine;
use super::collective::CollectiveBackend;
use super::events::{Effect, Generation, MemberId};

/// Ranks contradicted each other, and another worker is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dispute {
    since: Instant,
    /// Ranks with which there can be a majority.
    pub(super) needed: usize,
    reason: String,
}

/// What to do where nobody can say who is right.
const HINT: &str = "one of the two machines computes wrong numbers: resume with --resume auto on other machines, one at a \
                    time, or with one worker more, which can tell by itself";

impl Machine {
    /// The ranks' states differ and none has a majority. Nothing is committed until it is known who is right.
    pub(super) fn states_disputed(&mut self, now: Instant, unit: u64, reason: String, effects: &mut Vec<Effect>) {
        match &self.running {
            Some(running) if running.backend == CollectiveBackend::Grpc => {
                effects.push(Effect::MakeState(running.generation, unit, reason));
            }
            _ => self.ask_for_arbiter(now, reason, effects),
        }
    }

    /// The coordinator made the state after a disputed unit out of the rows that it received, or could not.
    pub(super) fn state_made(
        &mut self,
        now: Instant,
        (generation, unit): (Generation, u64),
        digest: Option<StateDigest>,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        let Some(running) = self.running.as_ref().filter(|running| running.generation == generation) else {
            return;
        };
        let reports = running.pending.front().into_iter().flatten().flatten();
        let faulty: Vec<(MemberId, String)> = reports
            .zip(&running.ranks)
            .filter(|(report, _)| report.unit == unit && digest.is_some_and(|digest| digest != report.digest))
            .map(|(report, (id, _))| {
                let ours = digest.map(|digest| digest.to_string()).unwrap_or_default();
                (*id, format!("after step {unit} its state is {}, where the coordinator has {ours}", report.digest))
            })
            .collect();
        // Where all are wrong, so may be the coordinator.
        match !faulty.is_empty() && faulty.len() < running.ranks.len() {
            true => self.exclude(&faulty, effects),
            false => self.ask_for_arbiter(now, reason, effects),
        }
    }

    /// Pauses until one worker more is there, for `arbiter_wait` at most; fails at once where there is no place for one.
    pub(super) fn ask_for_arbiter(&mut self, now: Instant, reason: String, effects: &mut Vec<Effect>) {
        let world = self.running.as_ref().map_or(0, |running| running.ranks.len());
        if world >= self.most_ranks() {
            return self.fail(reason, HINT, effects);
        }
        let wait = self.config.run.arbiter_wait.as_secs_f64();
        let asked = format!(
            "{reason}; waiting up to {wait:.0} s (arbiter_wait) for one worker more, which can tell who is right"
        );
        let since = self.dispute.take().map_or(now, |dispute| dispute.since);
        self.dispute = Some(Dispute { since, needed: world + 1, reason });
        self.pause(&asked, effects);
    }

    /// Nobody came who could tell.
    pub(super) fn check_dispute(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let (wait, is_waiting) = (self.config.run.arbiter_wait, self.running.is_none());
        if let Some(dispute) = self.dispute.take_if(|dispute| is_waiting && now.duration_since(dispute.since) > wait) {
            self.fail(dispute.reason, HINT, effects);
        }
    }

    /// Ranks that a generation can have at most.
    pub(super) fn most_ranks(&self) -> usize {
        self.config.run.max_workers.min(self.config.recipe.micro_batches())
    }
}
