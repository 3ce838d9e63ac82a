//! What simulated workers do: connect, load, read, compute, hang up and die.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use numalign_coordinator::machine::{Event, JoinRequest, MemberId};
use numalign_coordinator::rpc::dispatch::Claim;

use super::{Link, News, Simulation, Task, Worker};
use crate::fixtures::{fit, join_request, next, report, unit_of, worker_ready};

/// Steps of work that a simulated worker takes ahead.
const PREFETCH: u64 = 3;

impl Simulation {
    pub(super) fn spawn(&mut self) {
        self.workers.push(Worker {
            alive: true,
            silent: false,
            loaded: false,
            link: None,
            task: None,
            recent: BTreeMap::new(),
            rollback: 0,
        });
    }

    pub(super) fn send(&mut self, member: MemberId, event: Event) {
        if let Some(link) = self.links.get_mut(&member) {
            link.to_coordinator.push_back(event);
        }
    }

    pub(super) fn connect(&mut self, index: usize) {
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
        let returns = rejoin_state.is_some();
        // The service passes over states from before a rollback.
        let is_void = self.workers[index].rollback < self.rollbacks;
        let mut request = JoinRequest { returns, ..join_request(rejoin_state.filter(|_| !is_void)) };
        // A machine each: one that is excluded keeps no other out.
        request.process.host = format!("host-{index}");
        self.send(member, Event::Joined(member, request));
        if loaded {
            self.send(member, Event::Ready(member, worker_ready()));
        }
    }

    pub(super) fn load(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if let Some(member) = worker.link
            && !worker.loaded
        {
            worker.loaded = true;
            self.send(member, Event::Ready(member, worker_ready()));
        }
    }

    /// The worker reads one message.
    pub(super) fn read(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let Some(link) = worker.link.and_then(|member| self.links.get_mut(&member)) else {
            return;
        };
        match link.to_worker.pop_front() {
            Some(News::Begin(generation, rank, state)) => {
                let state = state.as_ref().clone();
                let unit = unit_of(&state, &self.config);
                worker.recent = BTreeMap::from([(unit, state.clone())]);
                worker.rollback = generation.rollback;
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
    pub(super) fn work(&mut self, index: usize, eager: bool) {
        let Worker { link: Some(member), task: Some(task), recent, .. } = &mut self.workers[index] else {
            return;
        };
        let step = unit_of(&task.state, &self.config);
        if (eager || task.claimed == step)
            && task.claimed < step + PREFETCH
            && self.dispatcher.claim(task.generation, task.claimed, false) == Claim::Send
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
    pub(super) fn hang_up(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.task = None;
        if let Some(member) = worker.link.take() {
            self.send(member, Event::Left(member, "its stream ended".to_owned()));
        }
    }

    pub(super) fn kill(&mut self, index: usize, arriving: usize) {
        let link = self.workers[index].link.and_then(|member| self.links.get_mut(&member));
        if let Some(link) = link {
            link.to_coordinator.truncate(arriving);
        }
        self.hang_up(index);
        self.workers[index].alive = false;
    }

    /// One message of one connection arrives.
    pub(super) fn deliver(&mut self, member: MemberId) {
        let Some(event) = self.links.get_mut(&member).and_then(|link| link.to_coordinator.pop_front()) else {
            return;
        };
        if matches!(event, Event::Left(..)) {
            self.links.remove(&member);
        }
        self.feed(event);
    }

    pub(super) fn pass(&mut self, time: Duration) {
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
}
