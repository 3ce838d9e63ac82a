//! The pure decision: what to do next, and why.

use std::time::Instant;

use numalign_data::Unit;

use super::Machine;
use super::events::{Activity, MemberId};

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing for now.
    Wait,
    /// A generation of these members.
    Begin(Vec<MemberId>),
    /// Come to rest at a commit boundary; the text says why.
    Quiesce(&'static str),
    /// Solve for the output projector: a round is gathered.
    Solve,
    /// Every unit is committed.
    Finish,
}

impl Machine {
    /// The pure decision: what to do, and why.
    pub fn decide(&self, now: Instant) -> (Decision, String) {
        let run = &self.config.run;
        let total = self.config.recipe.total_steps();
        let next = self.committed.as_ref().map(|state| self.units().next(state.position()));
        if next == Some(Unit::Solve) {
            let decision = if self.solving == Some(self.unit()) { Decision::Wait } else { Decision::Solve };
            return (decision, "solving for the output projector".to_owned());
        }
        if next == Some(Unit::End) {
            if self.base.is_none() {
                // Returning workers brought the last state, but the result has to say which model it belongs to.
                let reason =
                    format!("all {total} steps are committed; waiting for a worker to load the model and name it");
                return (Decision::Wait, reason);
            }
            return (Decision::Finish, format!("all {total} steps are committed"));
        }
        let mut ready: Vec<(MemberId, Instant)> = Vec::new();
        let mut loading = 0;
        for (id, member) in &self.members {
            match member.activity {
                Activity::Loading => loading += 1,
                Activity::Waiting(since) => ready.push((*id, since)),
                Activity::Training(_) => {}
            }
        }
        let most = self.most_ranks();
        let settled = ready.iter().all(|(_, since)| now.saturating_duration_since(*since) >= run.join_debounce);

        if let Some(running) = &self.running {
            let room = most.saturating_sub(running.ranks.len());
            let training = format!("training with {} of {} workers", running.ranks.len(), self.members.len());
            if let Some(why) = running.quiescing {
                return (Decision::Wait, format!("{training}; a commit boundary is near, then {why}"));
            }
            if room == 0 || ready.is_empty() {
                if self.rebalance_is_due(now, running) {
                    return (Decision::Quiesce("the faster get more"), format!("{training}; some are faster"));
                }
                return (Decision::Wait, training);
            }
            if !settled {
                return (Decision::Wait, format!("{training}; {} about to join", ready.len()));
            }
            let joining = format!("{training}; {} join at the next boundary", ready.len().min(room));
            return (Decision::Quiesce("workers join"), joining);
        }

        let mut members: Vec<MemberId> = ready.iter().map(|(id, _)| *id).collect();
        members.truncate(most);
        if let Some(dispute) = self.dispute.as_ref().filter(|dispute| ready.len() < dispute.needed) {
            let reason = format!(
                "{} of {} workers are ready, with which it can be told who computes wrong numbers; waiting for another to join",
                ready.len(),
                dispute.needed
            );
            return (Decision::Wait, reason);
        }
        if self.generations > 0 {
            if ready.len() >= run.min_workers.min(most) {
                return (Decision::Begin(members), format!("{} workers go on", ready.len()));
            }
            let reason = format!(
                "{} of at least {} workers are ready, {loading} loading the model; waiting for more to join",
                ready.len(),
                run.min_workers
            );
            return (Decision::Wait, reason);
        }
        let wanted = run.workers.min(run.max_workers);
        if ready.len() >= wanted {
            return (Decision::Begin(members), format!("{} workers are ready", ready.len()));
        }
        let Some(first_ready) = self.first_ready else {
            let reason = if loading == 0 {
                format!("waiting for {wanted} workers to connect")
            } else {
                format!("{loading} of {wanted} workers are loading the model")
            };
            return (Decision::Wait, reason);
        };
        let waited = now.saturating_duration_since(first_ready);
        // Workers that outlived the last coordinator come back within a second; those missing now may never come.
        let timeout = if self.resuming { run.dead_after.min(run.coordinator_wait) } else { run.coordinator_wait };
        if loading == 0 && ready.len() >= run.min_workers && waited >= timeout {
            let reason = format!("{} of {wanted} workers came in {:.0} s", ready.len(), waited.as_secs_f64());
            return (Decision::Begin(members), reason);
        }
        (Decision::Wait, format!("{} of {wanted} workers are ready, {loading} loading the model", ready.len()))
    }
}
