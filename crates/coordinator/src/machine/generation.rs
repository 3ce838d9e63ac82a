//! A generation from start to end: the split among ranks, NCCL's part in it, and who leaves.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_data::AuditedRanks;

use super::Machine;
use super::collective::{self, CollectiveBackend};
use super::events::{Activity, Effect, Generation, GenerationStart, MemberId, Report};
use super::load_balancing::{self, StepTimeEma};
use super::stall::RankProgress;

/// The generation in progress.
pub(super) struct Running {
    pub(super) generation: Generation,
    /// Member and micro-batches of each rank.
    pub(super) ranks: Vec<(MemberId, Range<usize>)>,
    pub(super) backend: CollectiveBackend,
    /// Every rank once: in this order they are audited.
    pub(super) audit_order: Vec<usize>,
    /// What each rank has done.
    pub(super) progress: Vec<RankProgress>,
    /// Reports of the units after the committed one, in order: one slot per rank, empty before a unit's first report.
    pub(super) pending: VecDeque<Vec<Option<Report>>>,
    /// Why the generation is coming to rest, if it is: a join, or another split.
    pub(super) quiescing: Option<&'static str>,
    /// When the generation began, and at which unit.
    since: (Instant, u64),
}

impl Running {
    /// The micro-batches of each rank.
    pub(super) fn parts(&self) -> Vec<Range<usize>> {
        self.ranks.iter().map(|(_, part)| part.clone()).collect()
    }

    /// The member of each rank.
    pub(super) fn members(&self) -> Vec<MemberId> {
        self.ranks.iter().map(|(id, _)| *id).collect()
    }

    /// The ranks, as audits see them.
    pub(super) fn audited_ranks(&self) -> AuditedRanks {
        AuditedRanks { first_unit: self.since.1, parts: self.parts(), order: self.audit_order.clone() }
    }
}

impl Machine {
    /// The rank of `id` in `generation`, if that is the present one and reduces over NCCL.
    fn nccl_rank(&self, id: MemberId, generation: Generation) -> Option<usize> {
        let running = self.running.as_ref()?;
        let present = running.generation == generation && running.backend == CollectiveBackend::Nccl;
        running.ranks.iter().position(|(member, _)| *member == id).filter(|_| present)
    }

    /// Only rank 0 makes ids; an id of another generation is a late message.
    pub(super) fn broadcast_nccl_id(
        &self,
        id: MemberId,
        generation: Generation,
        bytes: Vec<u8>,
        effects: &mut Vec<Effect>,
    ) {
        if self.nccl_rank(id, generation) == Some(0)
            && let Some(running) = &self.running
        {
            let members = running.ranks.iter().map(|(member, _)| *member).collect();
            effects.push(Effect::BroadcastNcclId(members, generation, bytes));
        }
    }

    /// Ends the generation; whether the next one tries NCCL again is decided when it begins.
    pub(super) fn nccl_failed(&mut self, id: MemberId, generation: Generation, why: &str, effects: &mut Vec<Effect>) {
        if self.nccl_rank(id, generation).is_none() {
            return;
        }
        let reason = format!("{}: {why}", self.name(id));
        self.nccl_failures.record(reason.clone());
        self.pause(&reason, effects);
    }

    /// Ends the generation and drops what is pending; the remaining ranks, which it returns, wait for the next one.
    pub(super) fn release_ranks(&mut self) -> Vec<MemberId> {
        self.note_owed();
        let Some(running) = self.running.take() else {
            return Vec::new();
        };
        let mut released = Vec::new();
        for (id, _) in running.ranks {
            if let Some(member) = self.members.get_mut(&id) {
                // A remaining rank has waited long enough: the next generation begins at once.
                member.activity = Activity::Waiting(member.last_seen);
                released.push(id);
            }
        }
        released
    }

    /// Ends the generation and tells its remaining ranks why.
    pub(super) fn pause(&mut self, why: &str, effects: &mut Vec<Effect>) {
        if self.running.is_none() {
            return;
        }
        let members = self.release_ranks();
        self.reason = why.to_owned();
        effects.push(Effect::Pause(members, why.to_owned()));
    }

