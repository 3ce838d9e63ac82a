//! Properties that hold whatever happens, and the proof that the simulation meets what it is meant to meet.

use numalign_config::Solver;
use numalign_coordinator::machine::{Effect, Event};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::fixtures::{PAIR, Shape, row};
use crate::harness::{Run, all_evicted};
use crate::simulation::{Met, Simulation};

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
    fn a_wrong_digest_is_never_committed_and_the_rank_is_named_or_excluded(
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
        let (mut disputed, mut excluded) = (None, None);
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
                    Effect::MakeState(generation, unit, why) => disputed = Some(((generation, unit), why)),
                    Effect::Evict(member, permanent, why) => excluded = Some((member.0, permanent, why)),
                    Effect::Finished => prop_assert!(false, "finished with a wrong digest"),
                    _ => {}
                }
            }
            prop_assert!(committed as u64 <= wrong_step);
            // With three ranks or more there is a majority: the others go on without the odd one.
            if let Some((member, permanent, why)) = &excluded {
                prop_assert!(world > 2 && disputed.is_none());
                prop_assert_eq!((*member, *permanent), (wrong_rank as u64 + 1, true));
                prop_assert!(why.contains(&format!("after step {wrong_step}")), "{}", why);
                prop_assert!(run.machine.committed().unwrap().step() <= wrong_step, "its rows are made again");
                while run.machine.phase() != "done" {
                    prop_assert!(!run.commit().is_empty());
                }
                prop_assert_eq!(&**run.machine.committed().unwrap(), &run.correct[shape.steps as usize]);
                break;
            }
            if let Some((unit, why)) = disputed {
                prop_assert_eq!(world, 2);
                prop_assert!(why.contains(&format!("rank {wrong_rank},")), "{}", why);
                prop_assert!(why.contains(&format!("step {wrong_step}")), "{}", why);
                prop_assert_eq!(committed as u64, wrong_step);
                prop_assert_eq!(run.machine.committed().unwrap().step(), wrong_step);
                let right = run.correct[committed + 1].digest();
                let effects = run.machine.handle(run.now, Event::StateMade(unit, Some(right), why));
                prop_assert_eq!(all_evicted(&effects), vec![wrong_rank as u64 + 1]);
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
        all.turned_away += met.turned_away;
        all.recomputed += met.recomputed;
        all.dismissed += met.dismissed;
        all.rollbacks += met.rollbacks;
    }
    assert!(all.generations > 200 && all.joins_at_rest > 20 && all.pauses > 50, "{all:?}");
    assert!(all.silent_deaths > 20 && all.late_reports > 100, "{all:?}");
    assert!(all.rejoin_states_ahead > 10 && all.repeated_endings > 3, "{all:?}");
    assert!(all.solutions > 50 && all.rewound > 5, "{all:?}");
    assert!(all.turned_away > 5 && all.recomputed > 20 && all.dismissed > 5, "{all:?}");
    assert!(all.rollbacks > 5, "{all:?}");
}
