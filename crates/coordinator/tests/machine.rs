//! The coordinator's state machine against simulated workers, and its rules one by one.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_config::{CollectiveChoice, Config, Layer, Solver, Unit, resolve};
use numalign_coordinator::collective::{NcclAbility, Way};
use numalign_coordinator::machine::{
    Activity, Beginning, Effect, Event, Generation, Introduction, Machine, MemberId, Readiness, Report, Timing,
};
use numalign_coordinator::work::{Claim, WorkBoard};
use numalign_projector::{Features, Fit, State};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

const HIDDEN: usize = 3;
const FINGERPRINT: &str = "0123456789abcdef0123";

// --- settings, states and messages ------------------------------------------------------------------------------

/// How many workers, and how much work.
#[derive(Debug, Clone, Copy)]
struct Shape {
    workers: usize,
    min_workers: usize,
    max_workers: usize,
    micro_batches: usize,
    steps: u64,
    solver: Solver,
    /// Steps between rounds of `alternate`, and chunks of a round.
    every: u64,
    chunks: u64,
    /// Steps between evaluations.
    evaluate_every: u64,
}

const PAIR: Shape = Shape {
    workers: 2,
    min_workers: 1,
    max_workers: 64,
    micro_batches: 4,
    steps: 6,
    solver: Solver::Adam,
    every: 0,
    chunks: 0,
    evaluate_every: 0,
};

fn config_of(shape: Shape) -> Config {
    let nothing: [(&str, String); 0] = [];
    let mut config = resolve(None, Layer::from_env([]), Layer::from_flags(nothing)).unwrap();
    config.recipe.num_epochs = shape.steps;
    config.recipe.num_batches = 1;
    config.run.eval_every = shape.evaluate_every;
    config.recipe.batch_size = shape.micro_batches;
    config.recipe.micro_batch_size = 1;
    config.recipe.solver = shape.solver;
    if shape.solver == Solver::Alternate {
        config.recipe.solve_every = Some(shape.every);
        config.recipe.solve_samples = Some(shape.chunks * shape.micro_batches as u64);
    }
    config.run.workers = shape.workers;
    config.run.min_workers = shape.min_workers;
    config.run.max_workers = shape.max_workers;
    config.run.dead_after = Duration::from_secs(3);
    config.run.join_debounce = Duration::from_millis(200);
    config.run.coordinator_wait = Duration::from_secs(5);
    config.run.audit_every = 2;
    config
}

/// The reduced row of a step: the same for every rank.
fn row(state: &State) -> Vec<f32> {
    let float = |i: usize| ((state.step() as usize * 31 + i * 17) % 23) as f32 - 11.0;
    (0..state.layout().row_len()).map(float).collect()
}

/// What a chunk gathers: the same for every rank.
fn features(unit: u64) -> Arc<Features> {
    let floats = (0..2 * (HIDDEN + 1)).map(|i| ((unit as usize * 13 + i * 7) % 19) as f32 - 9.0);
    Arc::new(Features::new(HIDDEN, floats.collect()).unwrap())
}

/// The solution of every round.
fn fit() -> Fit {
    Fit { weight: vec![0.5; HIDDEN], bias: -1.0, ridge: 1e-6, held_out_error: 0.25 }
}

/// Units behind a state.
fn unit_of(state: &State, config: &Config) -> u64 {
    config.units().index(state.position())
}

/// The state after a rank's next unit.
fn next(state: &State, config: &Config) -> State {
    let unit = unit_of(state, config);
    if let Unit::Chunk { .. } = config.units().unit(unit) {
        return state.gathered(&config.recipe, features(unit).digest()).unwrap();
    }
    if config.units().unit(unit) == Unit::Evaluate {
        return state.evaluated(&config.recipe, &row(state), config.run.eval_samples).unwrap();
    }
    let mut state = state.clone();
    state.update(&row(&state), &config.recipe).unwrap();
    state
}

/// What is right: the states after 0, 1, … units.
fn correct_states(config: &Config) -> Vec<State> {
    let mut state = State::initial(HIDDEN, config.recipe.seed).prepared(&config.recipe);
    let mut states = vec![state.clone()];
    loop {
        state = match config.units().next(state.position()) {
            Unit::Step(_) | Unit::Chunk { .. } | Unit::Evaluate => next(&state, config),
            Unit::Solve => state.solved(&fit()),
            Unit::End => return states,
        };
        states.push(state.clone());
    }
}

fn introduction(rejoin_state: Option<State>) -> Introduction {
    Introduction { host: "host".to_owned(), pid: 7, restarts: 0, rejoin_state }
}

fn readiness() -> Readiness {
    Readiness {
        base_fingerprint: FINGERPRINT.to_owned(),
        hidden_size: HIDDEN,
        model_parameters: 1000,
        weights: "random".to_owned(),
        device: "cpu".to_owned(),
        probe_digest: vec![1, 2, 3],
        layer_norms: Vec::new(),
        layer_norm_values: Vec::new(),
        nccl: Err("no GPU".to_owned()),
    }
}

/// Digests of every row of a step, as honest ranks have them. A real rank has only those that it computed.
fn rows_of(step: u64) -> Vec<(usize, [u8; 32])> {
    (0..8)
        .map(|micro_batch| (micro_batch, [(step as u8).wrapping_mul(31).wrapping_add(micro_batch as u8); 32]))
        .collect()
}

/// A rank's report that it made `after` out of the state before.
fn report(config: &Config, generation: Generation, rank: usize, after: &State) -> Report {
    let unit = unit_of(after, config) - 1;
    let is_chunk = matches!(config.units().unit(unit), Unit::Chunk { .. });
    Report {
        generation,
        unit,
        features: (is_chunk && rank == 0).then(|| features(unit)),
        loss: 0.5,
        digest: after.digest(),
        state: (rank == 0).then(|| after.clone()),
        rows: rows_of(after.step() - 1),
        timing: Timing::default(),
    }
}

// --- the simulation ---------------------------------------------------------------------------------------------

/// Steps of work that a simulated worker takes ahead.
const PREFETCH: u64 = 3;

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
}

/// Workers around a machine whose effects are carried out as the shell does, with every property checked on the way.
struct Simulation {
    config: Arc<Config>,
    correct: Vec<State>,
    machine: Machine,
    incarnation: u64,
    now: Instant,
    board: WorkBoard,
    boundary: Option<(Generation, u64)>,
    links: BTreeMap<MemberId, Link>,
    workers: Vec<Worker>,
    next_member: u64,
    checkpoint: Option<State>,
    /// The present generation as it began.
    present: Option<Beginning>,
    /// Generations begun in this life of the coordinator.
    generations: u64,
    /// Where this life has to start from, by its checkpoint and the rejoin states that came.
    start: u64,
    /// Units committed in this life, or before it where it started.
    committed: u64,
    /// Units that were ever committed.
    furthest: u64,
    /// A solution is being worked on.
    solving: Option<u64>,
    delivered: HashSet<(Generation, MemberId, u64)>,
    /// This life of the coordinator knows the frozen model.
    base_known: bool,
    finished: bool,
    met: Met,
}

