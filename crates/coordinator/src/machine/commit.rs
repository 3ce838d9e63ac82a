//! What becomes certain: the ranks' reports of a unit, their comparison, the audit, and the commit.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use numalign_data::Unit;
use numalign_data::{Audit, audit_of};
use numalign_projector::{Features, Fit, State, StateDigest};

use super::Machine;
use super::agreement::{Agreement, agreement};
use super::audit::{Verdict, short_hex, verdict};
use super::events::{Commit, Effect, MemberId, Report, Timing};

/// Units that a report may be ahead of the committed one. No rank gets further than the unit after the others'.
const MAX_AHEAD: u64 = 8;

impl Machine {
    pub(super) fn reported(&mut self, now: Instant, id: MemberId, mut report: Report, effects: &mut Vec<Effect>) {
        self.mark_alive(now, id);
        let (committed, units) = (self.unit(), self.units());
        let Some(running) = &mut self.running else {
            return;
        };
        // A late message of a generation that is over, or of a unit already committed.
        if report.generation != running.generation || report.unit < committed {
            return;
        }
        let Some(rank) = running.ranks.iter().position(|(member, _)| *member == id) else {
            return;
        };
        if let Some(member) = self.members.get_mut(&id) {
            member.last_timing = report.timing;
            // An audited step holds a micro-batch more than the rank's own, and an evaluation other samples.
            if report.rows.is_empty() && units.unit(report.unit) != Unit::Evaluate {
                member.step_time.observe(report.timing.compute, running.ranks[rank].1.len());
            }
        }
        let ahead = report.unit - committed;
        if ahead >= MAX_AHEAD {
            // Left out, it would be waited for. Its sender may come back, at the committed unit.
            let why = format!("its report of unit {} is {ahead} units ahead of the committed ones", report.unit);
            effects.push(Effect::Evict(id, false, why.clone()));
            return self.left(id, &why, effects);
        }
        // Only rank 0's are used.
        if rank > 0 {
            (report.state, report.features) = (None, None);
        }
        let offset = ahead as usize;
        while running.pending.len() <= offset {
            running.pending.push_back(Vec::new());
        }
        if running.pending[offset].is_empty() {
            running.pending[offset] = vec![None; running.ranks.len()];
        }
        if running.pending[offset][rank].is_none() {
            let took = running.progress[rank].reported(now, report.unit, running.ranks[rank].1.len());
            if let Some(member) = self.members.get_mut(&id) {
                let claimed = report.timing.compute + report.timing.data_wait;
                member.unit_times.observe(units.unit(report.unit), claimed, took);
            }
        }
        running.pending[offset][rank] = Some(report);
        self.commit_complete_units(effects);
    }

    fn commit_complete_units(&mut self, effects: &mut Vec<Effect>) {
        while let Some(running) = &mut self.running {
            let complete = running
                .pending
                .front()
                .is_some_and(|reports| !reports.is_empty() && reports.iter().all(Option::is_some));
            if !complete {
                return;
            }
            let reports: Vec<Report> = running.pending.pop_front().into_iter().flatten().flatten().collect();
            let parts = running.parts();
            let unit = reports[0].unit;
            if !self.digests_agree(&reports, effects) {
                return;
            }
            if let Some(audit) = self.audit(unit, &parts)
                && !self.audit_passes(unit, &audit, &reports, effects)
            {
                return;
            }
            let state = match self.checked_state(&reports[0]) {
                Ok(state) => Arc::new(state),
                Err(reason) => return self.contradicts_itself(&reason, effects),
            };
            self.committed = Some(state.clone());
            self.nccl_failures.reset();
            effects.push(Effect::Committed(Commit {
                unit: self.units().unit(unit),
                state,
                loss: reports[0].loss,
                timing: slowest(&reports),
                world: reports.len(),
                features: reports[0].features.clone(),
            }));
            self.clear_complaint();
            self.clear_suspects(unit, effects);
        }
    }

    /// Whether every rank has the same state after a unit. If a majority has, the odd ranks are excluded and the unit is
    /// computed again; else the run fails.
    fn digests_agree(&mut self, reports: &[Report], effects: &mut Vec<Effect>) -> bool {
        let Some(running) = &self.running else {
            return true;
        };
        let digests: Vec<StateDigest> = reports.iter().map(|report| report.digest).collect();
        let (step, member) = (reports[0].unit, |rank: usize| running.ranks[rank].0);
        match agreement(&digests) {
            Agreement::Unanimous => true,
            Agreement::Majority { odd, digest } => {
                let (agreed, all) = (digests.len() - odd.len(), digests.len());
                let odd: Vec<(MemberId, StateDigest)> =
                    odd.into_iter().map(|rank| (member(rank), digests[rank])).collect();
                for (id, its) in odd {
                    let why =
                        format!("after step {step} its state is {its}, where {agreed} of {all} ranks have {digest}");
                    self.exclude(id, &why, effects);
                }
                false
            }
            Agreement::Split { first, second } => {
                let reason = format!(
                    "the ranks disagree after step {step}: {} has {}, {} has {}; nothing of this step is committed",
                    self.name(member(first)),
                    digests[first],
                    self.name(member(second)),
                    digests[second]
                );
                self.fail(
                    reason,
                    "one of the two machines computes wrong numbers; resume without it, or with three or more workers, \
                     which can tell by themselves",
                    effects,
                );
                false
            }
        }
    }

