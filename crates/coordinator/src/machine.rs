//! The coordinator's brain: a state machine without clocks, sockets or files.
//!
//! The shell ([`crate::shell`]) feeds it events with the present time and carries out the effects it answers with.
//! Every decision of membership, generation and commit is made here, and each wait has a reason in words.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_config::{CollectiveChoice, Config, Unit, Units};
use numalign_data::{Audit, audit_of};
use numalign_projector::{Features, Fit, Layout, NormTensor, State};

use crate::audit::{Verdict, shown, verdict};
use crate::collective::{self, Candidate, Choice, Failures, Way};
use crate::shares::{self, Pace};

pub use crate::events::{
    Activity, Beginning, Commit, Effect, Event, Generation, Introduction, Member, MemberId, Readiness, Report, Timing,
};

struct Running {
    generation: Generation,
    ranks: Vec<(MemberId, Range<usize>)>,
    way: Way,
    /// Reports of the steps after the committed one, in step order: one slot per rank, none before the step's first report.
    pending: VecDeque<Vec<Option<Report>>>,
    /// Why work was stopped, once it was: a join, or another split.
    quiescing: Option<&'static str>,
    /// When the generation began, and at which step.
    since: (Instant, u64),
}

impl Running {
    fn parts(&self) -> Vec<Range<usize>> {
        self.ranks.iter().map(|(_, part)| part.clone()).collect()
    }
}

/// What identifies the frozen model of this run.
#[derive(Debug, Clone, PartialEq)]
struct Base {
    fingerprint: String,
    /// From the first worker that was ready.
    probe: Option<Vec<u8>>,
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
    /// The round's end that the shell is solving for.
    solving: Option<u64>,
    /// A worker came that outlived another coordinator of this run: the run goes on, it does not begin.
    goes_on: bool,
    /// Host and device of workers that computed wrong numbers.
    excluded: Vec<(String, String)>,
    /// Processes that were told not to come back, the latest last.
    refused_pids: VecDeque<u32>,
    /// Of the present generation, or of the one before.
    collective: Option<Choice>,
    nccl_failures: Failures,
    reason: String,
    over: bool,
}

/// Another split is thought about when a generation has lasted this long, and this many steps.
const SETTLED: Duration = Duration::from_secs(5);
const SETTLED_STEPS: u64 = 30;

/// Refused processes that are remembered for the launcher.
const MOST_REFUSED: usize = 1024;

/// A hidden size beyond this is nonsense, and the state of it would fill the memory.
const MOST_HIDDEN: usize = 1 << 20;

/// What to do next, in the pure part of the decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    Wait,
    Begin(Vec<MemberId>),
    /// Come to rest at a commit boundary: why, in a few words.
    Quiesce(&'static str),
    Solve,
    Finish,
}

impl Machine {
    /// `committed` is the state to continue from, where there is one; `fingerprint` the base it belongs to.
    pub fn new(config: Arc<Config>, incarnation: u64, committed: Option<State>, fingerprint: Option<String>) -> Self {
        let base = fingerprint.map(|fingerprint| Base { fingerprint, probe: None });
        Self {
            config,
            incarnation,
            members: BTreeMap::new(),
            running: None,
            generations: 0,
            committed: committed.map(Arc::new),
            base,
            first_ready: None,
            solving: None,
            goes_on: false,
            excluded: Vec::new(),
            refused_pids: VecDeque::new(),
            collective: None,
            nccl_failures: Failures::default(),
            reason: "starting".to_owned(),
            over: false,
        }
    }

    pub fn members(&self) -> &BTreeMap<MemberId, Member> {
        &self.members
    }

    /// The last state that is certain.
    pub fn committed(&self) -> Option<&Arc<State>> {
        self.committed.as_ref()
    }