/// What a simulation went through.
#[derive(Debug, Default)]
struct Met {
    generations: u64,
    joins_at_rest: u64,
    pauses: u64,
    silent_deaths: u64,
    late_reports: u64,
    rejoin_states_ahead: u64,
    repeated_endings: u64,
    solutions: u64,
    rewound: u64,
}

impl Simulation {
    fn new(shape: Shape) -> Self {
        let config = Arc::new(config_of(shape));
        Self {
            correct: correct_states(&config),
            machine: Machine::new(config.clone(), 1, None, None),
            config,
            incarnation: 1,
            now: Instant::now(),
            board: WorkBoard::default(),
            boundary: None,
            links: BTreeMap::new(),
            workers: Vec::new(),
            next_member: 1,
            checkpoint: None,
            present: None,
            generations: 0,
            start: 0,
            committed: 0,
            furthest: 0,
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

    // What the coordinator does.

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
            Event::Joined(member, introduction) => Some((*member, introduction.rejoin_state.clone())),
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
        self.carry_out(effects);
    }

    /// The number of units of the run.
    fn total(&self) -> u64 {
        self.correct.len() as u64 - 1
    }

    fn tell_committed(&mut self, unit: u64) {
        let members: Vec<MemberId> = self.links.keys().copied().collect();
        for member in members {
            self.tell(member, News::Committed(unit));
        }
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

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            assert!(!self.finished, "{effect:?} after the end");
            match effect {
                Effect::BaseKnown(base) => {
                    assert_eq!(base, readiness());
                    self.base_known = true;
                }
                Effect::Begin(beginning) => self.begin(beginning),
                Effect::Pause(members, why) => {
                    assert!(!why.is_empty());
                    self.met.pauses += 1;
                    self.board.end();
                    self.boundary = None;
                    self.present = None;
                    for member in members {
                        self.tell(member, News::Pause);
                    }
                }
                Effect::HandOut(..) => panic!("nobody reduces over NCCL"),
                Effect::Quiesce(generation) => {
                    assert_eq!(self.present.as_ref().map(|present| present.generation), Some(generation));
                    assert_eq!(self.boundary, None, "quiesced twice");
                    self.boundary = self.board.quiesce(generation).map(|limit| (generation, limit));
                }
                Effect::Committed(commit) => {
                    let step = unit_of(&commit.state, &self.config);
                    let is_chunk = matches!(self.config.units().unit(step - 1), Unit::Chunk { .. });
                    assert_eq!(commit.features, is_chunk.then(|| features(step - 1)));
                    assert_eq!(step, self.committed + 1, "a unit was skipped or committed twice");
                    assert_eq!(*commit.state, self.correct[step as usize]);
                    let present = self.present.as_ref().expect("a commit without a generation");
                    assert_eq!(commit.world, present.ranks.len());
                    for (member, _) in &present.ranks {
                        let known = self.delivered.contains(&(present.generation, *member, step - 1));
                        assert!(known, "step {step} was committed without a report of {member:?}");
                    }
                    self.committed = step;
                    self.furthest = self.furthest.max(step);
                    if step.is_multiple_of(4) {
                        self.checkpoint = Some(commit.state.as_ref().clone());
                    }
                    self.tell_committed(step);
                }
                Effect::Solve(unit) => {
                    assert_eq!(unit, self.committed.max(self.start));
                    assert_ne!(self.solving, Some(unit), "solved twice at once");
                    self.solving = Some(unit);
                    self.board.end();
                    self.boundary = None;
                    self.present = None;
                }
                Effect::Solved(state) => {
                    self.committed = self.committed.max(self.start) + 1;
                    self.furthest = self.furthest.max(self.committed);
                    assert_eq!(*state, self.correct[self.committed as usize]);
                    self.met.solutions += 1;
                    self.tell_committed(self.committed);
                }
                Effect::Dismiss(member, permanent, why) => {
                    assert!(!why.is_empty());
                    self.met.silent_deaths += u64::from(!permanent);
                    self.tell(member, News::Abort(permanent));
                }
                Effect::Finished => {
                    assert!(self.base_known, "the result cannot say which model it belongs to");
                    assert_eq!(self.committed.max(self.start), self.total());
                    self.finished = true;
                    self.met.repeated_endings += u64::from(self.generations == 0);
                    let members: Vec<MemberId> = self.links.keys().copied().collect();
                    for member in members {
                        self.tell(member, News::Done);
                    }
                }
                Effect::Failed(why, _) => panic!("the run failed: {why}"),
            }
        }
        if let Some((generation, limit)) = self.boundary
            && self.committed >= limit
        {
            self.boundary = None;
            self.check_rest(limit);
            self.met.joins_at_rest += 1;
            let rest = self.machine.at_rest(self.now, generation);
            self.carry_out(rest);
        }
        self.check_reason();
    }

    fn begin(&mut self, beginning: Beginning) {
        self.generations += 1;
        let generation = Generation { incarnation: self.incarnation, number: self.generations };
        assert_eq!(beginning.generation, generation);
        assert_eq!(beginning.first, self.generations == 1);
        self.met.generations += 1;
        if beginning.first {
            let checkpoint = self.checkpoint.as_ref().map_or(0, |state| unit_of(state, &self.config));
            self.met.rejoin_states_ahead += u64::from(self.start > checkpoint);
            self.committed = self.committed.max(self.start);
        }
        let unit = unit_of(&beginning.state, &self.config);
        assert_eq!(unit, self.committed, "a committed unit was lost, a rejoin state's or the checkpoint's");
        assert_eq!(*beginning.state, self.correct[self.committed as usize]);

        let mut end = 0;
        let mut seen = HashSet::new();
        for (rank, (member, part)) in beginning.ranks.iter().enumerate() {
            assert!(seen.insert(*member));
            assert_eq!(part.start, end);
            assert!(!part.is_empty(), "rank {rank} has nothing to do");
            end = part.end;
            let known = &self.machine.members()[member];
            assert!(known.readiness.is_some());
            assert_eq!(known.activity, Activity::Training(rank as u32));
        }
        assert_eq!(end, self.config.recipe.micro_batches());
        let world = beginning.ranks.len();
        assert!(world >= self.config.run.min_workers.min(self.most()) && world <= self.most());
        assert!(world == self.most() || self.ready() == 0, "a ready worker was left out");

        self.boundary = None;
        self.board.begin(&beginning, self.config.units());
        for (rank, (member, _)) in beginning.ranks.iter().enumerate() {
            self.tell(*member, News::Begin(generation, rank, beginning.state.clone()));
        }
        self.present = Some(beginning);
    }

