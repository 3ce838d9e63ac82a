//! Which micro-batches may be sent to whom, and how far: the driver sets the plan, the work streams follow it.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use numalign_config::Config;
use numalign_data::{Audit, AuditedRanks, Audits, MicroBatchId, Schedule, Streams};
use numalign_protocol as proto;
use tokio::sync::Notify;

use crate::machine::{Generation, GenerationStart, MemberId};

/// The present generation's plan. Work is counted in units: training steps, chunks of the solver's rounds, evaluations.
struct Plan {
    generation: Generation,
    /// Micro-batches of each rank.
    ranks: Vec<(MemberId, Range<usize>)>,
    audited_ranks: AuditedRanks,
    /// The audits of the unit that was asked for last: every rank asks.
    latest_audits: Option<(u64, Vec<Audit>)>,
    /// Work of units below this may be sent.
    limit: u64,
    /// One past the furthest unit that was sent to anybody.
    furthest: u64,
}

/// The plan, and a notification of its changes.
#[derive(Default)]
pub struct Dispatcher {
    plan: Mutex<Option<Plan>>,
    changed: Notify,
}

/// What a work stream may do about a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Yes.
    Send,
    /// Not now: the generation is coming to rest, or new units are held back.
    Wait,
    /// The generation is over.
    Over,
}

impl Dispatcher {
    fn lock(&self) -> MutexGuard<'_, Option<Plan>> {
        // A panic elsewhere leaves the plan as it was; it is only ever replaced whole.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation begins at its state; it lasts to the end of the run or of a round at most.
    pub fn begin(&self, start: &GenerationStart, units: Schedule) {
        let position = start.state.position();
        let first_unit = units.index(position);
        *self.lock() = Some(Plan {
            generation: start.generation,
            audited_ranks: AuditedRanks {
                first_unit,
                parts: start.ranks.iter().map(|(_, part)| part.clone()).collect(),
                order: start.audit_order.clone(),
            },
            latest_audits: None,
            ranks: start.ranks.clone(),
            limit: units.barrier_after(position),
            furthest: first_unit,
        });
        self.changed.notify_waiters();
    }

    /// The generation is over.
    pub fn end(&self) {
        *self.lock() = None;
        self.changed.notify_waiters();
    }

    /// Sends nothing beyond what some rank already has; answers with that boundary (a number of units).
    pub fn quiesce(&self, generation: Generation) -> Option<u64> {
        let mut plan = self.lock();
        let plan = plan.as_mut().filter(|plan| plan.generation == generation)?;
        plan.limit = plan.limit.min(plan.furthest);
        Some(plan.limit)
    }

    /// First unit and micro-batches of `member` in `generation`, while that is the present one.
    pub fn part_of(&self, generation: Generation, member: MemberId) -> Option<(u64, Range<usize>)> {
        let plan = self.lock();
        let plan = plan.as_ref().filter(|plan| plan.generation == generation)?;
        let (_, part) = plan.ranks.iter().find(|(id, _)| *id == member)?;
        Some((plan.audited_ranks.first_unit, part.clone()))
    }

    /// The micro-batches of other ranks that `member` computes in `unit` for comparison.
    pub fn audited_by(&self, generation: Generation, member: MemberId, unit: u64, audits: &Audits) -> Vec<usize> {
        if !audits.due(unit) {
            return Vec::new();
        }
        let mut plan = self.lock();
        let Some(plan) = plan.as_mut().filter(|plan| plan.generation == generation) else {
            return Vec::new();
        };
        let Some(rank) = plan.ranks.iter().position(|(id, _)| *id == member) else {
            return Vec::new();
        };
        let (_, audits) = match plan.latest_audits.take() {
            Some(latest) if latest.0 == unit => plan.latest_audits.insert(latest),
            _ => plan.latest_audits.insert((unit, audits.of(unit, &plan.audited_ranks))),
        };
        let its = audits.iter().filter(|audit| audit.auditors.contains(&rank));
        its.map(|audit| audit.micro_batch).collect()
    }