    /// Evicts members without a heartbeat for longer than `dead_after`.
    pub(super) fn evict_silent(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let limit = self.config.run.dead_after;
        let silent: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, member)| now.saturating_duration_since(member.last_seen) > limit)
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            let why = format!("no heartbeat for {:.1} s", limit.as_secs_f64());
            effects.push(Effect::Evict(id, false, format!("declared dead: {why}")));
            self.left(id, &why, effects);
        }
    }

    /// A rank that sends rows which are not its own, or contradict what it sent before, is dismissed for good: only it
    /// can have sent them.
    pub(super) fn rows_refused(
        &mut self,
        now: Instant,
        id: MemberId,
        generation: Generation,
        why: &str,
        effects: &mut Vec<Effect>,
    ) {
        if self.generation() == Some(generation) && self.part_of(id).is_some() {
            self.dismiss(now, id, why, "use the same build of numalign on every machine", effects);
        }
    }

    /// Time per micro-batch of each of `members`.
    fn step_times<'a>(&self, members: impl Iterator<Item = &'a MemberId>) -> Vec<StepTimeEma> {
        members.map(|id| self.members.get(id).map_or_else(StepTimeEma::default, |member| member.step_time)).collect()
    }

    /// Begins a generation of `members`.
    pub(super) fn begin(&mut self, now: Instant, members: Vec<MemberId>, effects: &mut Vec<Effect>) {
        let Some(state) = self.committed.clone() else {
            return;
        };
        let wanted = self.config.run.collective;
        let choice = match collective::choose(wanted, &self.candidates(&members), &self.nccl_failures) {
            Ok(choice) => choice,
            Err(why) => {
                let reason = format!("collective: nccl cannot be used: {why}");
                return self.fail(reason, "use collective: auto or grpc, or see `numalign doctor`", effects);
            }
        };
        self.collective = Some(choice.clone());
        let micro_batches = self.config.recipe.micro_batches();
        let (members, parts) = match &self.suspects {
            Some(suspects) => suspects.reassigned(members, micro_batches),
            None => {
                let parts = load_balancing::split(micro_batches, &self.step_times(members.iter()));
                (members, parts)
            }
        };
        let first = self.generations == 0;
        self.generations += 1;
        let generation =
            Generation { incarnation: self.incarnation, number: self.generations, rollback: self.rollbacks };
        let ranks: Vec<(MemberId, Range<usize>)> = members.into_iter().zip(parts).collect();
        for (rank, (id, _)) in ranks.iter().enumerate() {
            if let Some(member) = self.members.get_mut(id) {
                member.activity = Activity::Training(rank as u32);
                member.has_trained = true;
            }
        }
        let clean = Arc::new(state.rewound(&self.config.recipe));
        for (id, _) in &ranks {
            if let (Some(member), Some(machine)) = (self.members.get(id), self.machine_of(*id)) {
                self.clean_audits.began(*id, machine, member.is_from_before, clean.clone());
            }
        }
        let members: Vec<MemberId> = ranks.iter().map(|(id, _)| *id).collect();
        let audit_order = self.clean_audits.order(&members);
        let unit = self.unit_after(&state);
        let owed = |id: &MemberId| self.members.get(id).map_or(Duration::ZERO, |member| member.pace.owed);
        let progress = ranks.iter().map(|(id, part)| RankProgress::begin(now, unit, part.len(), owed(id))).collect();
        self.running = Some(Running {
            generation,
            progress,
            ranks: ranks.clone(),
            audit_order: audit_order.clone(),
            backend: choice.backend,
            pending: VecDeque::new(),
            quiescing: None,
            since: (now, unit),
        });
        self.reason = format!("training with {} worker{}", ranks.len(), if ranks.len() == 1 { "" } else { "s" });
        effects.push(Effect::Begin(GenerationStart {
            generation,
            ranks,
            state,
            collective: choice,
            audit_order,
            first,
        }));
    }

    /// A quiescing generation has come to rest: its boundary is committed.
    pub fn at_rest(&mut self, now: Instant, generation: Generation) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.over || self.generation() != Some(generation) {
            return effects;
        }
        // Its ranks are idle at the boundary: what comes next tells them enough.
        self.release_ranks();
        self.advance(now, &mut effects);
        effects
    }

    /// Whether the generation has lasted long enough for another split, and one is worth it.
    pub(super) fn rebalance_is_due(&self, now: Instant, running: &Running) -> bool {
        let (began, first_unit) = running.since;
        now.saturating_duration_since(began) >= self.rebalance.after
            && self.unit() >= first_unit + self.rebalance.after_units
            && load_balancing::should_rebalance(
                &running.parts(),
                &self.step_times(running.ranks.iter().map(|(id, _)| id)),
            )
    }
}
