//! What the machine's effects do to the simulated run, as the driver applies them; every property is checked here.

use std::collections::HashSet;

use numalign_coordinator::machine::{Activity, Effect, Generation, GenerationStart, MemberId};
use numalign_data::{Schedule, Unit};

use super::{News, Simulation};
use crate::fixtures::{features, unit_of, worker_ready};

impl Simulation {
    pub(super) fn apply_effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            assert!(!self.finished, "{effect:?} after the end");
            match effect {
                Effect::BaseKnown(base) => {
                    assert_eq!(base, worker_ready());
                    self.base_known = true;
                }
                Effect::CheckSamples(..) => panic!("there is no data file"),
                Effect::Begin(start) => self.begin(start),
                Effect::Pause(members, why) => {
                    assert!(!why.is_empty());
                    self.met.pauses += 1;
                    self.dispatcher.end();
                    self.boundary = None;
                    self.present = None;
                    for member in members {
                        self.tell(member, News::Pause);
                    }
                }
                Effect::BroadcastNcclId(..) => panic!("nobody reduces over NCCL"),
                Effect::Quiesce(generation) => {
                    assert_eq!(self.present.as_ref().map(|present| present.generation), Some(generation));
                    assert_eq!(self.boundary, None, "quiesced twice");
                    self.boundary = self.dispatcher.quiesce(generation).map(|limit| (generation, limit));
                }
                Effect::Committed(commit) => {
                    let step = unit_of(&commit.state, &self.config);
                    let is_chunk = matches!(Schedule::of_run(&self.config).unit(step - 1), Unit::Chunk { .. });
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
                        self.unaudited = self.machine.unaudited();
                    }
                    self.announce_commit(step);
                }
                Effect::RollBack(back) => {
                    let unit = unit_of(&back.to, &self.config);
                    assert!(unit < self.committed, "a rollback to where the run is");
                    assert_eq!(*back.to, self.correct[unit as usize]);
                    self.rollbacks += 1;
                    assert_eq!(back.number, self.rollbacks);
                    self.met.rollbacks += 1;
                    self.committed = unit;
                    self.start = self.start.min(unit);
                    self.checkpoint = Some(back.to.as_ref().clone());
                    self.unaudited = self.machine.unaudited();
                }
                Effect::MakeState(..) => panic!("all states are the same"),
                Effect::Warn(why) => panic!("{why}"),
                Effect::Solve(unit) => {
                    assert_eq!(unit, self.committed.max(self.start));
                    assert_ne!(self.solving, Some(unit), "solved twice at once");
                    self.solving = Some(unit);
                    self.dispatcher.end();
                    self.boundary = None;
                    self.present = None;
                }
                Effect::Solved(state) => {
                    self.committed = self.committed.max(self.start) + 1;
                    self.furthest = self.furthest.max(self.committed);
                    assert_eq!(*state, self.correct[self.committed as usize]);
                    self.met.solutions += 1;
                    self.announce_commit(self.committed);
                }
                Effect::Evict(member, permanent, why) => {
                    assert!(!why.is_empty());
                    self.met.silent_deaths += u64::from(!permanent);
                    self.met.dismissed += u64::from(permanent);
                    self.tell(member, News::Abort(permanent));
                }
                Effect::TurnAway(member, why) => {
                    assert!(why.contains("max_workers"), "{why}");
                    self.met.turned_away += 1;
                    self.tell(member, News::Abort(false));
                }
                Effect::Replace(member, why) => panic!("{member:?} is replaced: {why}"),
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
            self.apply_effects(rest);
        }
        self.check_reason();
    }

    fn begin(&mut self, start: GenerationStart) {
        self.generations += 1;
        let generation =
            Generation { incarnation: self.incarnation, number: self.generations, rollback: self.rollbacks };
        assert_eq!(start.generation, generation);
        assert_eq!(start.first, self.generations == 1);
        self.met.generations += 1;
        if start.first {
            let checkpoint = self.checkpoint.as_ref().map_or(0, |state| unit_of(state, &self.config));
            self.met.rejoin_states_ahead += u64::from(self.start > checkpoint);
            self.committed = self.committed.max(self.start);
        }
        let unit = unit_of(&start.state, &self.config);
        assert_eq!(unit, self.committed, "a committed unit was lost, a rejoin state's or the checkpoint's");
        assert_eq!(*start.state, self.correct[self.committed as usize]);

        let mut end = 0;
        let mut seen = HashSet::new();
        for (rank, (member, part)) in start.ranks.iter().enumerate() {
            assert!(seen.insert(*member));
            assert_eq!(part.start, end);
            assert!(!part.is_empty(), "rank {rank} has nothing to do");
            end = part.end;
            let known = &self.machine.members()[member];
            assert!(known.worker_ready.is_some());
            assert_eq!(known.activity, Activity::Training(rank as u32));
        }
        assert_eq!(end, self.config.recipe.micro_batches());
        let world = start.ranks.len();
        assert!(world >= self.config.run.min_workers.min(self.most()) && world <= self.most());
        assert!(world == self.most() || self.ready() == 0, "a ready worker was left out");

        self.boundary = None;
        self.dispatcher.begin(&start, Schedule::of_run(&self.config));
        for (rank, (member, _)) in start.ranks.iter().enumerate() {
            self.tell(*member, News::Begin(generation, rank, start.state.clone()));
        }
        self.present = Some(start);
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
    pub(super) fn ready(&self) -> usize {
        self.machine.members().values().filter(|member| matches!(member.activity, Activity::Waiting(_))).count()
    }

    pub(super) fn tell(&mut self, member: MemberId, news: News) {
        if let Some(link) = self.links.get_mut(&member) {
            link.to_worker.push_back(news);
        }
    }

    fn announce_commit(&mut self, unit: u64) {
        let members: Vec<MemberId> = self.links.keys().copied().collect();
        for member in members {
            self.tell(member, News::Committed(unit));
        }
    }
}