    /// Asks to send the work of `unit`. With `hold` only that of units which some rank already has: its rows wait for the
    /// others'.
    pub fn claim(&self, generation: Generation, unit: u64, hold: bool) -> Claim {
        let mut plan = self.lock();
        match plan.as_mut() {
            Some(plan) if plan.generation == generation => {
                let limit = if hold { plan.limit.min(plan.furthest) } else { plan.limit };
                if unit >= limit {
                    return Claim::Wait;
                }
                plan.furthest = plan.furthest.max(unit + 1);
                Claim::Send
            }
            _ => Claim::Over,
        }
    }

    /// Resolves at the next change of plan.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// One micro-batch as a message. Workers draw the held-out samples of an evaluation themselves, but for those of a dataset,
/// which they do not have.
pub fn micro_batch(streams: &Streams, config: &Config, unit: u64, micro_batch: usize) -> proto::MicroBatch {
    let (unit_kind, place) = (Schedule::of_run(config).unit(unit), MicroBatchId(micro_batch));
    let samples = streams.samples(&config.recipe, unit_kind, place, config.run.eval_samples);
    proto::MicroBatch {
        unit,
        micro_batch: micro_batch as u32,
        samples: samples.into_iter().map(proto::Sample::from).collect(),
        audit: false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use numalign_data::{Domain, SampleStream};
    use numalign_projector::State;

    use crate::machine::collective::{CollectiveBackend, CollectiveDecision};

    use super::*;

    const OLD: Generation = Generation { incarnation: 4, number: 1, rollback: 0 };
    const NEW: Generation = Generation { incarnation: 4, number: 2, rollback: 0 };

    fn grpc() -> CollectiveDecision {
        CollectiveDecision { backend: CollectiveBackend::Grpc, reason: "a test".to_owned() }
    }

    /// Two ranks, from the first step on.
    fn start(generation: Generation) -> GenerationStart {
        let ranks = vec![(MemberId(1), 0..2), (MemberId(2), 2..3)];
        let (state, audit_order) = (Arc::new(State::initial(2, 0)), vec![0, 1]);
        GenerationStart { generation, ranks, state, collective: grpc(), audit_order, first: false }
    }

    /// A run of `steps` training steps.
    fn units(steps: u64) -> Schedule {
        Schedule::of(&Config::with(&[("num_epochs", "1"), ("num_batches", &steps.to_string())]).unwrap().recipe)
    }

    #[test]
    fn a_generation_does_not_go_past_the_end_of_a_round() {
        let flags = [("solver", "alternate"), ("solve_every", "3"), ("solve_samples", "16"), ("num_batches", "1")];
        let config = Config::with(&flags).unwrap();
        let recipe = &config.recipe;
        let dispatcher = Dispatcher::default();
        dispatcher.begin(&start(OLD), Schedule::of(recipe));
        assert_eq!(dispatcher.claim(OLD, 4, false), Claim::Send);
        assert_eq!(dispatcher.claim(OLD, 5, false), Claim::Wait, "three steps and two chunks, then the solution");
        let streams = Streams::new(SampleStream::generated(recipe, Domain::Train).unwrap(), recipe).unwrap();
        let solve = SampleStream::generated(recipe, Domain::Solve).unwrap();
        let of = |unit| micro_batch(&streams, &config, unit, 0).samples;
        assert_eq!(of(2)[0], proto::Sample::from(streams.train.sample(16)));
        assert_eq!(of(4)[0], proto::Sample::from(solve.sample(8)), "the second chunk of the first round");
        assert_eq!(of(5), Vec::new());
        assert_eq!(of(9)[0], proto::Sample::from(solve.sample(16)), "the first chunk of the second round");
    }

    #[test]
    fn claims_stop_at_the_last_step() {
        let dispatcher = Dispatcher::default();
        assert_eq!(dispatcher.claim(OLD, 0, false), Claim::Over);
        dispatcher.begin(&start(OLD), units(3));
        for step in 0..3 {
            assert_eq!(dispatcher.claim(OLD, step, false), Claim::Send);
        }
        assert_eq!(dispatcher.claim(OLD, 3, false), Claim::Wait);
    }

    #[test]
    fn claims_stop_at_the_furthest_step_that_anybody_has() {
        let dispatcher = Dispatcher::default();
        dispatcher.begin(&start(OLD), units(100));
        for step in [0, 1, 2, 3, 0] {
            assert_eq!(dispatcher.claim(OLD, step, false), Claim::Send);
        }
        assert_eq!(dispatcher.quiesce(OLD), Some(4));
        assert_eq!(dispatcher.claim(OLD, 4, false), Claim::Wait);
        // The other rank still gets what the first one has.
        for step in 1..4 {
            assert_eq!(dispatcher.claim(OLD, step, false), Claim::Send);
        }
        assert_eq!(dispatcher.claim(OLD, 4, false), Claim::Wait);
        assert_eq!(dispatcher.quiesce(OLD), Some(4));
        dispatcher.begin(&start(NEW), units(100));
        assert_eq!(dispatcher.claim(NEW, 4, false), Claim::Send);
    }

    #[test]
    fn held_back_are_units_that_nobody_has() {
        let dispatcher = Dispatcher::default();
        dispatcher.begin(&start(OLD), units(100));
        assert_eq!(dispatcher.claim(OLD, 0, true), Claim::Wait);
        assert_eq!(dispatcher.claim(OLD, 0, false), Claim::Send);
        assert_eq!(dispatcher.claim(OLD, 0, true), Claim::Send, "the other rank's part of it");
        assert_eq!(dispatcher.claim(OLD, 1, true), Claim::Wait);
    }

    #[test]
    fn nothing_sent_is_a_boundary_where_the_generation_began() {
        let dispatcher = Dispatcher::default();
        dispatcher.begin(&start(OLD), units(100));
        assert_eq!(dispatcher.quiesce(OLD), Some(0));
        assert_eq!(dispatcher.claim(OLD, 0, false), Claim::Wait);
    }

    #[test]
    fn other_generations_get_nothing() {
        let dispatcher = Dispatcher::default();
        dispatcher.begin(&start(OLD), units(100));
        dispatcher.begin(&start(NEW), units(100));
        let elsewhere = Generation { incarnation: 5, ..NEW };
        for stale in [OLD, elsewhere] {
            assert_eq!(dispatcher.claim(stale, 0, false), Claim::Over);
            assert_eq!(dispatcher.quiesce(stale), None);
            assert_eq!(dispatcher.part_of(stale, MemberId(1)), None);
        }
        assert_eq!(dispatcher.claim(NEW, 0, false), Claim::Send, "a stale quiesce changes nothing");
        assert_eq!(dispatcher.part_of(NEW, MemberId(2)), Some((0, 2..3)));
        assert_eq!(dispatcher.part_of(NEW, MemberId(3)), None);
        dispatcher.end();
        assert_eq!(dispatcher.claim(NEW, 1, false), Claim::Over);
        assert_eq!(dispatcher.part_of(NEW, MemberId(2)), None);
    }

    #[tokio::test]
    async fn waiters_learn_of_every_change() {
        let dispatcher = Dispatcher::default();
        for change in 0..2 {
            let waiting = dispatcher.changed();
            tokio::pin!(waiting);
            // The first poll registers the waiter.
            tokio::select! {
                biased;
                () = &mut waiting => panic!("nothing has changed"),
                () = std::future::ready(()) => {}
            }
            match change {
                0 => dispatcher.begin(&start(OLD), units(1)),
                _ => dispatcher.end(),
            }
            waiting.await;
        }
    }
}