    /// Nobody's step is thrown away when a generation comes to rest.
    fn check_rest(&self, limit: u64) {
        for worker in &self.workers {
            if let (Some(task), Some(present)) = (&worker.task, &self.present)
                && task.generation == present.generation
            {
                assert_eq!(unit_of(&task.state, &self.config), limit);
            }
        }
    }

    fn check_reason(&self) {
        let reason = self.machine.reason();
        assert!(!reason.is_empty());
        if self.finished || self.machine.generation().is_some() {
            return;
        }
        if self.machine.phase() == "solving" {
            assert!(reason.contains("solving"), "{reason}");
            return;
        }
        let needed = self.config.run.min_workers.min(self.most());
        assert!(self.generations == 0 || self.ready() < needed, "nothing begins: {reason}");
        let names = ["waiting for", "loading the model", "are ready"].iter().any(|words| reason.contains(words));
        assert!(names && reason.contains("worker"), "`{reason}` does not name what is waited for");
    }

    /// Members that are ready and have no rank.
    fn ready(&self) -> usize {
        self.machine.members().values().filter(|member| matches!(member.activity, Activity::Waiting(_))).count()
    }

    fn tell(&mut self, member: MemberId, news: News) {
        if let Some(link) = self.links.get_mut(&member) {
            link.to_worker.push_back(news);
        }
    }

