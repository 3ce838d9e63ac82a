//! The coordinator's decisions: a state machine without clocks, sockets or files.
//!
//! The driver feeds it [`Event`]s with the present time and applies the [`Effect`]s it answers with. Every decision on
//! membership, generations and commits is made here, and every wait has a reason as text.

mod admission;
pub mod agreement;
mod arbiter;
pub mod audit;
pub mod clean_audits;
pub mod collective;
mod commit;
mod decide;
mod dismissal;
pub mod events;
mod exclusion;
mod generation;
pub mod load_balancing;
pub mod rejoin;
mod sample_check;
pub mod stall;
mod suspects;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_config::{Arithmetic, Config};
use numalign_data::{Audits, Schedule};
use numalign_projector::State;

use arbiter::Dispute;
use clean_audits::{CleanAudits, HostDevice};
use collective::{CollectiveDecision, NcclFailures};
use dismissal::{Complaint, Words};
use exclusion::Excluded;
use generation::Running;
use sample_check::SampleCheck;
use stall::{Pace, StallWatch};
use suspects::Suspects;

pub use decide::Decision;
pub use events::{
    Activity, Cause, Commit, Effect, Event, Generation, GenerationStart, JoinRequest, Member, MemberId, Process,
    Report, RollBack, Timing, WorkerReady,
};

/// The frozen model that a checkpoint or loaded projectors belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBase {
    /// The file.
    pub source: PathBuf,
    /// Of the model, hex.
    pub fingerprint: String,
    /// Of its tokenizer, hex, if it is known and counts in this run.
    pub tokenizer: Option<String>,
    /// To what the factors of its products were rounded, where the run goes on from a state that was computed so.
    pub arithmetic: Option<Arithmetic>,
}

/// What identifies the frozen model of this run.
#[derive(Debug, Clone, PartialEq)]
struct Base {
    fingerprint: String,
    /// Of its tokenizer; none before the first worker, and in a stage that reads no text.
    tokenizer: Option<String>,
    /// To what the factors of products are rounded; none before the first worker of a new run.
    arithmetic: Option<Arithmetic>,
    /// The file that binds the run to it, until a worker was ready.
    source: Option<PathBuf>,
    /// From the first worker that was ready.
    trial_digest: Option<Vec<u8>>,
}

/// The whole state of the coordinator's decisions.
pub struct Machine {
    config: Arc<Config>,
    incarnation: u64,
    members: BTreeMap<MemberId, Member>,
    running: Option<Running>,
    generations: u64,
    committed: Option<Arc<State>>,
    /// From the checkpoint or projectors that `committed` came from, else from the first worker that was ready.
    base: Option<Base>,
    first_ready: Option<Instant>,
    sample_check: SampleCheck,
    /// The unit at the end of the round that the driver is solving for.
    solving: Option<u64>,
    /// A worker brought a rejoin state: the run continues after the loss of another coordinator.
    resuming: bool,
    rebalance: RebalancePolicy,
    audits: Audits,
    clean_audits: CleanAudits,
    /// How often the run went back to an earlier state.
    rollbacks: u64,
    /// Ranks contradicted each other without a majority.
    dispute: Option<Dispute>,
    /// Workers that computed wrong numbers.
    excluded: Vec<Excluded>,
    /// Processes that were told not to come back, the latest last.
    refused: VecDeque<Process>,
    /// Processes that were members and may come back: their connection may have broken. Of each, how fast it works.
    welcome_back: BTreeMap<Process, Pace>,
    /// Rows that were not finite and are computed again.
    suspects: Option<Suspects>,
    /// The first worker that could not load the model, before the first generation.
    cannot_load: Option<Complaint>,
    /// The rank that complained of the samples or the recipe last.
    about_data: Option<Complaint>,
    /// Why members were dismissed, the latest last.
    dismissed: VecDeque<Words>,
    /// Since when nobody is left after a dismissal, and what to do about it.
    deserted: Option<(Instant, &'static str)>,
    /// Of the present generation, or of the one before.
    collective: Option<CollectiveDecision>,
    nccl_failures: NcclFailures,
    stall: StallWatch,
    reason: String,
    over: bool,
}

/// When another split of the micro-batches is considered: the present one must have lasted this long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RebalancePolicy {
    /// Time since the generation began.
    pub after: Duration,
    /// Units committed since the generation began.
    pub after_units: u64,
}

impl Default for RebalancePolicy {
    fn default() -> Self {
        Self { after: Duration::from_secs(5), after_units: 30 }
    }
}

