//! Which ranks hold the run up: those that owe a unit's rows, or their report of it, for longer than they may. A heartbeat
//! comes from another thread than the one that computes, so it says nothing about that. [`stalled`] is pure.
//!
//! What a rank owes adds up over generations until it brings rows, and over a process's connections: where other machines
//! fail more often than `stall_after`, a device that hangs would be given that time again and again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use numalign_data::Unit;

use super::Machine;
use super::collective::CollectiveBackend;
use super::events::{Effect, Generation, MemberId};

/// No rank is given less than this where `stall_after` is `auto`.
const LEAST: Duration = Duration::from_secs(60);

/// How many times its slowest recent unit a rank is given where `stall_after` is `auto`.
const SLOWEST_UNITS: u32 = 20;

/// The first unit of its kind in a process takes longer: kernels compile.
const FIRST_UNIT: u32 = 10;

/// Rows that come one by one count as progress for this many times the bound.
const PIECEMEAL: u32 = 10;

/// Each eviction without a commit in between doubles the bound, up to 2 to this power: one that is too short for the
/// machines of a run does not keep it from going on for ever.
const MAX_DOUBLINGS: u32 = 10;

/// Units whose times are remembered.
const RECENT: usize = 16;

/// After a longer pause between two ticks this process was stopped too: that time counts for nobody.
const PAUSE: Duration = Duration::from_secs(1);

/// A member's own time for each of its latest units, and the kinds of units that its process has done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UnitTimes {
    recent: VecDeque<Duration>,
    steps: bool,
    chunks: bool,
    evaluations: bool,
}

impl UnitTimes {
    /// Takes in one unit. `claimed` is what the member says; it took no longer than `observed`.
    pub fn observe(&mut self, unit: Unit, claimed: Duration, observed: Duration) {
        match unit {
            Unit::Chunk { .. } => self.chunks = true,
            Unit::Evaluate => self.evaluations = true,
            _ => self.steps = true,
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(claimed.min(observed));
    }

    fn has_done(&self, unit: Unit) -> bool {
        match unit {
            Unit::Chunk { .. } => self.chunks,
            Unit::Evaluate => self.evaluations,
            _ => self.steps,
        }
    }

    fn slowest(&self) -> Duration {
        self.recent.iter().copied().max().unwrap_or_default()
    }

    /// How long the member may owe something of `unit`. `stall_after` is the setting, `None` for `auto`; `scale` is how many
    /// steps the unit amounts to.
    pub fn bound(&self, stall_after: Option<Duration>, unit: Unit, scale: u32) -> Duration {
        let usual = stall_after.unwrap_or_else(|| LEAST.max(self.slowest().saturating_mul(SLOWEST_UNITS)));
        let first = if self.has_done(unit) { 1 } else { FIRST_UNIT };
        usual.saturating_mul(scale.max(1)).saturating_mul(first)
    }
}

/// What is known of how fast a process works. It outlives a broken connection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pace {
    /// Its time for each of its latest units.
    pub unit_times: UnitTimes,
    /// How long it owed rows in generations that ended before it brought any.
    pub owed: Duration,
}

/// What a rank owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Rows of the awaited unit.
    Rows,
    /// The report of it; every rank's rows are there.
    Report,
}

/// One rank, as far as the awaited unit is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// All its rows are there.
    pub has_rows: bool,
    /// Its report is there.
    pub has_reported: bool,
    /// When its rows were complete, or its latest report came.
    pub moved: Instant,
    /// When it last brought a row.
    pub brought: Instant,
    /// How long it may owe something.
    pub bound: Duration,
}

/// Who holds the run up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stall {
    /// Nobody, so far.
    None,
    /// These ranks, what they owe, and for how long.
    Ranks(Vec<(usize, Owed, Duration)>),
    /// Over NCCL no rank got the sum, for this long: nobody can say which one is to blame.
    Collective(Duration),
}