    /// What rank 0 sent does not have the digest that all ranks agreed on: its machine or network is at fault, so the
    /// others go on without it.
    fn contradicts_itself(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        match self.running.as_ref().map(|running| (running.ranks[0].0, running.ranks.len())) {
            Some((id, 2..)) => self.exclude(id, reason, effects),
            _ => {
                let hint = "rank 0's machine has a faulty memory or network; resume without it";
                self.fail(reason.to_owned(), hint, effects);
            }
        }
    }

    /// The state in rank 0's report, if it is what all ranks agreed on; else a reason.
    fn checked_state(&self, report: &Report) -> Result<State, String> {
        let step = report.unit;
        let Some(state) = report.state.clone() else {
            return Err(format!("rank 0 reported step {step} without its state"));
        };
        if state.digest() != report.digest || self.unit_after(&state) != step + 1 {
            return Err(format!("rank 0's state after step {step} does not have the digest it reported"));
        }
        self.check_features(step, report.features.as_deref(), &state)?;
        Ok(state)
    }

    /// A chunk comes with the features that its state's digest stands for; a training step comes without any.
    fn check_features(&self, unit: u64, features: Option<&Features>, after: &State) -> Result<(), String> {
        let is_chunk = matches!(self.units().unit(unit), Unit::Chunk { .. });
        let Some(before) = self.committed.as_ref().filter(|_| is_chunk) else {
            return Ok(());
        };
        let Some(features) = features else {
            return Err(format!("rank 0 reported unit {unit}, a chunk of the solver's round, without its features"));
        };
        match before.gathered(&self.config.recipe, features.digest()) {
            Ok(expected) if expected == *after => Ok(()),
            Ok(_) => Err(format!("rank 0's features of unit {unit} do not have the digest that the ranks reported")),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn solved(&mut self, unit: u64, solution: Result<Fit, String>, effects: &mut Vec<Effect>) {
        // A returning worker may have brought a later state meanwhile.
        let awaited = self.solving == Some(unit) && self.unit() == unit;
        let Some(state) = self.committed.clone().filter(|_| awaited) else {
            return;
        };
        self.solving = None;
        match solution {
            Ok(fit) => {
                let state = Arc::new(state.solved(&fit));
                self.committed = Some(state.clone());
                effects.push(Effect::Solved(state));
            }
            Err(reason) => self.fail(
                format!("the output projector cannot be solved for: {reason}"),
                "look for a dataset whose targets or inputs never vary, or use solver: adam",
                effects,
            ),
        }
    }

    /// The audit of a unit, if it is due; machines that may compute other bits have no rows to compare.
    fn audit(&self, step: u64, parts: &[Range<usize>]) -> Option<Audit> {
        if !self.config.run.deterministic {
            return None;
        }
        audit_of(step, self.config.run.audit_every, parts)
    }

    /// Compares the audited rows of a unit; if they differ, excludes the odd rank or stops the run.
    fn audit_passes(&mut self, step: u64, audit: &Audit, reports: &[Report], effects: &mut Vec<Effect>) -> bool {
        let Some(running) = &self.running else {
            return true;
        };
        let member = |rank: usize| running.ranks[rank].0;
        let found = verdict(audit, |rank| reports[rank].rows.as_slice());
        let micro_batch = audit.micro_batch;
        match found {
            Verdict::Agreed => true,
            Verdict::Odd { rank, its, others } => {
                let id = member(rank);
                let why = format!(
                    "the audit of step {step} found another gradient row for micro-batch {micro_batch}: {}, where two \
                     others have {}",
                    short_hex(its),
                    short_hex(others)
                );
                self.exclude(id, &why, effects);
                false
            }
            Verdict::Split { first, second, digests } => {
                let reason = format!(
                    "the audit of step {step} found two gradient rows for micro-batch {micro_batch}: {} has {}, {} has \
                     {}; nothing of this step is committed",
                    self.name(member(first)),
                    short_hex(digests[0]),
                    self.name(member(second)),
                    short_hex(digests[1])
                );
                self.fail(
                    reason,
                    "one of the two machines computes wrong numbers: resume with --resume auto on other machines, one at a \
                     time; three or more workers can tell by themselves",
                    effects,
                );
                false
            }
        }
    }

    /// Evicts a worker that computes wrong numbers; its device is not admitted again in this run.
    pub(super) fn exclude(&mut self, id: MemberId, why: &str, effects: &mut Vec<Effect>) {
        if let Some(member) = self.members.get(&id) {
            let process = member.join_request.process.clone();
            let device = member.worker_ready.as_ref().map_or_else(String::new, |ready| ready.device.clone());
            self.excluded.push((process.host.clone(), device));
            self.refuse(id, process, format!("excluded: {why}"), effects);
        }
        self.left(id, &format!("excluded: {why}"), effects);
    }
}

/// The largest of each figure.
fn slowest(reports: &[Report]) -> Timing {
    let mut timing = Timing::default();
    for report in reports {
        timing.compute = timing.compute.max(report.timing.compute);
        timing.data_wait = timing.data_wait.max(report.timing.data_wait);
        timing.reduce = timing.reduce.max(report.timing.reduce);
        timing.peak_rss_mib = timing.peak_rss_mib.max(report.timing.peak_rss_mib);
    }
    timing
}
