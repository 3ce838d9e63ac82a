//! A machine whose rows are wrong from some unit on, unseen until an audit: the run goes back, and its result is right,
//! whoever is killed meanwhile and however often the coordinator dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_config::{Config, Solver};
use numalign_coordinator::machine::clean_audits::HostDevice;
use numalign_coordinator::machine::{
    Effect, Event, Generation, GenerationStart, JoinRequest, Machine, MemberId, Process, Report,
};
use numalign_data::{Schedule, Unit};
use numalign_projector::State;
use proptest::prelude::*;

use crate::fixtures::{
    PAIR, Shape, config_of, correct_states, features, fit, join_request, known_base, report, unit_of, worker_ready,
};
use crate::fixtures::{next, row};

/// A process, and its part of the present generation.
struct Worker {
    host: usize,
    member: MemberId,
    pid: u32,
    /// Of the present generation.
    rank: Option<usize>,
    state: Option<State>,
    /// The newest state that it knows to be committed, and the rollbacks before it.
    committed: Option<(State, u64)>,
}

/// What survives the coordinator.
#[derive(Default)]
struct Folder {
    checkpoints: BTreeMap<u64, State>,
    unaudited: BTreeMap<HostDevice, Arc<State>>,
    rollbacks: u64,
}

/// Machines around a coordinator; the first one is faulty.
struct World {
    config: Arc<Config>,
    machine: Machine,
    now: Instant,
    incarnation: u64,
    folder: Folder,
    workers: Vec<Worker>,
    next_member: u64,
    present: Option<GenerationStart>,
    boundary: Option<(Generation, u64)>,
    /// From this unit on, the first machine's rows are wrong.
    wrong_from: u64,
    is_excluded: bool,
    /// Wrong rows were committed.
    was_wrong: bool,
    rollbacks: u64,
    /// The faulty machine was in the generation that committed the last unit.
    was_there_at_the_end: bool,
    finished: bool,
}

impl World {
    fn new(config: Config, hosts: usize, wrong_from: u64) -> Self {
        let config = Arc::new(config);
        let mut world = Self {
            machine: Machine::new(config.clone(), 1, None, None),
            config,
            now: Instant::now(),
            incarnation: 1,
            folder: Folder::default(),
            workers: Vec::new(),
            next_member: 1,
            present: None,
            boundary: None,
            wrong_from,
            is_excluded: false,
            was_wrong: false,
            rollbacks: 0,
            was_there_at_the_end: false,
            finished: false,
        };
        for host in 0..hosts {
            world.start(host);
        }
        world
    }

    fn start(&mut self, host: usize) {
        let pid = self.next_member as u32;
        self.workers.push(Worker { host, member: MemberId(0), pid, rank: None, state: None, committed: None });
        self.join(self.workers.len() - 1);
    }

    /// Connects a process, which may have been here before.
    fn join(&mut self, index: usize) {
        let member = MemberId(self.next_member);
        self.next_member += 1;
        let rollbacks = self.folder.rollbacks;
        let worker = &mut self.workers[index];
        (worker.member, worker.rank, worker.state) = (member, None, None);
        let process = Process { host: format!("host-{}", worker.host), pid: worker.pid, namespace: 1 };
        let returns = worker.committed.is_some();
        // The service passes over states from before a rollback.
        let known = worker.committed.as_ref().filter(|(_, rollback)| *rollback == rollbacks);
        let request = JoinRequest { process, returns, ..join_request(known.map(|(state, _)| state.clone())) };
        self.feed(Event::Joined(member, request));
        self.feed(Event::Ready(member, worker_ready()));
    }

    fn feed(&mut self, event: Event) {
        if self.finished {
            return;
        }
        let effects = self.machine.handle(self.now, event);
        self.apply(effects);
    }

    fn unit(&self, state: &State) -> u64 {
        unit_of(state, &self.config)
    }

    fn is_wrong(&self, unit: u64) -> bool {
        let faulty = |(member, _): &(MemberId, _)| self.host_of(*member) == Some(0);
        unit >= self.wrong_from && self.present.as_ref().is_some_and(|present| present.ranks.iter().any(faulty))
    }

    fn host_of(&self, member: MemberId) -> Option<usize> {
        self.workers.iter().find(|worker| worker.member == member).map(|worker| worker.host)
    }