/// The pure decision. `together`: the ranks exchange rows among themselves, as over NCCL.
pub fn stalled(now: Instant, ranks: &[Standing], together: bool) -> Stall {
    let complete = ranks.iter().all(|rank| rank.has_rows || rank.has_reported);
    let all_rows = ranks.iter().map(|rank| rank.moved).max().filter(|_| complete);
    let mut found = Vec::new();
    for (place, rank) in ranks.iter().enumerate().filter(|(_, rank)| !rank.has_reported) {
        if !rank.has_rows {
            let waited = now.saturating_duration_since(rank.moved.max(rank.brought));
            let in_all = now.saturating_duration_since(rank.moved);
            if waited > rank.bound || in_all > rank.bound.saturating_mul(PIECEMEAL) {
                found.push((place, Owed::Rows, waited));
            }
        } else if let Some(since) = all_rows {
            let waited = now.saturating_duration_since(since);
            if waited > rank.bound {
                found.push((place, Owed::Report, waited));
            }
        }
    }
    match found.first() {
        None => Stall::None,
        Some((_, Owed::Report, waited)) if together && ranks.iter().all(|rank| !rank.has_reported) => {
            Stall::Collective(*waited)
        }
        Some(_) => Stall::Ranks(found),
    }
}

/// What is known of one rank's progress in its generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankProgress {
    /// Its rows of the units below this are there.
    rows_until: u64,
    /// Micro-batches of the awaited unit without a row.
    missing: usize,
    moved: Instant,
    brought: Instant,
    reported: Instant,
}

impl RankProgress {
    /// A generation begins at `unit`, with a part of `micro_batches`, of a rank that already owed rows for `owed` when its
    /// last one ended.
    pub(super) fn begin(now: Instant, unit: u64, micro_batches: usize, owed: Duration) -> Self {
        let since = now.checked_sub(owed).unwrap_or(now);
        Self { rows_until: unit, missing: micro_batches, moved: since, brought: since, reported: now }
    }

    /// For how long the rank has owed its rows of `unit`; not at all if they are there.
    pub(super) fn owed(&self, now: Instant, unit: u64) -> Duration {
        match self.rows_until > unit {
            true => Duration::ZERO,
            false => now.saturating_duration_since(self.moved.max(self.brought)),
        }
    }

    /// A report of `unit` came that was not there; answers with the time since the one before.
    pub(super) fn reported(&mut self, now: Instant, unit: u64, micro_batches: usize) -> Duration {
        let took = now.saturating_duration_since(self.reported);
        (self.rows_until, self.missing) = (self.rows_until.max(unit + 1), micro_batches);
        (self.moved, self.reported) = (now, now);
        took
    }

    /// `missing` of the rank's rows of `unit` are not there yet.
    fn rows(&mut self, now: Instant, unit: u64, missing: usize) {
        if self.rows_until > unit {
            return;
        }
        if missing == 0 {
            (self.rows_until, self.moved) = (unit + 1, now);
        } else if missing < self.missing {
            self.brought = now;
        }
        self.missing = missing;
    }

    fn shift(&mut self, now: Instant, by: Duration) {
        self.moved = (self.moved + by).min(now);
        self.brought = (self.brought + by).min(now);
        self.reported = (self.reported + by).min(now);
    }
}

/// The machine's memory of ticks and of evictions without a commit.
#[derive(Debug, Default)]
pub(super) struct StallWatch {
    last_tick: Option<Instant>,
    /// Evictions at the unit `at`.
    evictions: u32,
    at: u64,
}

impl Machine {
    /// The unit whose rows are awaited, if a generation reduces over gRPC.
    pub fn awaited_unit(&self) -> Option<u64> {
        self.running.as_ref().filter(|running| running.backend == CollectiveBackend::Grpc).map(|_| self.unit())
    }

    /// Micro-batches of the awaited unit whose rows the coordinator lacks, in ascending order.
    pub fn rows_missing(&mut self, now: Instant, generation: Generation, unit: u64, missing: &[usize]) {
        if self.awaited_unit() != Some(unit) || self.generation() != Some(generation) {
            return;
        }
        if let Some(running) = &mut self.running {
            let below = |end: usize| missing.partition_point(|index| *index < end);
            for ((_, part), progress) in running.ranks.iter().zip(&mut running.progress) {
                progress.rows(now, unit, below(part.end) - below(part.start));
            }
        }
    }

