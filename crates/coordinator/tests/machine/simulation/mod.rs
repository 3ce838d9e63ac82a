//! Simulated workers around the machine: they join, load, compute, fall silent, die and come back, and so does the
//! coordinator. Every property of the protocol is checked on the way.

mod effects;
mod workers;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_config::Config;
use numalign_coordinator::machine::clean_audits::HostDevice;
use numalign_coordinator::machine::{Activity, Cause, Event, Generation, GenerationStart, Machine, MemberId};
use numalign_coordinator::rpc::dispatch::Dispatcher;
use numalign_projector::State;

use crate::fixtures::{Shape, config_of, correct_states, known_base, report, unit_of};

/// A worker's part in a generation.
struct Task {
    generation: Generation,
    rank: usize,
    state: State,
    /// Work of steps below this has arrived.
    claimed: u64,
}

/// From the coordinator to a worker.
enum News {
    Begin(Generation, usize, Arc<State>),
    Pause,
    Committed(u64),
    Abort(bool),
    Done,
}

/// A connection; each direction keeps its order, and arrives when the simulation says so.
struct Link {
    to_coordinator: VecDeque<Event>,
    to_worker: VecDeque<News>,
}

/// A worker process.
struct Worker {
    alive: bool,
    /// Stopped: it neither reads nor computes nor sends, until it is woken.
    silent: bool,
    loaded: bool,
    link: Option<MemberId>,
    task: Option<Task>,
    /// As in the worker crate: the first one is the newest state that is certainly committed.
    recent: BTreeMap<u64, State>,
    /// Rollbacks of the run before them.
    rollback: u64,
}

/// Workers around a machine whose effects are applied as the driver does, with every property checked on the way.
pub struct Simulation {
    config: Arc<Config>,
    correct: Vec<State>,
    machine: Machine,
    incarnation: u64,
    now: Instant,
    dispatcher: Dispatcher,
    boundary: Option<(Generation, u64)>,
    links: BTreeMap<MemberId, Link>,
    workers: Vec<Worker>,
    next_member: u64,
    checkpoint: Option<State>,
    /// What the checkpoint's folder says besides.
    unaudited: BTreeMap<HostDevice, Arc<State>>,
    rollbacks: u64,
    /// The present generation as it began.
    present: Option<GenerationStart>,
    /// Generations begun in this life of the coordinator.
    generations: u64,
    /// Where this life has to start from, by its checkpoint and the rejoin states that came.
    start: u64,
    /// Units committed in this life, or before it where it started.
    committed: u64,
    /// Units that were ever committed.
    furthest: u64,
    /// The unit of which a row was spoiled last.
    spoiled: Option<u64>,
    /// A solution is being worked on.
    solving: Option<u64>,
    delivered: HashSet<(Generation, MemberId, u64)>,
    /// This life of the coordinator knows the frozen model.
    base_known: bool,
    finished: bool,
    pub met: Met,
}

/// What a simulation went through.
#[derive(Debug, Default)]
pub struct Met {
    pub generations: u64,
    pub joins_at_rest: u64,
    pub pauses: u64,
    pub silent_deaths: u64,
    pub late_reports: u64,
    pub rejoin_states_ahead: u64,
    pub repeated_endings: u64,
    pub turned_away: u64,
    pub recomputed: u64,
    pub dismissed: u64,
    pub solutions: u64,
    pub rewound: u64,
    pub rollbacks: u64,
}

impl Simulation {
    pub fn new(shape: Shape) -> Self {
        let config = Arc::new(config_of(shape));
        Self {
            correct: correct_states(&config),
            machine: Machine::new(config.clone(), 1, None, None),
            config,
            incarnation: 1,
            now: Instant::now(),
            dispatcher: Dispatcher::default(),
            boundary: None,
            links: BTreeMap::new(),
            workers: Vec::new(),
            next_member: 1,
            checkpoint: None,
            unaudited: BTreeMap::new(),
            rollbacks: 0,
            present: None,
            generations: 0,
            start: 0,
            committed: 0,
            furthest: 0,
            spoiled: None,
            solving: None,
            delivered: HashSet::new(),
            base_known: false,
            finished: false,
            met: Met::default(),
        }
    }

