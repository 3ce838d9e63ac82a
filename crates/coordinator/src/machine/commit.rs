//! What becomes certain: the ranks' reports of a unit, their comparison, the audit, and the commit.

use std::sync::Arc;
use std::time::Instant;

use numalign_data::{Audit, Unit};
use numalign_projector::{Features, Fit, State, StateDigest};
use numalign_protocol::codec::digest_of_rows;

use super::Machine;
use super::agreement::{Agreement, agreement};
use super::audit::{Verdict, short_hex, verdict};
use super::collective::CollectiveBackend;
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
            if !self.audits.due(report.unit) && units.unit(report.unit) != Unit::Evaluate {
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
                member.pace.unit_times.observe(units.unit(report.unit), claimed, took);
            }
        }
        running.pending[offset][rank] = Some(report);
        self.commit_complete_units(now, effects);
    }

    fn commit_complete_units(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some(running) = &mut self.running {
            let complete = running
                .pending
                .front()
                .is_some_and(|reports| !reports.is_empty() && reports.iter().all(Option::is_some));
            if !complete {
                return;
            }
            let reports: Vec<Report> = running.pending.pop_front().into_iter().flatten().flatten().collect();
            let audits = self.audits.of(reports[0].unit, &running.audited_ranks());
            let unit = reports[0].unit;
            if let Err(reason) = self.same_rows_received(&reports) {
                self.nccl_failures.record(reason.clone());
                return self.pause(&reason, effects);
            }
            if !self.digests_agree(now, &reports, effects) || !self.audits_pass(now, unit, &audits, &reports, effects) {
                return;
            }
            let state = match self.checked_state(&reports[0]) {
                Ok(state) => state,
                Err(reason) => return self.state_refuted(now, reason, effects),
            };
            let audited = self.note_audits(&audits);
            self.committed = Some(state.clone());
            self.nccl_failures.reset();
            self.dispute = None;
            effects.push(Effect::Committed(Commit {
                unit: self.units().unit(unit),
                state,
                loss: reports[0].loss,
                timing: slowest(&reports),
                world: reports.len(),
                features: reports[0].features.clone(),
                audited,
            }));
            self.clear_complaint();
            self.clear_suspects(unit, effects);
        }
    }

    /// Whether every rank has the same state after a unit. If a majority has, the odd ranks are excluded and the unit is
    /// computed again; else it has to be found out who is right.
    fn digests_agree(&mut self, now: Instant, reports: &[Report], effects: &mut Vec<Effect>) -> bool {
        let Some(running) = &mut self.running else {
            return true;
        };
        let digests: Vec<StateDigest> = reports.iter().map(|report| report.digest).collect();
        let (step, members) = (reports[0].unit, running.members());
        match agreement(&digests) {
            Agreement::Unanimous => true,
            Agreement::Majority { odd, digest } => {
                let (agreed, all) = (digests.len() - odd.len(), digests.len());
                let why = |rank: usize| {
                    let its = digests[rank];
                    format!("after step {step} its state is {its}, where {agreed} of {all} ranks have {digest}")
                };
                let faulty: Vec<(MemberId, String)> = odd.into_iter().map(|rank| (members[rank], why(rank))).collect();
                self.exclude(&faulty, effects);
                false
            }
            Agreement::Split { first, second } => {
                // They are looked at again once it is known who is right.
                running.pending.push_front(reports.iter().cloned().map(Some).collect());
                let reason = format!(
                    "the ranks disagree after step {step}: {} has {}, {} has {}; nothing of this step is committed",
                    self.name(members[first]),
                    digests[first],
                    self.name(members[second]),
                    digests[second]
                );
                self.states_disputed(now, step, reason, effects);
                false
            }
        }
    }

    /// The state does not have the digest that all ranks agreed on. Over NCCL rank 0 sent it: its machine or network is at
    /// fault, so the others go on without it. Over gRPC it was made here: either the ranks are wrong or this machine is, and
    /// another worker has to tell.
    fn state_refuted(&mut self, now: Instant, reason: String, effects: &mut Vec<Effect>) {
        let Some(running) = &self.running else {
            return;
        };
        match (running.backend, running.ranks.len()) {
            (CollectiveBackend::Grpc, _) => self.ask_for_arbiter(now, reason, effects),
            (CollectiveBackend::Nccl, 2..) => {
                let first = running.ranks[0].0;
                self.exclude(&[(first, reason)], effects);
            }
            (CollectiveBackend::Nccl, _) => {
                let hint = "rank 0's machine has a faulty memory or network; resume without it";
                self.fail(reason, hint, effects);
            }
        }
    }

    /// The state with rank 0's report, if it is what all ranks agreed on; else a reason.
    fn checked_state(&self, report: &Report) -> Result<Arc<State>, String> {
        let (step, digest) = (report.unit, report.digest);
        let is_made_here = self.running.as_ref().is_some_and(|running| running.backend == CollectiveBackend::Grpc);
        let Some(state) = report.state.clone() else {
            return Err(match is_made_here {
                true => format!("all ranks reported step {step}, whose rows never came to a sum here"),
                false => format!("rank 0 reported step {step} without its state"),
            });
        };
        if state.digest() != digest || self.unit_after(&state) != step + 1 {
            return Err(match is_made_here {
                true => format!(
                    "after step {step} the state of all ranks is {digest}, where the coordinator has {}; nothing of this \
                     step is committed",
                    state.digest()
                ),
                false => format!("rank 0's state after step {step} does not have the digest it reported"),
            });
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

    /// Compares the audited rows of a unit; if they differ, excludes the odd ranks, or asks for somebody who can tell.
    fn audits_pass(
        &mut self,
        now: Instant,
        step: u64,
        audits: &[Audit],
        reports: &[Report],
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(running) = &self.running else {
            return true;
        };
        let members = running.members();
        let (mut faulty, mut dispute) = (Vec::<(MemberId, String)>::new(), None);
        for audit in audits {
            let micro_batch = audit.micro_batch;
            match verdict(audit, |rank| reports[rank].rows.as_slice()) {
                Verdict::Agreed => {}
                Verdict::Odd { rank, its, others } => {
                    let why = format!(
                        "the audit of step {step} found another gradient row for micro-batch {micro_batch}: {}, where \
                         two others have {}",
                        short_hex(its),
                        short_hex(others)
                    );
                    if faulty.iter().all(|(id, _)| *id != members[rank]) {
                        faulty.push((members[rank], why));
                    }
                }
                Verdict::Split { first, second, digests } => {
                    dispute.get_or_insert_with(|| {
                        format!(
                            "the audit of step {step} found two gradient rows for micro-batch {micro_batch}: {} has {}, \
                             {} has {}; nothing of this step is committed",
                            self.name(members[first]),
                            short_hex(digests[0]),
                            self.name(members[second]),
                            short_hex(digests[1])
                        )
                    });
                }
            }
        }
        match dispute {
            _ if !faulty.is_empty() => self.exclude(&faulty, effects),
            Some(reason) => self.ask_for_arbiter(now, reason, effects),
            None => return true,
        }
        false
    }

    /// A unit with these audits is about to be committed. The state before it, if a rank was audited.
    fn note_audits(&mut self, audits: &[Audit]) -> Option<Arc<State>> {
        let (running, committed) = (self.running.as_ref()?, self.committed.as_ref()?);
        if audits.is_empty() {
            return None;
        }
        // Other rows of the unit were not looked at.
        let before = Arc::new(committed.rewound(&self.config.recipe));
        for audit in audits {
            // An auditor says of itself what it computed; its own rows were received.
            self.clean_audits.passed(running.ranks[audit.owner].0, before.clone());
        }
        Some(before)
    }

    /// Over NCCL: whether every rank received the rows that their owners computed.
    fn same_rows_received(&self, reports: &[Report]) -> Result<(), String> {
        let Some(running) = self.running.as_ref().filter(|running| running.backend == CollectiveBackend::Nccl) else {
            return Ok(());
        };
        let mut computed = Vec::new();
        for (report, (id, part)) in reports.iter().zip(&running.ranks) {
            for micro_batch in part.clone() {
                let Some((_, digest)) = report.rows.iter().find(|(place, _)| *place == micro_batch) else {
                    return Err(format!(
                        "{} did not say what it computed for micro-batch {micro_batch}",
                        self.name(*id)
                    ));
                };
                computed.push(*digest);
            }
        }
        let expected = digest_of_rows(computed.iter());
        for (report, (id, _)) in reports.iter().zip(&running.ranks) {
            if report.received != Some(expected) {
                let (unit, its) = (report.unit, short_hex(report.received));
                return Err(format!(
                    "{} received other rows of unit {unit} over NCCL than the ranks computed: {its}, not {}",
                    self.name(*id),
                    short_hex(Some(expected))
                ));
            }
        }
        Ok(())
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