    /// The coordinator dies; another one starts, with a checkpoint or without.
    fn restart(&mut self, with_checkpoint: bool) {
        let checkpoint = self.checkpoint.clone().filter(|_| with_checkpoint);
        let fingerprint = checkpoint.as_ref().map(|_| FINGERPRINT.to_owned());
        self.base_known = checkpoint.is_some();
        self.incarnation += 1;
        self.start = checkpoint.as_ref().map_or(0, |state| unit_of(state, &self.config));
        self.committed = self.start;
        self.solving = None;
        self.machine = Machine::new(self.config.clone(), self.incarnation, checkpoint, fingerprint);
        self.board = WorkBoard::default();
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

    // What workers do.

    fn spawn(&mut self) {
        let worker =
            Worker { alive: true, silent: false, loaded: false, link: None, task: None, recent: BTreeMap::new() };
        self.workers.push(worker);
    }

    fn send(&mut self, member: MemberId, event: Event) {
        if let Some(link) = self.links.get_mut(&member) {
            link.to_coordinator.push_back(event);
        }
    }

    fn connect(&mut self, index: usize) {
        let member = MemberId(self.next_member);
        let worker = &mut self.workers[index];
        if worker.link.is_some() {
            return;
        }
        self.next_member += 1;
        worker.link = Some(member);
        let rejoin_state = worker.recent.values().next().cloned();
        let loaded = worker.loaded;
        if let Some(state) = &rejoin_state {
            let unit = unit_of(state, &self.config);
            assert_eq!(*state, self.correct[unit as usize]);
            assert!(unit <= self.furthest, "a worker takes an uncommitted state for committed");
        }
        self.links.insert(member, Link { to_coordinator: VecDeque::new(), to_worker: VecDeque::new() });
        self.send(member, Event::Joined(member, introduction(rejoin_state)));
        if loaded {
            self.send(member, Event::Ready(member, readiness()));
        }
    }

    fn load(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if let Some(member) = worker.link
            && !worker.loaded
        {
            worker.loaded = true;
            self.send(member, Event::Ready(member, readiness()));
        }
    }

    /// The worker reads one message.
    fn read(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let Some(link) = worker.link.and_then(|member| self.links.get_mut(&member)) else {
            return;
        };
        match link.to_worker.pop_front() {
            Some(News::Begin(generation, rank, state)) => {
                let state = state.as_ref().clone();
                let unit = unit_of(&state, &self.config);
                worker.recent = BTreeMap::from([(unit, state.clone())]);
                worker.task = Some(Task { generation, rank, claimed: unit, state });
            }
            Some(News::Pause) => worker.task = None,
            Some(News::Committed(step)) if worker.recent.contains_key(&step) => {
                worker.recent = worker.recent.split_off(&step);
            }
            Some(News::Abort(false)) => self.hang_up(index),
            Some(News::Abort(true) | News::Done) => {
                self.hang_up(index);
                self.workers[index].alive = false;
            }
            Some(News::Committed(_)) | None => {}
        }
    }

    /// Takes work where there is some, else computes a step of what it has.
    fn work(&mut self, index: usize, eager: bool) {
        let Worker { link: Some(member), task: Some(task), recent, .. } = &mut self.workers[index] else {
            return;
        };
        let step = unit_of(&task.state, &self.config);
        if (eager || task.claimed == step)
            && task.claimed < step + PREFETCH
            && self.board.claim(task.generation, task.claimed) == Claim::Send
        {
            task.claimed += 1;
            return;
        }
        if step < task.claimed {
            task.state = next(&task.state, &self.config);
            recent.insert(step + 1, task.state.clone());
            let (member, report) = (*member, report(&self.config, task.generation, task.rank, &task.state));
            self.send(member, Event::Reported(member, report));
        }
    }

    /// The connection ends; what was sent on it still arrives, before its end does.
    fn hang_up(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.task = None;
        if let Some(member) = worker.link.take() {
            self.send(member, Event::Left(member, "its stream ended".to_owned()));
        }
    }

    fn kill(&mut self, index: usize, arriving: usize) {
        let link = self.workers[index].link.and_then(|member| self.links.get_mut(&member));
        if let Some(link) = link {
            link.to_coordinator.truncate(arriving);
        }
        self.hang_up(index);
        self.workers[index].alive = false;
    }

    /// One message of one connection arrives.
    fn deliver(&mut self, member: MemberId) {
        let Some(event) = self.links.get_mut(&member).and_then(|link| link.to_coordinator.pop_front()) else {
            return;
        };
        if matches!(event, Event::Left(..)) {
            self.links.remove(&member);
        }
        self.feed(event);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let beating: Vec<MemberId> =
            self.workers.iter().filter(|worker| !worker.silent).filter_map(|worker| worker.link).collect();
        for member in beating {
            self.feed(Event::Heartbeat(member));
        }
        self.feed(Event::Tick);
        if let Some(unit) = self.solving.take() {
            self.feed(Event::Solved(unit, Ok(fit())));
        }
    }

    /// A report that belongs to no generation of this life, or to an earlier one.
    fn send_foreign(&mut self, pick: usize) {
        let Some(member) = self.machine.members().keys().nth(pick % 3).copied() else {
            return;
        };
        let generation = match pick % 2 {
            0 => Generation { incarnation: self.incarnation + 1, number: self.generations },
            _ => Generation { incarnation: self.incarnation, number: self.generations + 1 },
        };
        let mut wrong = self.correct[self.committed as usize].clone();
        let noise = vec![1.0; wrong.layout().row_len()];
        wrong.update(&noise, &self.config.recipe).unwrap();
        let report = report(&self.config, generation, 0, &wrong);
        self.feed(Event::Reported(member, report));
    }

    /// Workers that can act.
    fn awake(&self) -> Vec<usize> {
        let able = |index: &usize| self.workers[*index].alive && !self.workers[*index].silent;
        (0..self.workers.len()).filter(able).collect()
    }

    fn act(&mut self, kind: u8, pick: u16) {
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
        if kind < 43 {
            return self.pass(Duration::from_millis(pick as u64 % 1000));
        }
        match kind {
            43 => return self.restart(pick.is_multiple_of(2)),
            44 | 45 => return self.send_foreign(pick),
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
    fn finish(&mut self) {
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

fn shapes() -> impl Strategy<Value = Shape> {
    let solver = prop_oneof![3 => Just(Solver::Adam), 1 => Just(Solver::Exact), 2 => Just(Solver::Alternate)];
    let solving = (solver, 0u64..6, 1u64..4, 0u64..4);
    (1usize..4, 1usize..4, 0usize..6, 1usize..6, 1u64..14, solving).prop_map(
        |(workers, least, more, micro_batches, steps, (solver, every, chunks, evaluate_every))| Shape {
            workers,
            min_workers: least.min(workers),
            max_workers: workers + more,
            micro_batches,
            steps,
            solver,
            every,
            chunks,
            evaluate_every,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_is_committed_once_whatever_happens(
        shape in shapes(),
        actions in prop::collection::vec((0u8..250, any::<u16>()), 0..1200),
    ) {
        let mut simulation = Simulation::new(shape);
        for (kind, pick) in actions {
            simulation.act(kind, pick);
        }
        simulation.finish();
    }

    #[test]
    fn a_wrong_digest_stops_the_run_and_names_the_rank(
        world in 2usize..6,
        wrong_rank in 0usize..6,
        wrong_step in 0u64..6,
        order in prop::collection::vec(any::<u16>(), 30),
    ) {
        let wrong_rank = wrong_rank % world;
        let shape = Shape { workers: world, micro_batches: 5, ..PAIR };
        let mut run = Run::begun(shape, world);
        let mut states = vec![run.correct[0].clone(); world];
        let mut committed = 0;
        let mut failure = None;
        for pick in order {
            let ready: Vec<usize> = (0..world).filter(|rank| states[*rank].step() < shape.steps).collect();
            let Some(rank) = ready.get(usize::from(pick) % ready.len().max(1)).copied() else {
                break;
            };
            let state = &mut states[rank];
            let mut reduced = row(state);
            if rank == wrong_rank && state.step() == wrong_step {
                reduced[1] += 0.25;
            }
            state.update(&reduced, &run.config.recipe).unwrap();
            let after = state.clone();
            for effect in run.report(rank, &after) {
                match effect {
                    Effect::Committed(commit) => {
                        committed += 1;
                        prop_assert_eq!(&*commit.state, &run.correct[committed]);
                    }
                    Effect::Failed(why, hint) => failure = Some((why, hint)),
                    Effect::Finished => prop_assert!(false, "finished with a wrong digest"),
                    _ => {}
                }
            }
            prop_assert!(committed as u64 <= wrong_step);
            if let Some((why, hint)) = &failure {
                prop_assert!(why.contains(&format!("rank {wrong_rank},")), "{}", why);
                prop_assert!(why.contains(&format!("step {wrong_step}")), "{}", why);
                prop_assert!(!hint.is_empty());
                prop_assert_eq!(committed as u64, wrong_step);
                prop_assert_eq!(run.machine.committed().unwrap().step(), wrong_step);
                prop_assert_eq!(run.report(rank, &after), Vec::new());
                prop_assert_eq!(run.tick(10_000), Vec::new());
                break;
            }
        }
    }
}

/// The property above must not be true of nothing.
#[test]
fn the_simulation_meets_what_it_is_meant_to_meet() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let cases = (shapes(), prop::collection::vec((0u8..250, any::<u16>()), 1200));
    let mut all = Met::default();
    for _ in 0..500 {
        let (shape, actions) = cases.new_tree(&mut runner).unwrap().current();
        let mut simulation = Simulation::new(shape);
        for (kind, pick) in actions {
            simulation.act(kind, pick);
        }
        simulation.finish();
        let met = simulation.met;
        all.generations += met.generations;
        all.joins_at_rest += met.joins_at_rest;
        all.pauses += met.pauses;
        all.silent_deaths += met.silent_deaths;
        all.late_reports += met.late_reports;
        all.rejoin_states_ahead += met.rejoin_states_ahead;
        all.repeated_endings += met.repeated_endings;
        all.solutions += met.solutions;
        all.rewound += met.rewound;
    }
    assert!(all.generations > 200 && all.joins_at_rest > 20 && all.pauses > 50, "{all:?}");
    assert!(all.silent_deaths > 20 && all.late_reports > 100, "{all:?}");
    assert!(all.rejoin_states_ahead > 10 && all.repeated_endings > 3, "{all:?}");
    assert!(all.solutions > 50 && all.rewound > 5, "{all:?}");
}

// --- one rule at a time -----------------------------------------------------------------------------------------

/// A machine, driven by hand.
struct Run {
    config: Arc<Config>,
    correct: Vec<State>,
    machine: Machine,
    now: Instant,
}

impl Run {
    fn new(shape: Shape) -> Self {
        Self::of(config_of(shape), None)
    }

    fn of(config: Config, committed: Option<State>) -> Self {
        let config = Arc::new(config);
        let fingerprint = committed.as_ref().map(|_| FINGERPRINT.to_owned());
        let machine = Machine::new(config.clone(), 9, committed, fingerprint);
        Self { correct: correct_states(&config), config, machine, now: Instant::now() }
    }

    /// With `world` members, 1 and up, of which the last made the first generation begin.
    fn begun(shape: Shape, world: usize) -> Self {
        let mut run = Self::new(shape);
        for member in 1..=world as u64 {
            run.join(member);
            run.ready(member);
        }
        assert_eq!(run.ranks(), (1..=world as u64).collect::<Vec<_>>());
        run
    }

    fn join(&mut self, member: u64) -> Vec<Effect> {
        self.join_with(member, None)
    }

    fn join_with(&mut self, member: u64, rejoin_state: Option<State>) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Joined(MemberId(member), introduction(rejoin_state)))
    }

    fn ready(&mut self, member: u64) -> Vec<Effect> {
        self.ready_with(member, readiness())
    }

    fn ready_with(&mut self, member: u64, readiness: Readiness) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Ready(MemberId(member), readiness))
    }

    fn leave(&mut self, member: u64) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Left(MemberId(member), "its stream ended".to_owned()))
    }