/// Refused processes that are remembered for the launcher.
const MAX_REFUSED: usize = 1024;

impl Machine {
    /// `committed` is the state to continue from, if there is one; `base` the frozen model it belongs to.
    pub fn new(config: Arc<Config>, incarnation: u64, committed: Option<State>, base: Option<KnownBase>) -> Self {
        let base = base.map(|KnownBase { source, fingerprint, tokenizer, arithmetic }| Base {
            fingerprint,
            tokenizer,
            arithmetic,
            source: Some(source),
            trial_digest: None,
        });
        Self {
            audits: Audits::of_run(&config),
            clean_audits: CleanAudits::new(Schedule::of_run(&config)),
            rollbacks: 0,
            dispute: None,
            config,
            incarnation,
            members: BTreeMap::new(),
            running: None,
            generations: 0,
            committed: committed.map(Arc::new),
            base,
            first_ready: None,
            sample_check: SampleCheck::Done,
            solving: None,
            resuming: false,
            rebalance: RebalancePolicy::default(),
            excluded: Vec::new(),
            refused: VecDeque::new(),
            welcome_back: BTreeMap::new(),
            suspects: None,
            cannot_load: None,
            about_data: None,
            dismissed: VecDeque::new(),
            deserted: None,
            collective: None,
            nccl_failures: NcclFailures::default(),
            stall: StallWatch::default(),
            reason: "starting".to_owned(),
            over: false,
        }
    }

    /// The same machine with another policy on when a new split is considered.
    #[must_use]
    pub fn with_rebalance(mut self, policy: RebalancePolicy) -> Self {
        self.rebalance = policy;
        self
    }

    /// The same machine, which continues a run that went back to an earlier state so many times, and whose machines have
    /// unaudited rows since these states.
    #[must_use]
    pub fn with_rollbacks(mut self, rollbacks: u64, machines: BTreeMap<HostDevice, Arc<State>>) -> Self {
        self.rollbacks = rollbacks;
        let floor = self.committed.as_ref().map(|committed| Arc::new(committed.rewound(&self.config.recipe)));
        self.clean_audits = CleanAudits::new(self.units()).continued(floor, machines);
        self
    }

    /// Machines that left for good before they were audited again, and the steps before their rows.
    pub fn never_audited(&self) -> Vec<(HostDevice, u64)> {
        self.clean_audits.never_audited()
    }

    /// Every machine that has unaudited rows in the run, and the state before them.
    pub fn unaudited(&self) -> BTreeMap<HostDevice, Arc<State>> {
        self.clean_audits.machines()
    }

    /// The random number of this coordinator process.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// All connected workers.
    pub fn members(&self) -> &BTreeMap<MemberId, Member> {
        &self.members
    }

    /// The last state that is certain.
    pub fn committed(&self) -> Option<&Arc<State>> {
        self.committed.as_ref()
    }

    /// Processes that were told not to come back.
    pub fn refused(&self) -> impl Iterator<Item = &Process> {
        self.refused.iter()
    }

    /// How the present generation reduces, or the last one did; `None` before the first.
    pub fn collective(&self) -> Option<&CollectiveDecision> {
        self.collective.as_ref()
    }

    /// Why the run is in its phase.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The present generation.
    pub fn generation(&self) -> Option<Generation> {
        self.running.as_ref().map(|running| running.generation)
    }

    /// The micro-batches of `id` in the present generation.
    pub fn part_of(&self, id: MemberId) -> Option<Range<usize>> {
        let (_, part) = self.running.as_ref()?.ranks.iter().find(|(member, _)| *member == id)?;
        Some(part.clone())
    }