    /// Over NCCL the coordinator sees no rows: a member says in its heartbeat that it has computed those of the units below
    /// `until`.
    pub fn rows_computed(&mut self, now: Instant, id: MemberId, generation: u64, until: u64) {
        let unit = self.unit();
        let present = self.running.as_mut().filter(|running| {
            running.backend == CollectiveBackend::Nccl && running.generation.number == generation && until > unit
        });
        if let Some(running) = present
            && let Some(rank) = running.ranks.iter().position(|(member, _)| *member == id)
        {
            running.progress[rank].rows(now, unit, 0);
        }
    }

    /// How many steps of work `unit` amounts to.
    fn steps_in(&self, unit: Unit) -> u32 {
        match unit {
            Unit::Evaluate => {
                let steps = self.config.run.eval_samples.div_ceil(self.config.recipe.batch_size.max(1) as u64);
                u32::try_from(steps).unwrap_or(u32::MAX)
            }
            _ => 1,
        }
    }

    /// Each rank's standing, and the unit that is awaited.
    fn standings(&self) -> Option<(u64, Vec<Standing>)> {
        let running = self.running.as_ref()?;
        let number = self.unit();
        let unit = self.units().unit(number);
        let doublings = if self.stall.at == number { self.stall.evictions.min(MAX_DOUBLINGS) } else { 0 };
        let mut standings = Vec::with_capacity(running.ranks.len());
        for (rank, ((id, _), progress)) in running.ranks.iter().zip(&running.progress).enumerate() {
            let times = self.members.get(id).map(|member| &member.pace.unit_times);
            let bound = times.map_or(Duration::MAX, |times| {
                times.bound(self.config.run.stall_after, unit, self.steps_in(unit)).saturating_mul(1 << doublings)
            });
            let reports = running.pending.front();
            standings.push(Standing {
                has_rows: progress.rows_until > number,
                has_reported: reports.and_then(|reports| reports.get(rank)).is_some_and(Option::is_some),
                moved: progress.moved,
                brought: progress.brought,
                bound,
            });
        }
        Some((number, standings))
    }

    /// A tick. After a long pause this process was stopped, and heard nobody: that is nobody's fault.
    pub(super) fn notice_pause(&mut self, now: Instant) {
        let pause =
            self.stall.last_tick.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        if pause <= PAUSE {
            return;
        }
        for member in self.members.values_mut() {
            member.last_seen = (member.last_seen + pause).min(now);
        }
        if let Some(running) = &mut self.running {
            running.progress.iter_mut().for_each(|progress| progress.shift(now, pause));
        }
    }

    /// Replaces ranks that are alive and do nothing.
    pub(super) fn evict_stalled(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some((unit, standings)) = self.standings() else {
            return;
        };
        let Some(running) = &self.running else {
            return;
        };
        let together = running.backend == CollectiveBackend::Nccl;
        let stalled = match stalled(now, &standings, together) {
            Stall::None => return,
            Stall::Ranks(stalled) => stalled,
            Stall::Collective(waited) => {
                let seconds = waited.as_secs_f64();
                let reason = format!("NCCL has given no rank the sum of unit {unit} for {seconds:.0} s");
                self.count_stall(unit);
                self.nccl_failures.record(reason.clone());
                return self.pause(&reason, effects);
            }
        };
        let stalled: Vec<(MemberId, Owed, Duration)> =
            stalled.into_iter().map(|(rank, owed, waited)| (running.ranks[rank].0, owed, waited)).collect();
        self.count_stall(unit);
        let mut reasons = Vec::with_capacity(stalled.len());
        for (id, owed, waited) in stalled {
            let seconds = waited.as_secs_f64();
            let what = match owed {
                Owed::Rows => format!("has sent no rows of unit {unit} for {seconds:.0} s"),
                Owed::Report => format!("has not reported unit {unit} for {seconds:.0} s"),
            };
            reasons.push(format!("{} {what} although it is alive: its device may hang", self.name(id)));
            effects.push(Effect::Replace(id, format!("it {what} although it is alive: its device may hang")));
            self.members.remove(&id);
        }
        self.pause(&reasons.join("; "), effects);
    }