    fn beat(&mut self, member: u64) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Heartbeat(MemberId(member)))
    }

    fn tick(&mut self, milliseconds: u64) -> Vec<Effect> {
        self.now += Duration::from_millis(milliseconds);
        self.machine.handle(self.now, Event::Tick)
    }

    fn generation(&self) -> Generation {
        self.machine.generation().expect("a generation is running")
    }

    /// The present ranks' members.
    fn ranks(&self) -> Vec<u64> {
        let mut ranks = BTreeMap::new();
        for (id, member) in self.machine.members() {
            if let Activity::Training(rank) = member.activity {
                ranks.insert(rank, id.0);
            }
        }
        ranks.into_values().collect()
    }

    fn report(&mut self, rank: usize, after: &State) -> Vec<Effect> {
        let Some(generation) = self.machine.generation() else {
            return Vec::new();
        };
        let member = MemberId(self.ranks()[rank]);
        let report = report(&self.config, generation, rank, after);
        self.machine.handle(self.now, Event::Reported(member, report))
    }

    /// Every rank reports the next step.
    fn commit(&mut self) -> Vec<Effect> {
        let after = self.correct[self.machine.committed().unwrap().step() as usize + 1].clone();
        let mut effects = Vec::new();
        for rank in 0..self.ranks().len() {
            effects.extend(self.report(rank, &after));
        }
        effects
    }
}

/// The beginnings among effects.
fn beginnings(effects: &[Effect]) -> Vec<&Beginning> {
    let found = effects.iter().filter_map(|effect| match effect {
        Effect::Begin(beginning) => Some(beginning),
        _ => None,
    });
    found.collect()
}

fn members_of(beginning: &Beginning) -> Vec<u64> {
    beginning.ranks.iter().map(|(member, _)| member.0).collect()
}

/// Who is dismissed, for good or not, and why.
fn dismissed(effects: &[Effect]) -> Option<(u64, bool, &str)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Dismiss(member, permanent, why) => Some((member.0, *permanent, why.as_str())),
        _ => None,
    })
}

fn failure(effects: &[Effect]) -> Option<&str> {
    effects.iter().find_map(|effect| match effect {
        Effect::Failed(why, _) => Some(why.as_str()),
        _ => None,
    })
}

#[test]
fn the_first_generation_waits_for_all_workers() {
    let mut run = Run::new(Shape { workers: 3, ..PAIR });
    assert_eq!(run.tick(0), Vec::new());
    assert_eq!(run.machine.reason(), "waiting for 3 workers to connect");
    run.join(1);
    assert_eq!(run.machine.reason(), "1 of 3 workers are loading the model");
    assert_eq!(run.ready(1), vec![Effect::BaseKnown(readiness())]);
    run.join(2);
    assert_eq!(run.ready(2), Vec::new());
    run.join(3);
    assert_eq!(run.machine.reason(), "2 of 3 workers are ready, 1 loading the model");
    let effects = run.ready(3);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(beginning), vec![1, 2, 3]);
    let parts: Vec<_> = beginning.ranks.iter().map(|(_, part)| part.clone()).collect();
    assert_eq!(parts, vec![0..2, 2..3, 3..4]);
    assert_eq!(*beginning.state, State::initial(HIDDEN, run.config.recipe.seed));
    assert!(beginning.first);
}

/// Ready with NCCL on a GPU of its own.
fn with_nccl(gpu: u64) -> Readiness {
    let ability = NcclAbility { version: 23_007, gpu: format!("GPU-{gpu}"), replica: true, shares_gpu: false };
    Readiness { nccl: Ok(ability), ..readiness() }
}

/// Two workers that reduce over NCCL.
fn over_nccl(wanted: CollectiveChoice) -> Run {
    let mut config = config_of(PAIR);
    config.run.collective = wanted;
    let mut run = Run::of(config, None);
    for member in 1..=2 {
        run.join(member);
        run.ready_with(member, with_nccl(member));
    }
    run
}

#[test]
fn rank_0s_id_goes_to_every_rank_of_its_generation() {
    let mut run = over_nccl(CollectiveChoice::Auto);
    assert_eq!(run.machine.collective().map(|choice| choice.way), Some(Way::Nccl));
    let generation = run.generation();
    let id = |member: u64, generation| Event::NcclId(MemberId(member), generation, vec![7; 128]);
    let effects = run.machine.handle(run.now, id(1, generation));
    assert_eq!(effects, vec![Effect::HandOut(vec![MemberId(1), MemberId(2)], generation, vec![7; 128])]);
    assert_eq!(run.machine.handle(run.now, id(2, generation)), Vec::new(), "only rank 0 makes ids");
    let late = Generation { number: generation.number + 1, ..generation };
    assert_eq!(run.machine.handle(run.now, id(1, late)), Vec::new());
}

#[test]
fn nccl_that_fails_twice_without_a_step_gives_way_to_grpc_or_ends_the_run() {
    let fail = |run: &mut Run, generation| {
        run.machine.handle(run.now, Event::NcclFailed(MemberId(2), generation, "no socket".to_owned()))
    };
    let mut run = over_nccl(CollectiveChoice::Auto);
    let first = run.generation();
    let effects = fail(&mut run, first);
    let [Effect::Pause(_, why), Effect::Begin(beginning)] = &effects[..] else { panic!("{effects:?}") };
    assert!(why.contains("worker 2") && why.contains("no socket"), "{why}");
    assert_eq!(beginning.collective.way, Way::Nccl, "once may be an accident");
    assert_eq!(fail(&mut run, first), Vec::new(), "that generation is over");
    let second = run.generation();
    let effects = fail(&mut run, second);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(beginning.collective.way, Way::Grpc);
    assert!(beginning.collective.reason.contains("no socket"), "{}", beginning.collective.reason);
    assert!(!run.commit().is_empty());

    let mut run = over_nccl(CollectiveChoice::Nccl);
    for _ in 0..2 {
        let generation = run.generation();
        let effects = fail(&mut run, generation);
        if let Some(why) = failure(&effects) {
            assert!(why.contains("collective: nccl cannot be used") && why.contains("no socket"), "{why}");
            return;
        }
    }
    panic!("two failures ended nothing");
}