    /// `waiting`, `training`, `solving` or `done`.
    pub fn phase(&self) -> &'static str {
        match (&self.running, self.over) {
            (_, true) => "done",
            (Some(_), false) => "training",
            (None, false) if self.solving == Some(self.unit()) => "solving",
            (None, false) => "waiting",
        }
    }

    fn units(&self) -> Schedule {
        Schedule::of_run(&self.config)
    }

    /// The number of the unit that comes after the last committed one.
    fn unit(&self) -> u64 {
        self.committed.as_ref().map_or(0, |state| self.unit_after(state))
    }

    fn unit_after(&self, state: &State) -> u64 {
        self.units().index(state.position())
    }

    /// Takes in one event and says what to do about it.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.over {
            return effects;
        }
        // Most messages decide nothing, and deciding looks at every member: with many workers that adds up.
        let (before, is_routine) = (self.unit(), matches!(event, Event::Heartbeat(_) | Event::Reported(..)));
        match event {
            Event::Joined(id, join_request) => self.joined(now, id, join_request, &mut effects),
            Event::Ready(id, worker_ready) => self.ready(now, id, worker_ready, &mut effects),
            Event::Reported(id, report) => self.reported(now, id, report, &mut effects),
            Event::Heartbeat(id) => self.mark_alive(now, id),
            Event::NcclId(id, generation, bytes) => self.broadcast_nccl_id(id, generation, bytes, &mut effects),
            Event::NcclFailed(id, generation, why) => self.nccl_failed(id, generation, &why, &mut effects),
            Event::Left(id, why) => self.left(id, &why, &mut effects),
            Event::PermanentFailure(id, cause, why) => self.permanent_failure(now, id, cause, &why, &mut effects),
            Event::NotFinite(generation, unit, bad) => self.not_finite(generation, unit, &bad, &mut effects),
            Event::RowsRefused(id, generation, why) => self.rows_refused(now, id, generation, &why, &mut effects),
            Event::SamplesChecked(id, checked) => self.samples_checked(now, id, checked, &mut effects),
            Event::Solved(unit, solution) => self.solved(unit, solution, &mut effects),
            Event::StateMade(disputed, digest, reason) => {
                self.state_made(now, disputed, digest, reason, &mut effects);
            }
            Event::Tick => {
                self.notice_pause(now);
                self.evict_silent(now, &mut effects);
                self.evict_stalled(now, &mut effects);
                self.check_deserted(now, &mut effects);
                self.check_dispute(now, &mut effects);
                self.check_doubted_sample(now, &mut effects);
            }
        }
        let nothing_new = is_routine && self.running.is_some() && self.unit() == before;
        if !self.over && !nothing_new {
            self.advance(now, &mut effects);
        }
        effects
    }

    fn name(&self, id: MemberId) -> String {
        match self.members.get(&id) {
            Some(member) => {
                let process = &member.join_request.process;
                let rank = match member.activity {
                    Activity::Training(rank) => format!("rank {rank}, "),
                    _ => String::new(),
                };
                format!("worker {} ({rank}{}, pid {})", id.0, process.host, process.pid)
            }
            None => format!("worker {}", id.0),
        }
    }

    fn fail(&mut self, reason: String, hint: &'static str, effects: &mut Vec<Effect>) {
        self.over = true;
        self.reason = reason.clone();
        effects.push(Effect::Failed(reason, hint));
    }

    /// Evicts a member for good; the launcher does not start its process again.
    fn refuse(&mut self, id: MemberId, process: Process, reason: String, effects: &mut Vec<Effect>) {
        self.welcome_back.remove(&process);
        self.refused.push_back(process);
        if self.refused.len() > MAX_REFUSED {
            self.refused.pop_front();
        }
        effects.push(Effect::Evict(id, true, reason));
    }

    fn mark_alive(&mut self, now: Instant, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.last_seen = now;
        }
    }

    fn left(&mut self, id: MemberId, why: &str, effects: &mut Vec<Effect>) {
        let name = self.name(id);
        let ranked = self.running.as_ref().is_some_and(|running| running.ranks.iter().any(|(member, _)| *member == id));
        if ranked {
            self.note_owed();
        }
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        self.clean_audits.left(id);
        let process = member.join_request.process;
        if !self.refused.contains(&process)
            && (self.welcome_back.len() < MAX_REFUSED || self.welcome_back.contains_key(&process))
        {
            self.welcome_back.insert(process, member.pace);
        }
        if ranked {
            self.pause(&format!("{name} left ({why})"), effects);
        }
    }

    fn advance(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.is_checking(effects) {
            return;
        }
        let (decision, reason) = self.decide(now);
        self.reason = reason;
        match decision {
            Decision::Wait => {}
            Decision::Finish => {
                self.over = true;
                self.running = None;
                effects.push(Effect::Finished);
            }
            Decision::Quiesce(why) => {
                if let Some(running) = &mut self.running {
                    running.quiescing = Some(why);
                    effects.push(Effect::Quiesce(running.generation));
                }
            }
            Decision::Solve => {
                // Ranks come to rest at the end of a round by themselves.
                self.release_ranks();
                self.reason = "solving for the output projector".to_owned();
                self.solving = Some(self.unit());
                effects.push(Effect::Solve(self.unit()));
            }
            Decision::Begin(members) => self.begin(now, members, effects),
        }
    }
}