    /// Ranks that a generation can have at most.
    fn most(&self) -> usize {
        self.config.run.max_workers.min(self.config.recipe.micro_batches())
    }

    fn feed(&mut self, event: Event) {
        if self.finished {
            return;
        }
        if let Event::Reported(member, report) = &event {
            if self.machine.generation() != Some(report.generation) {
                return self.feed_late(event);
            }
            self.delivered.insert((report.generation, *member, report.unit));
        }
        let joined = match &event {
            Event::Joined(member, join_request) => Some((*member, join_request.rejoin_state.clone())),
            _ => None,
        };
        let effects = self.machine.handle(self.now, event);
        if let Some((member, Some(rejoin_state))) = joined
            && self.machine.members().contains_key(&member)
            && self.generations == 0
        {
            // The sums of a round died with their coordinator.
            let rewound = rejoin_state.rewound(&self.config.recipe);
            self.met.rewound += u64::from(rewound != rejoin_state);
            self.start = self.start.max(unit_of(&rewound, &self.config));
        }
        self.apply_effects(effects);
    }

    /// The number of units of the run.
    fn total(&self) -> u64 {
        self.correct.len() as u64 - 1
    }

    /// A report of another generation changes nothing.
    fn feed_late(&mut self, event: Event) {
        // So that nothing else is due at this moment.
        self.feed(Event::Tick);
        self.met.late_reports += 1;
        let before = (self.machine.generation(), self.machine.committed().cloned(), self.machine.reason().to_owned());
        let effects = self.machine.handle(self.now, event);
        let after = (self.machine.generation(), self.machine.committed().cloned(), self.machine.reason().to_owned());
        assert_eq!(effects, Vec::new(), "a late report had an effect");
        assert_eq!(before, after);
    }

    /// The coordinator dies; another one starts, with a checkpoint or without.
    fn restart(&mut self, with_checkpoint: bool) {
        let checkpoint = self.checkpoint.clone().filter(|_| with_checkpoint);
        let base = checkpoint.as_ref().map(|_| known_base());
        self.base_known = checkpoint.is_some();
        self.incarnation += 1;
        self.start = checkpoint.as_ref().map_or(0, |state| unit_of(state, &self.config));
        self.committed = self.start;
        self.solving = None;
        // Without a checkpoint the folder is lost, and with it what it says.
        let unaudited = std::mem::take(&mut self.unaudited);
        self.rollbacks = if checkpoint.is_some() { self.rollbacks } else { 0 };
        self.machine = Machine::new(self.config.clone(), self.incarnation, checkpoint, base)
            .with_rollbacks(self.rollbacks, unaudited);
        self.dispatcher = Dispatcher::default();
        self.boundary = None;
        self.present = None;
        self.generations = 0;
        self.finished = false;
        self.links.clear();
        self.delivered.clear();
        for worker in &mut self.workers {
            worker.link = None;
            worker.task = None;
        }
    }

    /// A report that belongs to no generation of this life, or to an earlier one.
    fn send_foreign(&mut self, pick: usize) {
        let Some(member) = self.machine.members().keys().nth(pick % 3).copied() else {
            return;
        };
        let generation = match pick % 2 {
            0 => Generation { incarnation: self.incarnation + 1, number: self.generations, rollback: self.rollbacks },
            _ => Generation { incarnation: self.incarnation, number: self.generations + 1, rollback: self.rollbacks },
        };
        let mut wrong = self.correct[self.committed as usize].clone();
        let noise = vec![1.0; wrong.layout().row_len()];
        wrong.update(&noise, &self.config.recipe).unwrap();
        let report = report(&self.config, generation, 0, &wrong);
        self.feed(Event::Reported(member, report));
    }