#[test]
fn collective_nccl_takes_only_workers_that_have_it() {
    let mut run = over_nccl(CollectiveChoice::Nccl);
    run.join(3);
    let effects = run.ready_with(3, readiness());
    let Some((3, true, why)) = dismissed(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("collective: nccl cannot be used") && why.contains("no GPU"), "{why}");
    run.join(4);
    let effects = run.ready_with(4, with_nccl(1));
    let Some((4, true, why)) = dismissed(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("share a GPU (GPU-1)"), "{why}");
    run.join(5);
    assert_eq!(dismissed(&run.ready_with(5, with_nccl(5))), None);
}

#[test]
fn fewer_workers_begin_after_coordinator_wait_but_not_while_one_loads() {
    let mut run = Run::new(Shape { workers: 3, min_workers: 2, ..PAIR });
    run.join(1);
    run.ready(1);
    for _ in 0..10 {
        run.beat(1);
        assert_eq!(run.tick(1000), Vec::new(), "one worker is below min_workers");
    }
    run.join(2);
    run.join(3);
    run.beat(1);
    assert_eq!(run.ready(2), Vec::new(), "a third one is loading");
    let effects = run.leave(3);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(beginning), vec![1, 2]);
}

#[test]
fn workers_beyond_the_micro_batches_are_spares() {
    let shape = Shape { workers: 3, micro_batches: 2, ..PAIR };
    let mut run = Run::new(shape);
    for member in 1..=3 {
        run.join(member);
        run.ready(member);
    }
    assert_eq!(run.ranks(), vec![1, 2]);
    assert!(matches!(run.machine.members()[&MemberId(3)].activity, Activity::Waiting(_)));
    run.beat(1);
    run.beat(2);
    run.beat(3);
    assert_eq!(run.tick(1000), Vec::new(), "there is no room for the spare");
    assert!(!run.commit().is_empty(), "a spare is not waited for");
    let effects = run.leave(1);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(beginning), vec![2, 3]);
    assert_eq!(beginning.state.step(), 1);
}

#[test]
fn below_min_workers_it_waits_and_says_so() {
    let mut run = Run::begun(Shape { min_workers: 2, ..PAIR }, 2);
    run.commit();
    let effects = run.leave(1);
    let [Effect::Pause(members, why)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*members, vec![MemberId(2)]);
    assert!(why.starts_with("worker 1 (rank 0, host, pid 7) left (its stream ended)"), "{why}");
    assert_eq!(run.machine.phase(), "waiting");
    let waits = |loading: usize| {
        format!("1 of at least 2 workers are ready, {loading} loading the model; waiting for more to join")
    };
    assert_eq!(run.machine.reason(), waits(0));
    run.join(3);
    assert_eq!(run.machine.reason(), waits(1));
    let effects = run.ready(3);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(beginning), vec![2, 3]);
    assert_eq!((beginning.state.step(), beginning.generation.number, beginning.first), (1, 2, false));
}

#[test]
fn a_death_throws_away_what_is_pending_and_the_others_go_on_at_once() {
    let mut run = Run::begun(PAIR, 2);
    run.commit();
    let (old, second) = (run.generation(), run.correct[2].clone());
    assert_eq!(run.report(0, &second), Vec::new());
    let effects = run.leave(2);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((members_of(beginning), beginning.state.step()), (vec![1], 1));
    let late = Event::Reported(MemberId(1), report(&run.config, old, 0, &second));
    assert_eq!(run.machine.handle(run.now, late), Vec::new());
    assert_eq!(run.machine.committed().unwrap().step(), 1);
    assert!(matches!(&run.report(0, &second)[..], [Effect::Committed(commit)] if commit.world == 1));
}

#[test]
fn more_than_max_workers_are_refused() {
    let mut run = Run::begun(Shape { max_workers: 2, ..PAIR }, 2);
    let effects = run.join(3);
    assert_eq!(dismissed(&effects), Some((3, true, "max_workers is 2 and as many are connected")));
    assert_eq!(run.machine.members().len(), 2);
    run.leave(1);
    assert_eq!(run.join(4), Vec::new());
}

#[test]
fn a_join_comes_to_rest_at_a_boundary_first() {
    let mut run = Run::begun(PAIR, 2);
    run.commit();
    run.join(3);
    assert_eq!(run.ready(3), Vec::new(), "others may join with it");
    assert!(run.machine.reason().contains("1 about to join"), "{}", run.machine.reason());
    assert_eq!(run.tick(100), Vec::new());
    let generation = run.generation();
    assert_eq!(run.tick(100), vec![Effect::Quiesce(generation)]);
    assert_eq!(run.tick(100), Vec::new(), "once is enough");
    assert!(run.machine.reason().contains("a commit boundary is near"), "{}", run.machine.reason());
    assert!(matches!(&run.commit()[..], [Effect::Committed(_)]));
    let effects = run.machine.at_rest(run.now, generation);
    let [Effect::Begin(beginning)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((members_of(beginning), beginning.state.step()), (vec![1, 2, 3], 2));
    assert_eq!(run.machine.at_rest(run.now, generation), Vec::new(), "that generation is over");
}

#[test]
fn silence_longer_than_dead_after_is_death() {
    let mut run = Run::begun(PAIR, 2);
    run.tick(2000);
    run.beat(1);
    assert_eq!(run.tick(1000), Vec::new(), "3 s are allowed");
    let effects = run.tick(1);
    assert_eq!(dismissed(&effects), Some((2, false, "declared dead: no heartbeat for 3.0 s")));
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(beginning), vec![1]);
    // A worker that is loading dies in the same way.
    run.join(3);
    run.beat(1);
    run.tick(2000);
    run.beat(1);
    let effects = run.tick(1001);
    assert_eq!(dismissed(&effects).map(|(member, ..)| member), Some(3));
    assert_eq!(run.ranks(), vec![1]);
}

