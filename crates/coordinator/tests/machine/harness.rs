//! A machine, driven by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_config::{CollectiveChoice, Config};
use numalign_coordinator::machine::collective::NcclAbility;
use numalign_coordinator::machine::{
    Activity, Cause, Effect, Event, Generation, GenerationStart, Machine, MemberId, WorkerReady,
};
use numalign_projector::State;

use crate::fixtures::{Shape, config_of, correct_states, join_request, known_base, report, worker_ready};

/// A machine, driven by hand.
pub struct Run {
    pub config: Arc<Config>,
    pub correct: Vec<State>,
    pub machine: Machine,
    pub now: Instant,
}

impl Run {
    pub fn new(shape: Shape) -> Self {
        Self::of(config_of(shape), None)
    }

    pub fn of(config: Config, committed: Option<State>) -> Self {
        let config = Arc::new(config);
        let base = committed.as_ref().map(|_| known_base());
        let machine = Machine::new(config.clone(), 9, committed, base);
        Self { correct: correct_states(&config), config, machine, now: Instant::now() }
    }

    /// With `world` members, 1 and up, of which the last made the first generation begin.
    pub fn begun(shape: Shape, world: usize) -> Self {
        let mut run = Self::new(shape);
        for member in 1..=world as u64 {
            run.join(member);
            run.ready(member);
        }
        assert_eq!(run.ranks(), (1..=world as u64).collect::<Vec<_>>());
        run
    }

    pub fn join(&mut self, member: u64) -> Vec<Effect> {
        self.join_with(member, None)
    }

    pub fn join_with(&mut self, member: u64, rejoin_state: Option<State>) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Joined(MemberId(member), join_request(rejoin_state)))
    }

    /// As [`Run::join`], with a process of its own: `host-MEMBER`.
    pub fn join_as(&mut self, member: u64, rejoin_state: Option<State>) -> Vec<Effect> {
        let mut request = join_request(rejoin_state);
        request.process.host = format!("host-{member}");
        self.machine.handle(self.now, Event::Joined(MemberId(member), request))
    }

    /// As [`Run::begun`], with a host each.
    pub fn begun_on_hosts(shape: Shape, world: usize) -> Self {
        let mut run = Self::new(shape);
        for member in 1..=world as u64 {
            run.join_as(member, None);
            run.ready(member);
        }
        assert_eq!(run.ranks(), (1..=world as u64).collect::<Vec<_>>());
        run
    }

    pub fn fail(&mut self, member: u64, cause: Cause, why: &str) -> Vec<Effect> {
        self.machine.handle(self.now, Event::PermanentFailure(MemberId(member), cause, why.to_owned()))
    }

    /// The rows of these micro-batches of a unit are not finite.
    pub fn not_finite(&mut self, unit: u64, bad: &[usize]) -> Vec<Effect> {
        let generation = self.generation();
        self.machine.handle(self.now, Event::NotFinite(generation, unit, bad.to_vec()))
    }

    pub fn ready(&mut self, member: u64) -> Vec<Effect> {
        self.ready_with(member, worker_ready())
    }

    pub fn ready_with(&mut self, member: u64, worker_ready: WorkerReady) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Ready(MemberId(member), worker_ready))
    }

    pub fn leave(&mut self, member: u64) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Left(MemberId(member), "its stream ended".to_owned()))
    }

    pub fn beat(&mut self, member: u64) -> Vec<Effect> {
        self.machine.handle(self.now, Event::Heartbeat(MemberId(member)))
    }

    pub fn tick(&mut self, milliseconds: u64) -> Vec<Effect> {
        self.now += Duration::from_millis(milliseconds);
        self.machine.handle(self.now, Event::Tick)
    }

    /// Time passes, second by second, in which these members are alive.
    pub fn beat_for(&mut self, seconds: u64, members: &[u64]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..seconds {
            for member in members {
                effects.extend(self.beat(*member));
            }
            effects.extend(self.tick(1000));
        }
        effects
    }

    pub fn generation(&self) -> Generation {
        self.machine.generation().expect("a generation is running")
    }

    /// The present ranks' members.
    pub fn ranks(&self) -> Vec<u64> {
        let mut ranks = BTreeMap::new();
        for (id, member) in self.machine.members() {
            if let Activity::Training(rank) = member.activity {
                ranks.insert(rank, id.0);
            }
        }
        ranks.into_values().collect()
    }

    pub fn report(&mut self, rank: usize, after: &State) -> Vec<Effect> {
        let Some(generation) = self.machine.generation() else {
            return Vec::new();
        };
        let member = MemberId(self.ranks()[rank]);
        let report = report(&self.config, generation, rank, after);
        self.machine.handle(self.now, Event::Reported(member, report))
    }

    /// Every rank reports the next step.
    pub fn commit(&mut self) -> Vec<Effect> {
        let after = self.correct[self.machine.committed().unwrap().step() as usize + 1].clone();
        let mut effects = Vec::new();
        for rank in 0..self.ranks().len() {
            effects.extend(self.report(rank, &after));
        }
        effects
    }
}

/// The generations that effects begin.
pub fn starts(effects: &[Effect]) -> Vec<&GenerationStart> {
    let found = effects.iter().filter_map(|effect| match effect {
        Effect::Begin(start) => Some(start),
        _ => None,
    });
    found.collect()
}

pub fn members_of(start: &GenerationStart) -> Vec<u64> {
    start.ranks.iter().map(|(member, _)| member.0).collect()
}

/// Everybody who is evicted, in order.
pub fn all_evicted(effects: &[Effect]) -> Vec<u64> {
    let found = effects.iter().filter_map(|effect| match effect {
        Effect::Evict(member, ..) => Some(member.0),
        _ => None,
    });
    found.collect()
}

/// Who is evicted, permanently or not, and why.
pub fn evicted(effects: &[Effect]) -> Option<(u64, bool, &str)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Evict(member, permanent, why) => Some((member.0, *permanent, why.as_str())),
        _ => None,
    })
}

pub fn failure(effects: &[Effect]) -> Option<&str> {
    effects.iter().find_map(|effect| match effect {
        Effect::Failed(why, _) => Some(why.as_str()),
        _ => None,
    })
}

/// Ready, with NCCL on GPU number `gpu`.
pub fn with_nccl(gpu: u64) -> WorkerReady {
    let ability = NcclAbility { version: 23_007, gpu: format!("GPU-{gpu}"), replica: true, shares_gpu: false };
    WorkerReady { nccl: Ok(ability), ..worker_ready() }
}

/// Two workers of a run of `shape` that reduce over NCCL.
pub fn over_nccl(shape: Shape, wanted: CollectiveChoice) -> Run {
    let mut config = config_of(shape);
    config.run.collective = wanted;
    let mut run = Run::of(config, None);
    for member in 1..=2 {
        run.join(member);
        run.ready_with(member, with_nccl(member));
    }
    run
}