    /// The state after a rank's next unit; a wrong row spoils it.
    fn next(&self, state: &State) -> State {
        let unit = self.unit(state);
        if !self.is_wrong(unit) {
            return next(state, &self.config);
        }
        let mut spoiled = row(state);
        spoiled[1] += 0.5;
        match Schedule::of_run(&self.config).unit(unit) {
            Unit::Chunk { .. } => state.gathered(&self.config.recipe, features(unit + 100).digest()).unwrap(),
            Unit::Evaluate => state.evaluated(&self.config.recipe, &spoiled, self.config.run.eval_samples).unwrap(),
            _ => {
                let mut state = state.clone();
                state.update(&spoiled, &self.config.recipe).unwrap();
                state
            }
        }
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        let mut solving = None;
        for effect in effects {
            match effect {
                Effect::Begin(start) => {
                    self.boundary = None;
                    for worker in &mut self.workers {
                        let rank = start.ranks.iter().position(|(member, _)| *member == worker.member);
                        worker.rank = rank;
                        if rank.is_some() {
                            worker.state = Some(start.state.as_ref().clone());
                            worker.committed = Some((start.state.as_ref().clone(), start.generation.rollback));
                        }
                    }
                    self.present = Some(start);
                    self.folder.unaudited = self.machine.unaudited();
                }
                Effect::Pause(..) | Effect::Solve(_) => {
                    if let Effect::Solve(unit) = effect {
                        solving = Some(unit);
                    }
                    self.end_generation();
                }
                Effect::Quiesce(generation) => {
                    let furthest = self.workers.iter().filter(|worker| worker.rank.is_some());
                    let furthest = furthest.filter_map(|worker| worker.state.as_ref()).map(|state| self.unit(state));
                    self.boundary = furthest.max().map(|furthest| (generation, furthest));
                }
                Effect::Committed(commit) => {
                    let unit = self.unit(&commit.state);
                    self.was_wrong |= self.is_wrong(unit - 1);
                    self.was_there_at_the_end =
                        self.present.iter().flat_map(|start| &start.ranks).any(|(id, _)| self.host_of(*id) == Some(0));
                    self.committed(&commit.state);
                    if unit.is_multiple_of(3) {
                        self.folder.checkpoints.insert(unit, commit.state.as_ref().clone());
                        self.folder.unaudited = self.machine.unaudited();
                        while self.folder.checkpoints.len() > 2 {
                            self.folder.checkpoints.pop_first();
                        }
                    }
                }
                Effect::Solved(state) => self.committed(&state),
                Effect::RollBack(back) => {
                    self.rollbacks += 1;
                    self.folder.rollbacks += 1;
                    assert_eq!(back.number, self.folder.rollbacks);
                    let unit = self.unit(&back.to);
                    self.folder.checkpoints.retain(|checkpoint, _| *checkpoint <= unit);
                    self.folder.checkpoints.insert(unit, back.to.as_ref().clone());
                    self.folder.unaudited = self.machine.unaudited();
                }
                Effect::Evict(member, permanent, why) => {
                    assert!(permanent, "{why}");
                    assert_eq!(self.host_of(member), Some(0), "an honest machine is dismissed: {why}");
                    self.is_excluded = true;
                    self.workers.retain(|worker| worker.member != member);
                }
                Effect::Finished => self.finished = true,
                Effect::BaseKnown(_) => {}
                other => panic!("{other:?}"),
            }
        }
        if let Some(unit) = solving {
            self.feed(Event::Solved(unit, Ok(fit())));
        }
        if let Some((generation, limit)) = self.boundary
            && self.machine.committed().is_some_and(|state| self.unit(state) >= limit)
        {
            self.boundary = None;
            let rest = self.machine.at_rest(self.now, generation);
            self.apply(rest);
        }
    }

    fn end_generation(&mut self) {
        self.boundary = None;
        self.present = None;
        for worker in &mut self.workers {
            (worker.rank, worker.state) = (None, None);
        }
    }

    fn committed(&mut self, state: &State) {
        for worker in self.workers.iter_mut().filter(|worker| worker.rank.is_some()) {
            worker.committed = Some((state.clone(), self.folder.rollbacks));
        }
    }

    /// A rank computes its next unit.
    fn work(&mut self, pick: usize) {
        let Some(present) = &self.present else { return };
        let schedule = Schedule::of_run(&self.config);
        let limit = self.boundary.map_or(schedule.barrier_after(present.state.position()), |(_, limit)| limit);
        let committed = self.machine.committed().map_or(0, |state| self.unit(state));
        let can_work = |worker: &&Worker| {
            let unit = worker.state.as_ref().map(|state| self.unit(state));
            worker.rank.is_some() && unit.is_some_and(|unit| unit < limit && unit < committed + 2)
        };
        let able: Vec<MemberId> = self.workers.iter().filter(can_work).map(|worker| worker.member).collect();
        if able.is_empty() {
            return;
        }
        let member = able[pick % able.len()];
        let index = self.workers.iter().position(|worker| worker.member == member).unwrap();
        let (worker, generation) = (&self.workers[index], present.generation);
        let (state, rank) = (worker.state.clone().unwrap(), worker.rank.unwrap());
        let (unit, after) = (self.unit(&state), self.next(&state));
        let mut report = report(&self.config, generation, rank, &after);
        if self.is_wrong(unit) && report.features.is_some() {
            report.features = Some(features(unit + 100));
        }
        if self.workers[index].host == 0 && unit >= self.wrong_from {
            for (_, digest) in &mut report.rows {
                digest[3] ^= 8;
            }
        }
        self.workers[index].state = Some(after);
        self.feed(Event::Reported(member, Report { generation, ..report }));
    }