    /// Processes that were told not to come back.
    pub fn refused_pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.refused_pids.iter().copied()
    }

    /// How the present generation reduces, or the one before did; none before the first.
    pub fn collective(&self) -> Option<&Choice> {
        self.collective.as_ref()
    }

    /// Why the run is where it is.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The present generation.
    pub fn generation(&self) -> Option<Generation> {
        self.running.as_ref().map(|running| running.generation)
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

    fn units(&self) -> Units {
        self.config.units()
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
        // Most messages settle nothing, and to decide looks at every member: with many workers that adds up.
        let (before, is_routine) = (self.unit(), matches!(event, Event::Heartbeat(_) | Event::Reported(..)));
        match event {
            Event::Joined(id, introduction) => self.joined(now, id, introduction, &mut effects),
            Event::Ready(id, readiness) => self.ready(now, id, readiness, &mut effects),
            Event::Reported(id, report) => self.reported(now, id, report, &mut effects),
            Event::Heartbeat(id) => self.heard(now, id),
            Event::NcclId(id, generation, bytes) => self.hand_out(id, generation, bytes, &mut effects),
            Event::NcclFailed(id, generation, why) => self.nccl_failed(id, generation, &why, &mut effects),
            Event::Left(id, why) => self.left(id, &why, &mut effects),
            Event::FailedForGood(id, why) if self.members.contains_key(&id) => {
                let name = self.name(id);
                self.fail(
                    format!("{name}: {why}"),
                    "another worker of the same kind would fail in the same way",
                    &mut effects,
                );
            }
            // From a worker that was refused or declared dead: the run goes on without it.
            Event::FailedForGood(..) => {}
            Event::Solved(unit, solution) => self.solved(unit, solution, &mut effects),
            Event::Tick => self.drop_silent(now, &mut effects),
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
                let rank = match member.activity {
                    Activity::Training(rank) => format!("rank {rank}, "),
                    _ => String::new(),
                };
                format!("worker {} ({rank}{}, pid {})", id.0, member.introduction.host, member.introduction.pid)
            }
            None => format!("worker {}", id.0),
        }
    }

    fn fail(&mut self, reason: String, hint: &'static str, effects: &mut Vec<Effect>) {
        self.over = true;
        self.reason = reason.clone();
        effects.push(Effect::Failed(reason, hint));
    }

    /// Tells a process of `pid` that it is out for good.
    fn refuse(&mut self, id: MemberId, pid: u32, reason: String, effects: &mut Vec<Effect>) {
        self.refused_pids.push_back(pid);
        if self.refused_pids.len() > MOST_REFUSED {
            self.refused_pids.pop_front();
        }
        effects.push(Effect::Dismiss(id, true, reason));
    }

    fn heard(&mut self, now: Instant, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.last_heard = now;
        }
    }

    fn joined(&mut self, now: Instant, id: MemberId, introduction: Introduction, effects: &mut Vec<Effect>) {
        if self.members.len() >= self.config.run.max_workers {
            let reason = format!("max_workers is {} and as many are connected", self.config.run.max_workers);
            self.refuse(id, introduction.pid, reason, effects);
            return;
        }
        if let (Some(state), Some(committed)) = (&introduction.rejoin_state, &self.committed)
            && state.layout().with_layer_norms(0) != committed.layout().with_layer_norms(0)
        {
            let (its, ours) = (state.layout().hidden(), committed.layout().hidden());
            let reason = format!("its hidden size is {its}, this run's is {ours}");
            self.refuse(id, introduction.pid, reason, effects);
            return;
        }
        if let Some(state) = &introduction.rejoin_state
            && let Err(reason) = self.accept_rejoin_state(state)
        {
            self.fail(reason, "compare the machines; one of them computed or stored other numbers", effects);
            return;
        }
        self.goes_on |= introduction.rejoin_state.is_some();
        let member = Member {
            introduction,
            readiness: None,
            activity: Activity::Loading,
            last_heard: now,
            last_timing: Timing::default(),
            pace: Pace::default(),
        };
        self.members.insert(id, member);
    }

    /// A rejoin state counts where it is further than what this coordinator knows, before the first generation.
    /// The sums of a round in progress died with the coordinator that kept them, so the round begins anew there.
    fn accept_rejoin_state(&mut self, state: &State) -> Result<(), String> {
        let known = self.unit();
        let rewound = state.rewound(&self.config.recipe);
        for state in [state, &rewound] {
            if let Some(committed) = &self.committed
                && self.unit_after(state) == known
                && committed.layout() == state.layout()
                && **committed != *state
            {
                return Err(format!(
                    "two states for step {} differ: {} here, {} from a returning worker",
                    state.step(),
                    committed.digest(),
                    state.digest()
                ));
            }
        }
        if self.unit_after(&rewound) > known && self.generations == 0 {
            self.committed = Some(Arc::new(rewound));
        }
        Ok(())
    }

    fn ready(&mut self, now: Instant, id: MemberId, readiness: Readiness, effects: &mut Vec<Effect>) {
        self.heard(now, id);
        // Once is enough; a rank that says it again keeps its rank.
        let Some(introduction) = self.members.get(&id).filter(|member| member.readiness.is_none()) else {
            return;
        };
        let introduction = introduction.introduction.clone();
        let admissible = match self.admissible(&introduction.host, &readiness) {
            Err(reason) => Err((reason, "give every worker the model of this run")),
            Ok(()) => self.reduces_with_the_others(id, &introduction.host, &readiness).map_err(|reason| {
                (reason, "`numalign doctor` says what its machine lacks; or set collective: auto or grpc")
            }),
        };
        if let Err((reason, hint)) = admissible {
            self.refuse(id, introduction.pid, reason.clone(), effects);
            let name = self.name(id);
            self.members.remove(&id);
            self.reason = format!("{name} was refused: {reason}");
            if self.members.is_empty() && self.generations == 0 {
                self.fail(format!("{name} was refused: {reason}"), hint, effects);
            }
            return;
        }
        if self.base.as_ref().is_none_or(|base| base.probe.is_none()) {
            effects.push(Effect::BaseKnown(readiness.clone()));
            self.base = Some(Base {
                fingerprint: readiness.base_fingerprint.clone(),
                probe: Some(readiness.probe_digest.clone()),
            });
        }
        self.complete_initial_state(&readiness);
        if let Some(member) = self.members.get_mut(&id) {
            member.readiness = Some(readiness);
            member.activity = Activity::Waiting(now);
        }
        self.first_ready.get_or_insert(now);
    }

    /// The state before the first step, once a model is known: fresh projectors where none are loaded, and the model's own
    /// layer norms where they train and none are loaded.
    fn complete_initial_state(&mut self, readiness: &Readiness) {
        let recipe = &self.config.recipe;
        let mut state = match &self.committed {
            Some(state) if state.layout().layer_norms().is_empty() == readiness.layer_norms.is_empty() => return,
            Some(state) => state.as_ref().clone(),
            None => State::initial(Layout::of(recipe, readiness.hidden_size, 0), recipe.seed).prepared(recipe),
        };
        state.set_layer_norms(&readiness.layer_norm_values);
        self.committed = Some(Arc::new(state));
    }

    fn admissible(&self, host: &str, readiness: &Readiness) -> Result<(), String> {
        if self.excluded.iter().any(|(bad, device)| bad == host && *device == readiness.device) {
            return Err(format!("{} of host {host} computed wrong numbers earlier in this run", readiness.device));
        }
        if !(1..=MOST_HIDDEN).contains(&readiness.hidden_size) {
            return Err(format!("a hidden size of {} is not from 1 to {MOST_HIDDEN}", readiness.hidden_size));
        }
        if let Some(base) = &self.base
            && base.fingerprint != readiness.base_fingerprint
        {
            return Err(format!(
                "its frozen model has fingerprint {:.16}, this run's has {:.16}",
                readiness.base_fingerprint, base.fingerprint
            ));
        }
        self.layer_norms_fit(readiness)?;
        if let Some(hidden) = self.committed.as_ref().map(|state| state.layout().hidden())
            && hidden != readiness.hidden_size
        {
            return Err(format!("its hidden size is {}, this run's is {hidden}", readiness.hidden_size));
        }
        if let Some(probe) = self.base.as_ref().and_then(|base| base.probe.as_ref())
            && *probe != readiness.probe_digest
            && self.config.run.deterministic
        {
            return Err(format!(
                "it computes other bits than this run's machines on the same probe (device {}); \
                 deterministic: false would admit it",
                readiness.device
            ));
        }
        Ok(())
    }

    /// With `collective: nccl` a worker that cannot share a communicator with those that are ready stays out.
    fn reduces_with_the_others(&self, id: MemberId, host: &str, readiness: &Readiness) -> Result<(), String> {
        let wanted = self.config.run.collective;
        if wanted != CollectiveChoice::Nccl {
            return Ok(());
        }
        let others: Vec<MemberId> = self.members.keys().copied().collect();
        let mut candidates = self.candidates(&others);
        candidates.push(Candidate { name: self.name(id), host, nccl: &readiness.nccl });
        match collective::choose(wanted, &candidates, &Failures::default()) {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("collective: nccl cannot be used: {why}")),
        }
    }

    /// Those of `members` that are ready, as the choice of a collective sees them.
    fn candidates(&self, members: &[MemberId]) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::with_capacity(members.len());
        for id in members {
            if let Some(member) = self.members.get(id)
                && let Some(readiness) = &member.readiness
            {
                let host = member.introduction.host.as_str();
                candidates.push(Candidate { name: self.name(*id), host, nccl: &readiness.nccl });
            }
        }
        candidates
    }

    /// The place of `id` among the ranks of `generation`, where that is the present one and reduces over NCCL.
    fn rank_over_nccl(&self, id: MemberId, generation: Generation) -> Option<usize> {
        let running = self.running.as_ref()?;
        let present = running.generation == generation && running.way == Way::Nccl;
        running.ranks.iter().position(|(member, _)| *member == id).filter(|_| present)
    }

    /// Only rank 0 makes ids; the word of another generation is a late one.
    fn hand_out(&self, id: MemberId, generation: Generation, bytes: Vec<u8>, effects: &mut Vec<Effect>) {
        if self.rank_over_nccl(id, generation) == Some(0)
            && let Some(running) = &self.running
        {
            let members = running.ranks.iter().map(|(member, _)| *member).collect();
            effects.push(Effect::HandOut(members, generation, bytes));
        }
    }

    /// The generation is over; whether the next one tries NCCL again, its beginning decides.
    fn nccl_failed(&mut self, id: MemberId, generation: Generation, why: &str, effects: &mut Vec<Effect>) {
        if self.rank_over_nccl(id, generation).is_none() {
            return;
        }
        let reason = format!("{}: {why}", self.name(id));
        self.nccl_failures.note(reason.clone());
        self.end_generation(&reason, effects);
    }

    /// A worker whose model has the right fingerprint has the right layer norms, unless it is of another build.
    fn layer_norms_fit(&self, readiness: &Readiness) -> Result<(), String> {
        let (named, values) = (NormTensor::total_len(&readiness.layer_norms), readiness.layer_norm_values.len());
        let wanted = self.config.recipe.train_layer_norms;
        if named != values || wanted != (values > 0) {
            return Err(format!("it sent {values} numbers for {named} of layer norms (train_layer_norms is {wanted})"));
        }
        let known = self.committed.as_ref().map_or(0, |state| state.layout().layer_norms().len());
        if known > 0 && known != values {
            return Err(format!("its model has {values} numbers of layer norms, this run's has {known}"));
        }
        Ok(())
    }

    fn reported(&mut self, now: Instant, id: MemberId, report: Report, effects: &mut Vec<Effect>) {
        self.heard(now, id);
        let (committed, units) = (self.unit(), self.units());
        let Some(running) = &mut self.running else {
            return;
        };
        // A late message of a generation that is over, or a unit already settled.
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
                member.pace.observe(report.timing.compute, running.ranks[rank].1.len());
            }
        }
        let place = (report.unit - committed) as usize;
        const MOST_AHEAD: usize = 1 << 16;
        if place >= MOST_AHEAD {
            return;
        }
        while running.pending.len() <= place {
            running.pending.push_back(Vec::new());
        }
        if running.pending[place].is_empty() {
            running.pending[place] = vec![None; running.ranks.len()];
        }
        running.pending[place][rank] = Some(report);
        self.commit_what_is_complete(effects);
    }

    fn commit_what_is_complete(&mut self, effects: &mut Vec<Effect>) {
        while let Some(running) = &mut self.running {
            let complete = running
                .pending
                .front()
                .is_some_and(|reports| !reports.is_empty() && reports.iter().all(Option::is_some));
            if !complete {
                return;
            }
            let reports: Vec<Report> = running.pending.pop_front().into_iter().flatten().flatten().collect();
            let world = reports.len();
            let step = reports[0].unit;
            let digest = reports[0].digest;
            if let Some(odd) = reports.iter().position(|report| report.digest != digest) {
                let (first, other) = (running.ranks[0].0, running.ranks[odd].0);
                let reason = format!(
                    "the ranks disagree after step {step}: {} has {digest}, {} has {}; nothing of this step is committed",
                    self.name(first),
                    self.name(other),
                    reports[odd].digest
                );
                self.fail(reason, "one of the two machines computes wrong numbers; resume without it", effects);
                return;
            }
            let parts = running.parts();
            if let Some(audit) = self.audit(step, &parts)
                && !self.passes(step, &audit, &reports, effects)
            {
                return;
            }
            let Some(state) = reports[0].state.clone() else {
                self.fail(
                    format!("rank 0 reported step {step} without its state"),
                    "this is a defect of numalign; please report it",
                    effects,
                );
                return;
            };
            if state.digest() != digest || self.unit_after(&state) != step + 1 {
                self.fail(
                    format!("rank 0's state after step {step} does not have the digest it reported"),
                    "rank 0's machine has a faulty memory or network; resume without it",
                    effects,
                );
                return;
            }
            let features = reports[0].features.clone();
            if let Err(reason) = self.check_features(step, features.as_deref(), &state) {
                self.fail(reason, "rank 0's machine has a faulty memory or network; resume without it", effects);
                return;
            }
            let mut timing = Timing::default();
            for report in &reports {
                timing.compute = timing.compute.max(report.timing.compute);
                timing.data_wait = timing.data_wait.max(report.timing.data_wait);
                timing.reduce = timing.reduce.max(report.timing.reduce);
                timing.peak_rss_mib = timing.peak_rss_mib.max(report.timing.peak_rss_mib);
            }
            let (unit, state) = (self.units().unit(step), Arc::new(state));
            self.committed = Some(state.clone());
            self.nccl_failures.forget();
            effects.push(Effect::Committed(Commit { unit, state, loss: reports[0].loss, timing, world, features }));
        }
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

    fn solved(&mut self, unit: u64, solution: Result<Fit, String>, effects: &mut Vec<Effect>) {
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

    /// Machines that may compute other bits have no rows to compare.
    fn audit(&self, step: u64, parts: &[Range<usize>]) -> Option<Audit> {
        if !self.config.run.deterministic {
            return None;
        }
        audit_of(step, self.config.run.audit_every, parts)
    }

    /// Compares the audited rows of a step; where they differ, excludes the odd rank or stops the run.
    fn passes(&mut self, step: u64, audit: &Audit, reports: &[Report], effects: &mut Vec<Effect>) -> bool {
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
                    shown(its),
                    shown(others)
                );
                self.exclude(id, &why, effects);
                false
            }
            Verdict::Split { first, second, digests } => {
                let reason = format!(
                    "the audit of step {step} found two gradient rows for micro-batch {micro_batch}: {} has {}, {} has \
                     {}; nothing of this step is committed",
                    self.name(member(first)),
                    shown(digests[0]),
                    self.name(member(second)),
                    shown(digests[1])
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

    /// A worker that computes wrong numbers goes, and its device does not come back in this run.
    fn exclude(&mut self, id: MemberId, why: &str, effects: &mut Vec<Effect>) {
        if let Some(member) = self.members.get(&id) {
            let (host, pid) = (member.introduction.host.clone(), member.introduction.pid);
            let device = member.readiness.as_ref().map_or_else(String::new, |ready| ready.device.clone());
            self.excluded.push((host, device));
            self.refuse(id, pid, format!("excluded: {why}"), effects);
        }
        self.left(id, &format!("excluded: {why}"), effects);
    }

    fn left(&mut self, id: MemberId, why: &str, effects: &mut Vec<Effect>) {
        let name = self.name(id);
        if self.members.remove(&id).is_none() {
            return;
        }
        let ranked = self.running.as_ref().is_some_and(|running| running.ranks.iter().any(|(member, _)| *member == id));
        if ranked {
            self.end_generation(&format!("{name} left ({why})"), effects);
        }
    }

    /// Drops what is pending; the remaining ranks wait for the next generation.
    fn end_generation(&mut self, why: &str, effects: &mut Vec<Effect>) {
        let Some(running) = self.running.take() else {
            return;
        };
        let mut left = Vec::new();
        for (id, _) in running.ranks {
            if let Some(member) = self.members.get_mut(&id) {
                // A remaining rank has waited long enough: the next generation begins at once.
                member.activity = Activity::Waiting(member.last_heard);
                left.push(id);
            }
        }
        self.reason = why.to_owned();
        effects.push(Effect::Pause(left, why.to_owned()));
    }

    fn drop_silent(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let limit = self.config.run.dead_after;
        let silent: Vec<MemberId> = self
            .members
            .iter()
            .filter(|(_, member)| now.saturating_duration_since(member.last_heard) > limit)
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            let why = format!("no heartbeat for {:.1} s", limit.as_secs_f64());
            effects.push(Effect::Dismiss(id, false, format!("declared dead: {why}")));
            self.left(id, &why, effects);
        }
    }

    fn advance(&mut self, now: Instant, effects: &mut Vec<Effect>) {
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
                // Ranks come to rest at the end of a round by themselves: nobody has to be told.
                self.end_generation("a round is gathered", &mut Vec::new());
                self.reason = "solving for the output projector".to_owned();
                self.solving = Some(self.unit());
                effects.push(Effect::Solve(self.unit()));
            }
            Decision::Begin(members) => self.begin(now, members, effects),
        }
    }

    fn paces<'a>(&self, members: impl Iterator<Item = &'a MemberId>) -> Vec<Pace> {
        members.map(|id| self.members.get(id).map_or_else(Pace::default, |member| member.pace)).collect()
    }

    fn begin(&mut self, now: Instant, members: Vec<MemberId>, effects: &mut Vec<Effect>) {
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
        let parts = shares::split(self.config.recipe.micro_batches(), &self.paces(members.iter()));
        let first = self.generations == 0;
        self.generations += 1;
        let generation = Generation { incarnation: self.incarnation, number: self.generations };
        let ranks: Vec<(MemberId, Range<usize>)> = members.into_iter().zip(parts).collect();
        for (rank, (id, _)) in ranks.iter().enumerate() {
            if let Some(member) = self.members.get_mut(id) {
                member.activity = Activity::Training(rank as u32);
            }
        }
        self.running = Some(Running {
            generation,
            ranks: ranks.clone(),
            way: choice.way,
            pending: VecDeque::new(),
            quiescing: None,
            since: (now, self.unit_after(&state)),
        });
        self.reason = format!("training with {} worker{}", ranks.len(), if ranks.len() == 1 { "" } else { "s" });
        effects.push(Effect::Begin(Beginning { generation, ranks, state, collective: choice, first }));
    }

    /// The resting point of a quiescing generation is reached: the shell calls this when the boundary is committed.
    pub fn at_rest(&mut self, now: Instant, generation: Generation) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.over || self.generation() != Some(generation) {
            return effects;
        }
        let why = self.running.as_ref().and_then(|running| running.quiescing).unwrap_or("workers join");
        self.end_generation(why, &mut effects);
        effects.retain(|effect| !matches!(effect, Effect::Pause(..)));
        self.advance(now, &mut effects);
        effects
    }

    fn another_split(&self, now: Instant, running: &Running) -> bool {
        let (began, first_step) = running.since;
        now.saturating_duration_since(began) >= SETTLED
            && self.unit() >= first_step + SETTLED_STEPS
            && shares::worth_another_split(&running.parts(), &self.paces(running.ranks.iter().map(|(id, _)| id)))
    }

    /// The pure decision: what to do, and why, in words.
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
        let most = run.max_workers.min(self.config.recipe.micro_batches());
        let settled = ready.iter().all(|(_, since)| now.saturating_duration_since(*since) >= run.join_debounce);

        if let Some(running) = &self.running {
            let room = most.saturating_sub(running.ranks.len());
            let training = format!("training with {} of {} workers", running.ranks.len(), self.members.len());
            if let Some(why) = running.quiescing {
                return (Decision::Wait, format!("{training}; a commit boundary is near, then {why}"));
            }
            if room == 0 || ready.is_empty() {
                if self.another_split(now, running) {
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
        // Those that outlived the last coordinator come back within a second; what is missing now may never come.
        let timeout = if self.goes_on { run.dead_after.min(run.coordinator_wait) } else { run.coordinator_wait };
        if loading == 0 && ready.len() >= run.min_workers && waited >= timeout {
            let reason = format!("{} of {wanted} workers came in {:.0} s", ready.len(), waited.as_secs_f64());
            return (Decision::Begin(members), reason);
        }
        (Decision::Wait, format!("{} of {wanted} workers are ready, {loading} loading the model", ready.len()))
    }
}