    /// Remembers with each rank for how long it has owed its rows of the awaited unit, as of the last tick: its generation
    /// ends.
    pub(super) fn note_owed(&mut self) {
        let unit = self.unit();
        let (Some(running), Some(now)) = (&self.running, self.stall.last_tick) else {
            return;
        };
        for ((id, _), progress) in running.ranks.iter().zip(&running.progress) {
            if let Some(member) = self.members.get_mut(id) {
                member.pace.owed = progress.owed(now, unit);
            }
        }
    }

    fn count_stall(&mut self, unit: u64) {
        let before = if self.stall.at == unit { self.stall.evictions } else { 0 };
        (self.stall.evictions, self.stall.at) = (before + 1, unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Unit = Unit::Step(3);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_rank_gets_a_minute_or_twenty_of_its_units() {
        let mut times = UnitTimes::default();
        assert_eq!(times.bound(None, STEP, 1), seconds(600), "kernels compile in the first unit");
        times.observe(STEP, seconds(1), seconds(5));
        assert_eq!(times.bound(None, STEP, 1), seconds(60));
        times.observe(STEP, seconds(9), seconds(5));
        assert_eq!(times.bound(None, STEP, 1), seconds(100), "no unit took longer than was observed");
        assert_eq!(times.bound(Some(seconds(2)), STEP, 1), seconds(2));
        assert_eq!(times.bound(Some(seconds(2)), Unit::Evaluate, 25), seconds(500), "its first evaluation");
        times.observe(Unit::Evaluate, seconds(1), seconds(1));
        assert_eq!(times.bound(Some(seconds(2)), Unit::Evaluate, 25), seconds(50));
        for _ in 0..RECENT {
            times.observe(STEP, seconds(1), seconds(1));
        }
        assert_eq!(times.bound(None, STEP, 1), seconds(60), "old units are forgotten");
    }

    /// Ranks by what they have (`r`ows, a `R`eport, or nothing), all since `start`.
    fn ranks(start: Instant, what: &str) -> Vec<Standing> {
        let standing = |letter: char| Standing {
            has_rows: letter != '-',
            has_reported: letter == 'R',
            moved: start,
            brought: start,
            bound: seconds(10),
        };
        what.chars().map(standing).collect()
    }

    #[test]
    fn who_owes_rows_is_found_and_who_waits_for_them_is_not() {
        let start = Instant::now();
        let at = |what, after, together| stalled(start + seconds(after), &ranks(start, what), together);
        for together in [false, true] {
            assert_eq!(at("r-r", 10, together), Stall::None);
            assert_eq!(at("r-r", 11, together), Stall::Ranks(vec![(1, Owed::Rows, seconds(11))]));
            assert_eq!(
                at("--", 11, together),
                Stall::Ranks(vec![(0, Owed::Rows, seconds(11)), (1, Owed::Rows, seconds(11))])
            );
            assert_eq!(at("RrR", 11, together), Stall::Ranks(vec![(1, Owed::Report, seconds(11))]));
            assert_eq!(at("RRR", 99, together), Stall::None);
        }
        assert_eq!(at("rr", 11, true), Stall::Collective(seconds(11)), "nobody can say which rank it is");
        assert!(matches!(at("rr", 11, false), Stall::Ranks(found) if found.len() == 2));
    }

    #[test]
    fn a_report_is_owed_from_the_last_rows_on() {
        let start = Instant::now();
        let mut ranks = ranks(start, "rr");
        ranks[1].moved = start + seconds(8);
        assert_eq!(stalled(start + seconds(18), &ranks, false), Stall::None);
        assert!(matches!(stalled(start + seconds(19), &ranks, false), Stall::Ranks(found) if found.len() == 2));
    }

    #[test]
    fn rows_one_by_one_are_progress_but_not_for_ever() {
        let start = Instant::now();
        let mut ranks = ranks(start, "r-");
        ranks[1].brought = start + seconds(95);
        assert_eq!(stalled(start + seconds(100), &ranks, false), Stall::None);
        assert!(matches!(stalled(start + seconds(101), &ranks, false), Stall::Ranks(found) if found[0].0 == 1));
    }
}