#[test]
fn another_model_is_refused() {
    let wrong = [
        (Readiness { base_fingerprint: "fedcba9876543210".to_owned(), ..readiness() }, "fingerprint fedcba9876543210"),
        (Readiness { hidden_size: 4, ..readiness() }, "its hidden size is 4, this run's is 3"),
        (Readiness { probe_digest: vec![1, 2, 4], ..readiness() }, "other bits than this run's machines"),
    ];
    for (readiness, words) in wrong {
        let mut run = Run::begun(PAIR, 2);
        run.join(3);
        let effects = run.ready_with(3, readiness);
        let Some((3, true, why)) = dismissed(&effects) else { panic!("{effects:?}") };
        assert!(why.contains(words), "{why}");
        assert!(!run.machine.members().contains_key(&MemberId(3)));
        run.beat(1);
        run.beat(2);
        assert_eq!(run.tick(1000), Vec::new(), "nobody joins");
    }
}

#[test]
fn other_bits_are_admitted_when_the_run_need_not_be_deterministic() {
    let mut config = config_of(PAIR);
    config.run.deterministic = false;
    let mut run = Run::of(config, None);
    run.join(1);
    run.ready(1);
    run.join(2);
    let effects = run.ready_with(2, Readiness { probe_digest: vec![9], ..readiness() });
    assert_eq!(beginnings(&effects).len(), 1);
}

#[test]
fn a_checkpoint_binds_the_model() {
    let states = correct_states(&config_of(PAIR));
    for wrong in
        [Readiness { base_fingerprint: "other".to_owned(), ..readiness() }, Readiness { hidden_size: 4, ..readiness() }]
    {
        let mut run = Run::of(config_of(PAIR), Some(states[2].clone()));
        run.join(1);
        let effects = run.ready_with(1, wrong);
        assert!(matches!(dismissed(&effects), Some((1, true, _))));
        assert!(failure(&effects).is_some_and(|why| why.contains("was refused")), "nobody else is there");
    }
}

#[test]
fn a_rejoin_state_binds_the_hidden_size() {
    let states = correct_states(&config_of(PAIR));
    let mut run = Run::new(PAIR);
    run.join_with(1, Some(states[2].clone()));
    run.join(2);
    let effects = run.ready_with(2, Readiness { hidden_size: 4, ..readiness() });
    assert!(matches!(dismissed(&effects), Some((2, true, why)) if why.contains("hidden size is 4")), "{effects:?}");

    let mut other = State::initial(4, 0);
    for _ in 0..3 {
        other = next(&other, &run.config);
    }
    let effects = run.join_with(3, Some(other));
    assert!(matches!(dismissed(&effects), Some((3, true, why)) if why.contains("hidden size")), "{effects:?}");
    assert_eq!(run.machine.committed().unwrap().step(), 2);
}

#[test]
fn a_restart_goes_on_from_the_furthest_rejoin_state() {
    let states = correct_states(&config_of(PAIR));
    let mut run = Run::of(config_of(PAIR), Some(states[1].clone()));
    run.join_with(1, Some(states[3].clone()));
    run.join_with(2, Some(states[2].clone()));
    run.ready(1);
    let effects = run.ready(2);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(*beginning.state, states[3]);
    // One that comes later changes nothing any more.
    run.join_with(3, Some(states[5].clone()));
    assert_eq!(run.machine.committed().unwrap().step(), 3);
}

#[test]
fn two_states_for_one_step_stop_the_run() {
    let states = correct_states(&config_of(PAIR));
    let mut other = states[2].clone();
    other.update(&[1.0; 11], &config_of(PAIR).recipe).unwrap();
    let mut run = Run::new(PAIR);
    run.join_with(1, Some(states[3].clone()));
    let effects = run.join_with(2, Some(other.clone()));
    let why = failure(&effects).expect("the run fails");
    assert!(why.contains("two states for step 3 differ"), "{why}");
    assert!(why.contains(&states[3].digest().to_string()) && why.contains(&other.digest().to_string()), "{why}");
}

#[test]
fn a_finished_rejoin_state_finishes_the_run_once_the_model_is_known() {
    // The result is written with the fingerprint of its model; only a ready worker can tell that.
    let states = correct_states(&config_of(PAIR));
    let mut run = Run::new(PAIR);
    assert_eq!(run.join_with(1, Some(states[6].clone())), Vec::new());
    assert!(run.machine.reason().contains("waiting for"), "{}", run.machine.reason());
    assert_eq!(run.ready(1), vec![Effect::BaseKnown(readiness()), Effect::Finished]);
    assert_eq!(run.machine.reason(), "all 6 steps are committed");
}

#[test]
fn the_last_commit_finishes_the_run() {
    let mut run = Run::begun(PAIR, 2);
    for _ in 0..5 {
        assert_eq!(run.commit().len(), 1);
    }
    let effects = run.commit();
    assert!(matches!(&effects[..], [Effect::Committed(commit), Effect::Finished] if commit.state.step() == 6));
    assert_eq!(run.machine.phase(), "done");
}

#[test]
fn a_rank_ahead_of_the_others_is_waited_with() {
    let mut run = Run::begun(PAIR, 2);
    let states = run.correct.clone();
    for state in &states[1..4] {
        assert_eq!(run.report(1, state), Vec::new());
    }
    for (step, state) in states.iter().enumerate().take(4).skip(1) {
        let effects = run.report(0, state);
        assert!(matches!(&effects[..], [Effect::Committed(commit)] if commit.state.step() == step as u64));
    }
}

#[test]
fn a_state_that_does_not_have_its_digest_stops_the_run() {
    let mut run = Run::begun(PAIR, 2);
    let (first, second) = (run.correct[1].clone(), run.correct[2].clone());
    run.report(1, &first);
    for (state, words) in [(Some(second), "does not have the digest"), (None, "without its state")] {
        let mut run = Run::begun(PAIR, 2);
        run.report(1, &first);
        let bad = Report { state, ..report(&run.config, run.generation(), 0, &first) };
        let effects = run.machine.handle(run.now, Event::Reported(MemberId(1), bad));
        assert!(failure(&effects).is_some_and(|why| why.contains(words)), "{effects:?}");
        assert_eq!(run.machine.committed().unwrap().step(), 0);
    }
}

#[test]
fn a_failure_for_good_ends_the_run_but_only_a_members() {
    let mut run = Run::begun(PAIR, 2);
    let failed = |member| Event::FailedForGood(MemberId(member), "the data file is gone".to_owned());
    assert_eq!(run.machine.handle(run.now, failed(8)), Vec::new());
    let effects = run.machine.handle(run.now, failed(2));
    assert_eq!(failure(&effects), Some("worker 2 (rank 1, host, pid 7): the data file is gone"));
}

#[test]
fn a_second_ready_changes_nothing() {
    let mut run = Run::begun(PAIR, 2);
    assert_eq!(run.ready(1), Vec::new());
    assert_eq!(run.ready_with(2, Readiness { hidden_size: 9, ..readiness() }), Vec::new());
    assert_eq!(run.ranks(), vec![1, 2]);
    run.beat(1);
    run.beat(2);
    assert_eq!(run.tick(1000), Vec::new());
}