    fn kill(&mut self, pick: usize) {
        if self.workers.is_empty() {
            return;
        }
        let worker = self.workers.remove(pick % self.workers.len());
        self.feed(Event::Left(worker.member, "killed".to_owned()));
        if worker.host > 0 || !self.is_excluded {
            self.start(worker.host);
        }
    }

    fn lose_connection(&mut self, pick: usize) {
        if !self.workers.is_empty() {
            let index = pick % self.workers.len();
            self.feed(Event::Left(self.workers[index].member, "its stream ended".to_owned()));
            self.join(index);
        }
    }

    /// The coordinator dies; the next one has the newest checkpoint.
    fn restart(&mut self) {
        self.incarnation += 1;
        self.end_generation();
        let newest = self.folder.checkpoints.last_key_value().map(|(_, state)| state.clone());
        let base = newest.as_ref().map(|_| known_base());
        self.machine = Machine::new(self.config.clone(), self.incarnation, newest, base)
            .with_rollbacks(self.folder.rollbacks, self.folder.unaudited.clone());
        for index in 0..self.workers.len() {
            self.join(index);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let members: Vec<MemberId> = self.workers.iter().map(|worker| worker.member).collect();
        for member in members {
            self.feed(Event::Heartbeat(member));
        }
        self.feed(Event::Tick);
    }

    fn act(&mut self, kind: u8, pick: u16) {
        if self.finished {
            return;
        }
        let pick = usize::from(pick);
        match kind {
            0 | 1 => self.kill(pick),
            2 | 3 => self.lose_connection(pick),
            4 => self.restart(),
            5..12 => self.pass(Duration::from_millis(250)),
            _ => self.work(pick),
        }
    }

    fn finish(&mut self) {
        for turn in 0..4000 {
            if self.finished {
                return;
            }
            self.pass(Duration::from_millis(250));
            for pick in 0..6 {
                self.work(turn + pick);
            }
        }
        panic!("stuck: {}", self.machine.reason());
    }
}

/// A run of so many steps with everything that is a row.
fn shape(hosts: usize, steps: u64, solver: Solver, every: u64, evaluate_every: u64) -> Shape {
    // One rank alone is never audited.
    Shape { workers: hosts, min_workers: 2, micro_batches: 7, steps, solver, every, chunks: 2, evaluate_every, ..PAIR }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_machine_computes_wrong_is_not_in_the_result(
        hosts in 3usize..6,
        steps in 1u64..30,
        solver in prop_oneof![3 => Just(Solver::Adam), 1 => Just(Solver::Exact), 2 => Just(Solver::Alternate)],
        (every, evaluate_every, audit_every) in (1u64..8, 0u64..5, 1u64..9),
        wrong_from in 0u64..40,
        actions in prop::collection::vec((0u8..90, any::<u16>()), 0..300),
    ) {
        let mut config = config_of(shape(hosts, steps, solver, every, evaluate_every));
        config.run.audit_every = audit_every;
        let correct = correct_states(&config);
        let mut world = World::new(config, hosts, wrong_from);
        for (kind, pick) in actions {
            world.act(kind, pick);
        }
        world.finish();
        // What a machine computed that left for good, nobody audits any more.
        if !world.was_wrong || world.is_excluded || world.was_there_at_the_end {
            let last = world.machine.committed().unwrap();
            prop_assert_eq!(last.as_ref(), correct.last().unwrap());
        }
    }
}

#[test]
fn the_run_goes_back_to_the_last_clean_audit_and_no_further() {
    let mut config = config_of(shape(3, 40, Solver::Adam, 0, 0));
    config.run.audit_every = 5;
    let correct = correct_states(&config);
    let mut world = World::new(config, 3, 20);
    world.finish();
    assert!(world.was_wrong && world.is_excluded);
    assert_eq!((world.rollbacks, world.machine.committed().map(|state| state.as_ref())), (1, correct.last()));
    let to = world.folder.checkpoints.keys().next();
    assert!(to.is_some(), "the folder knows where it went on");
}

/// The property above must not be true of nothing.
#[test]
fn the_worlds_meet_wrong_rows_and_rollbacks() {
    let (mut rollbacks, mut right_again) = (0, 0);
    for seed in 0..60u64 {
        let solver = [Solver::Adam, Solver::Exact, Solver::Alternate][seed as usize % 3];
        let mut config = config_of(shape(3 + seed as usize % 3, 12 + seed % 9, solver, 4, 3));
        config.run.audit_every = 1 + seed % 6;
        let mut world = World::new(config, 3 + seed as usize % 3, seed % 11);
        for action in 0..200u64 {
            let random = seed.wrapping_mul(0x9e37_79b9).wrapping_add(action.wrapping_mul(0x85eb_ca6b)) >> 7;
            world.act((random % 90) as u8, (random >> 8) as u16);
        }
        world.finish();
        rollbacks += world.rollbacks;
        right_again += u64::from(world.was_wrong && world.is_excluded);
    }
    assert!(rollbacks > 10 && right_again > 10, "{rollbacks} rollbacks, {right_again} runs right again");
}