    /// A rank's row of the next unit is not finite, once: a machine's hiccup. Another rank computes it again.
    fn spoil_row(&mut self, pick: usize) {
        let Some(generation) = self.machine.generation().filter(|_| self.ranks() > 1 && self.calm()) else {
            return;
        };
        self.spoiled = Some(self.committed);
        self.met.recomputed += 1;
        let bad = vec![pick % self.config.recipe.micro_batches()];
        self.feed(Event::NotFinite(generation, self.committed, bad));
    }

    fn ranks(&self) -> usize {
        self.present.as_ref().map_or(0, |present| present.ranks.len())
    }

    /// No row of the next unit was spoiled yet: a second one would mean that the training diverged.
    fn calm(&self) -> bool {
        self.spoiled != Some(self.committed)
    }

    /// A worker that is loading finds that it cannot, while others train.
    fn fail_to_load(&mut self, pick: usize) {
        let is_loading = |id: &&MemberId| self.machine.members()[*id].activity == Activity::Loading;
        let loading: Vec<MemberId> = self.machine.members().keys().filter(is_loading).copied().collect();
        if loading.is_empty() || self.ranks() == 0 {
            return;
        }
        let id = loading[pick % loading.len()];
        let generation = self.machine.generation();
        self.feed(Event::PermanentFailure(id, Cause::Machine, "no memory".to_owned()));
        assert_eq!(self.machine.generation(), generation, "nobody else is disturbed");
    }

    /// Workers that can act.
    fn awake(&self) -> Vec<usize> {
        let able = |index: &usize| self.workers[*index].alive && !self.workers[*index].silent;
        (0..self.workers.len()).filter(able).collect()
    }

    pub fn act(&mut self, kind: u8, pick: u16) {
        let pick = usize::from(pick);
        // What goes wrong is rarer than what goes on.
        let kind = match kind {
            100..160 => 4,
            160..200 => 64,
            200.. => 99,
            rare => rare,
        };
        let living = self.workers.iter().filter(|worker| worker.alive).count();
        if kind < 4 && living < 6 {
            return self.spawn();
        }
        let awake = self.awake();
        let links: Vec<MemberId> = self.links.keys().copied().collect();
        if kind < 35 && !links.is_empty() {
            return self.deliver(links[pick % links.len()]);
        }
        if (37..43).contains(&kind) {
            return self.pass(Duration::from_millis(pick as u64 % 1000));
        }
        match kind {
            43 => return self.restart(pick.is_multiple_of(2)),
            44 | 45 => return self.send_foreign(pick),
            35 => return self.spoil_row(pick),
            36 => return self.fail_to_load(pick),
            46 => {
                for worker in &mut self.workers {
                    worker.silent = false;
                }
                return;
            }
            _ => {}
        }
        if awake.is_empty() {
            return;
        }
        let index = awake[pick % awake.len()];
        match kind {
            47 => self.kill(index, pick / awake.len() % 4),
            48 => self.hang_up(index),
            49 => self.workers[index].silent = true,
            50..57 => self.connect(index),
            57..64 => self.load(index),
            64..76 => self.read(index),
            _ => self.work(index, pick.is_multiple_of(2)),
        }
    }

    /// From here on nobody dies; those that are silent stay so.
    pub fn finish(&mut self) {
        for _ in 0..1000 {
            if self.finished {
                break;
            }
            if self.awake().len() < self.config.run.min_workers {
                self.spawn();
            }
            for index in self.awake() {
                self.connect(index);
                self.load(index);
                self.read(index);
                self.work(index, false);
                self.work(index, false);
            }
            let links: Vec<MemberId> = self.links.keys().copied().collect();
            for member in links {
                while self.links.get(&member).is_some_and(|link| !link.to_coordinator.is_empty()) {
                    self.deliver(member);
                }
            }
            self.pass(Duration::from_millis(250));
        }
        assert!(self.finished, "stuck at step {}: {}", self.committed, self.machine.reason());
        let total = self.total();
        let last = self.machine.committed().expect("a finished run has a state");
        assert_eq!(**last, self.correct[total as usize]);
        assert!(self.furthest == total && (self.committed == total || self.start == total));
        assert_eq!(self.machine.phase(), "done");
        assert_eq!(self.machine.handle(self.now, Event::Tick), Vec::new());
    }
}