/// Every rank reports the next step; `wrong` has other rows.
fn audited(run: &mut Run, wrong: usize) -> Vec<Effect> {
    let after = run.correct[run.machine.committed().unwrap().step() as usize + 1].clone();
    let (generation, ranks) = (run.generation(), run.ranks());
    let mut effects = Vec::new();
    for (rank, member) in ranks.into_iter().enumerate() {
        let mut report = report(&run.config, generation, rank, &after);
        if rank == wrong {
            for (_, digest) in &mut report.rows {
                digest[7] ^= 1;
            }
        }
        effects.extend(run.machine.handle(run.now, Event::Reported(MemberId(member), report)));
    }
    effects
}

#[test]
fn an_audit_excludes_the_odd_rank_and_the_others_redo_the_step() {
    for wrong in 0..3 {
        let shape = Shape { workers: 3, ..PAIR };
        let mut run = Run::begun(shape, 3);
        // Step 0 is not audited, whatever its rows say; step 1 is.
        assert_eq!(audited(&mut run, wrong).len(), 1);
        let effects = audited(&mut run, wrong);
        let odd = wrong as u64 + 1;
        let (who, permanent, why) = dismissed(&effects).expect("somebody goes");
        assert_eq!((who, permanent), (odd, true));
        assert!(why.contains("step 1") && why.contains("micro-batch"), "{why}");
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Committed(_))), "the step is not committed");
        let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!(beginning.state.step(), 1);
        assert!(!members_of(beginning).contains(&odd) && beginning.ranks.len() == 2);
        // Its machine does not come back, and the launcher is told.
        run.join(9);
        let effects = run.ready(9);
        assert!(dismissed(&effects).is_some_and(|(who, good, why)| who == 9 && good && why.contains("wrong numbers")));
        assert_eq!(run.machine.refused_pids().collect::<Vec<_>>(), [7, 7]);
    }
}

#[test]
fn an_audit_between_two_stops_the_run_and_names_both() {
    let mut run = Run::begun(PAIR, 2);
    run.commit();
    let effects = audited(&mut run, 1);
    let why = failure(&effects).expect("the run stops");
    assert!(why.contains("rank 0") && why.contains("rank 1") && why.contains("step 1"), "{why}");
    assert_eq!(run.machine.committed().unwrap().step(), 1, "nothing of the step is committed");
}

#[test]
fn rows_are_not_compared_where_machines_may_differ_or_audits_are_off() {
    for (deterministic, audit_every) in [(false, 2), (true, 0)] {
        let mut config = config_of(PAIR);
        (config.run.deterministic, config.run.audit_every) = (deterministic, audit_every);
        let mut run = Run::of(config, None);
        for member in [1, 2] {
            run.join(member);
            run.ready(member);
        }
        run.commit();
        assert_eq!(audited(&mut run, 1).len(), 1, "a commit and nothing else");
    }
}

#[test]
fn a_slow_rank_gets_less_at_a_boundary_once_it_is_known_to_be_slow() {
    let shape = Shape { micro_batches: 8, steps: 100, ..PAIR };
    let mut run = Run::begun(shape, 2);
    let mut quiesced = None;
    for _ in 0..60 {
        let after = run.correct[run.machine.committed().unwrap().step() as usize + 1].clone();
        let generation = run.generation();
        for (rank, milliseconds) in [(0, 40), (1, 120)] {
            let mut report = Report { rows: Vec::new(), ..report(&run.config, generation, rank, &after) };
            report.timing.compute = Duration::from_millis(milliseconds);
            for effect in run.machine.handle(run.now, Event::Reported(MemberId(rank as u64 + 1), report)) {
                if let Effect::Quiesce(generation) = effect {
                    quiesced = Some(generation);
                }
            }
        }
        run.now += Duration::from_millis(120);
    }
    let generation = quiesced.expect("another split is worth a generation");
    assert!(run.machine.reason().contains("the faster get more"), "{}", run.machine.reason());
    let effects = run.machine.at_rest(run.now, generation);
    let [beginning] = beginnings(&effects)[..] else { panic!("{effects:?}") };
    let sizes: Vec<usize> = beginning.ranks.iter().map(|(_, part)| part.len()).collect();
    assert_eq!(sizes, [6, 2]);
}
/// A run whose only unit is a chunk, at the end of it.
fn gathered_run() -> (Run, State) {
    let shape = Shape { steps: 1, solver: Solver::Exact, ..PAIR };
    let run = Run::begun(shape, 2);
    let gathered = run.correct[1].clone();
    (run, gathered)
}

#[test]
fn a_gathered_round_is_solved_and_its_solution_committed() {
    let (mut run, gathered) = gathered_run();
    run.report(1, &gathered);
    let effects = run.report(0, &gathered);
    let [Effect::Committed(commit), Effect::Solve(1)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(commit.features, Some(features(0)));
    assert_eq!((run.machine.phase(), run.machine.generation()), ("solving", None));
    assert!(run.machine.reason().contains("solving for the output projector"));
    assert_eq!(run.tick(100), Vec::new(), "nothing begins meanwhile");
    let effects = run.machine.handle(run.now, Event::Solved(1, Ok(fit())));
    assert_eq!(effects, vec![Effect::Solved(Arc::new(run.correct[2].clone())), Effect::Finished]);
    assert_eq!(run.machine.committed().unwrap().solve().unwrap().solved.unwrap().rounds, 1);
}

#[test]
fn a_round_without_a_solution_ends_the_run() {
    let (mut run, gathered) = gathered_run();
    run.report(1, &gathered);
    run.report(0, &gathered);
    let effects = run.machine.handle(run.now, Event::Solved(1, Err("nothing varies".to_owned())));
    assert_eq!(failure(&effects), Some("the output projector cannot be solved for: nothing varies"));
}

#[test]
fn features_that_are_not_those_of_the_digest_stop_the_run() {
    for (features, words) in [(None, "without its features"), (Some(features(7)), "do not have the digest")] {
        let (mut run, gathered) = gathered_run();
        run.report(1, &gathered);
        let bad = Report { features, ..report(&run.config, run.generation(), 0, &gathered) };
        let effects = run.machine.handle(run.now, Event::Reported(MemberId(1), bad));
        assert!(failure(&effects).is_some_and(|why| why.contains(words)), "{effects:?}");
        assert_eq!(run.machine.committed().unwrap().position().gathered, Some(0));
    }
}
