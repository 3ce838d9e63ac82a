//! What is committed: agreement of the ranks, audits, and the solver's rounds.

use std::sync::Arc;

use numalign_config::{CollectiveChoice, Solver};
use numalign_coordinator::machine::{Effect, Event, MemberId, Report};
use numalign_projector::State;

use crate::fixtures::{PAIR, Shape, config_of, features, fit, join_request, report};
use crate::harness::{Run, all_evicted, evicted, failure, members_of, over_nccl, starts};

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
fn over_nccl_a_state_that_does_not_have_its_digest_evicts_rank_0() {
    for (step, words) in [(Some(2), "does not have the digest"), (None, "without its state")] {
        let mut run = over_nccl(PAIR, CollectiveChoice::Auto);
        let (state, first) = (step.map(|step: usize| Arc::new(run.correct[step].clone())), run.correct[1].clone());
        run.report(1, &first);
        let bad = Report { state, ..report(&run.config, run.generation(), 0, &first) };
        let effects = run.machine.handle(run.now, Event::Reported(MemberId(1), bad));
        assert!(evicted(&effects).is_some_and(|(who, _, why)| who == 1 && why.contains(words)), "{effects:?}");
        assert_eq!(run.machine.committed().unwrap().step(), 0);
        assert_eq!(run.ranks(), [2], "the other goes on");
    }
}

#[test]
fn over_grpc_ranks_whose_state_is_not_that_of_the_coordinator_wait_for_one_who_can_tell() {
    for (made, words) in [(Some(2), "where the coordinator has"), (None, "whose rows never came to a sum here")] {
        let reported = |shape: Shape| {
            let mut run = Run::begun(shape, shape.workers);
            let (state, first) = (made.map(|step: usize| Arc::new(run.correct[step].clone())), run.correct[1].clone());
            let other = Report { state, ..report(&run.config, run.generation(), 0, &first) };
            let mut effects = Vec::new();
            for rank in 1..shape.workers {
                effects.extend(run.report(rank, &first));
            }
            effects.extend(run.machine.handle(run.now, Event::Reported(MemberId(1), other)));
            assert_eq!(run.machine.committed().unwrap().step(), 0);
            effects
        };
        let effects = reported(PAIR);
        let [Effect::Pause(_, why)] = &effects[..] else { panic!("{effects:?}") };
        assert!(why.contains(words) && why.contains("one worker more"), "{why}");
        // Where no generation can have another rank, nobody is waited for.
        let effects = reported(Shape { workers: 1, micro_batches: 1, ..PAIR });
        assert!(failure(&effects).is_some_and(|why| why.contains(words)), "{effects:?}");
    }
}

/// Every rank reports the next step; those in `wrong` have other states.
fn disagreeing(run: &mut Run, wrong: &[usize]) -> Vec<Effect> {
    let step = run.machine.committed().unwrap().step() as usize;
    let (right, mut other) = (run.correct[step + 1].clone(), run.correct[step].clone());
    let row = vec![0.25; other.layout().row_len()];
    other.update(&row, &run.config.recipe).unwrap();
    let (generation, ranks) = (run.generation(), run.ranks());
    let mut effects = Vec::new();
    for (rank, member) in ranks.into_iter().enumerate() {
        let state = if wrong.contains(&rank) { &other } else { &right };
        let report = report(&run.config, generation, rank, state);
        effects.extend(run.machine.handle(run.now, Event::Reported(MemberId(member), report)));
    }
    effects
}

#[test]
fn a_majority_of_state_digests_decides_and_the_odd_ranks_are_excluded() {
    for (world, wrong) in [(3, vec![0]), (3, vec![1]), (3, vec![2]), (4, vec![3]), (5, vec![0, 3])] {
        let shape = Shape { workers: world, micro_batches: 5, ..PAIR };
        let mut run = Run::begun_on_hosts(shape, world);
        run.commit();
        let effects = disagreeing(&mut run, &wrong);
        let odd: Vec<u64> = wrong.iter().map(|rank| *rank as u64 + 1).collect();
        assert_eq!((all_evicted(&effects), failure(&effects)), (odd.clone(), None));
        let (_, permanent, why) = evicted(&effects).unwrap();
        assert!(permanent && why.contains("after step 1 its state is") && why.contains("ranks have"), "{why}");
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Committed(_))));
        assert_eq!(run.ranks().len(), world - wrong.len());
        // Its machine does not come back, and the others finish.
        run.join_as(odd[0], None);
        assert!(evicted(&run.ready(odd[0])).is_some_and(|(.., why)| why.contains("wrong numbers")));
        while run.machine.phase() != "done" {
            assert!(!run.commit().is_empty());
        }
        assert_eq!(**run.machine.committed().unwrap(), run.correct[6]);
    }
}

#[test]
fn a_device_with_other_workers_stays_open_for_new_ones() {
    let join = |run: &mut Run, member: u64, pid: u32| {
        let mut request = join_request(None);
        request.process.pid = pid;
        run.machine.handle(run.now, Event::Joined(MemberId(member), request));
        run.ready(member)
    };
    let mut run = Run::new(Shape { workers: 3, ..PAIR });
    for member in 1..=3 {
        join(&mut run, member, member as u32);
    }
    run.commit();
    let effects = disagreeing(&mut run, &[1]);
    assert_eq!(all_evicted(&effects), [2]);
    let told =
        |effect: &Effect| matches!(effect, Effect::Warn(why) if why.contains("new ones are still admitted there"));
    assert!(effects.iter().any(told), "{effects:?}");
    // Not the process itself, but one in the place of another that dies.
    assert!(evicted(&join(&mut run, 4, 2)).is_some_and(|(.., why)| why.contains("it computed wrong numbers on cpu")));
    run.leave(3);
    assert!(all_evicted(&join(&mut run, 5, 5)).is_empty());
    while run.machine.phase() != "done" {
        run.tick(500);
        assert!(!run.commit().is_empty());
    }
    assert_eq!(**run.machine.committed().unwrap(), run.correct[6]);
}

#[test]
fn without_a_majority_of_digests_the_coordinator_makes_the_state_itself() {
    for (world, wrong, second) in [(2, vec![1], 1), (2, vec![0], 1), (4, vec![1, 2], 1), (4, vec![2, 3], 2)] {
        let disputed = || {
            let shape = Shape { workers: world, micro_batches: 5, ..PAIR };
            let mut run = Run::begun_on_hosts(shape, world);
            run.commit();
            let effects = disagreeing(&mut run, &wrong);
            let [Effect::MakeState(generation, 1, why)] = &effects[..] else { panic!("{effects:?}") };
            for words in ["the ranks disagree after step 1", "rank 0, host-1", &format!("rank {second}, host-")] {
                assert!(why.contains(words), "{why}");
            }
            assert_eq!(run.machine.committed().unwrap().step(), 1);
            (run, (*generation, 1), why.clone())
        };
        let (mut run, unit, why) = disputed();
        let right = run.correct[2].digest();
        let effects = run.machine.handle(run.now, Event::StateMade(unit, Some(right), why));
        let odd: Vec<u64> = wrong.iter().map(|rank| *rank as u64 + 1).collect();
        assert_eq!((all_evicted(&effects), failure(&effects)), (odd, None));
        while run.machine.phase() != "done" {
            assert!(!run.commit().is_empty());
        }
        assert_eq!(**run.machine.committed().unwrap(), run.correct[6]);
        // Over NCCL it has no rows, and nobody else is there.
        let (mut run, unit, why) = disputed();
        let effects = run.machine.handle(run.now, Event::StateMade(unit, None, why));
        assert!(matches!(&effects[..], [Effect::Pause(..)]), "{effects:?}");
        let everybody: Vec<u64> = (1..=world as u64).collect();
        assert!(failure(&run.beat_for(601, &everybody)).is_some_and(|why| why.contains("the ranks disagree")));
    }
}

#[test]
fn reports_far_ahead_and_states_of_other_ranks_are_not_kept() {
    let mut run = Run::begun(Shape { steps: 40, ..PAIR }, 2);
    let states = run.correct.clone();
    // Eight units from the committed one on; what is further would fill the memory.
    for state in &states[1..9] {
        assert_eq!(run.report(0, state), Vec::new());
    }
    for state in &states[1..9] {
        let mut report = report(&run.config, run.generation(), 1, state);
        report.state = Some(Arc::new(states[3].clone()));
        let effects = run.machine.handle(run.now, Event::Reported(MemberId(2), report));
        assert!(matches!(&effects[..], [Effect::Committed(commit)] if *commit.state == *state), "{effects:?}");
    }
    let effects = run.report(0, &states[18]);
    let Some((1, false, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert_eq!(why, "its report of unit 17 is 9 units ahead of the committed ones");
    assert_eq!(run.ranks(), [2], "the other goes on");
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
        let (who, permanent, why) = evicted(&effects).expect("somebody goes");
        assert_eq!((who, permanent), (odd, true));
        assert!(why.contains("step 1") && why.contains("micro-batch"), "{why}");
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Committed(_))), "the step is not committed");
        // It was never audited before, so the run begins again.
        let Some(Effect::RollBack(back)) = effects.first() else { panic!("{effects:?}") };
        assert_eq!((back.number, back.to.step()), (1, 0));
        let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!((start.state.step(), start.generation.rollback), (0, 1));
        assert!(!members_of(start).contains(&odd) && start.ranks.len() == 2);
        // Its machine does not come back, and the launcher is told.
        run.join(9);
        let effects = run.ready(9);
        assert!(evicted(&effects).is_some_and(|(who, good, why)| who == 9 && good && why.contains("wrong numbers")));
        assert_eq!(run.machine.refused().map(|process| process.pid).collect::<Vec<_>>(), [7, 7]);
    }
}

#[test]
fn an_audit_between_two_waits_for_a_third_who_can_tell() {
    let asked = || {
        let mut run = Run::begun_on_hosts(PAIR, 2);
        run.commit();
        let effects = audited(&mut run, 1);
        let [Effect::Pause(_, why)] = &effects[..] else { panic!("{effects:?}") };
        for word in ["rank 0", "rank 1", "step 1", "600 s (arbiter_wait)", "one worker more"] {
            assert!(why.contains(word), "{why}");
        }
        assert_eq!(run.machine.committed().unwrap().step(), 1, "nothing of the step is committed");
        run
    };
    // Nobody comes: the run ends, and names both.
    let mut run = asked();
    run.beat_for(599, &[1, 2]);
    assert!(run.machine.reason().contains("2 of 3 workers are ready"), "{}", run.machine.reason());
    let effects = run.beat_for(2, &[1, 2]);
    let why = failure(&effects).expect("the run stops");
    assert!(why.contains("rank 0") && why.contains("rank 1") && why.contains("step 1"), "{why}");
    // A third comes, and the audit is repeated.
    let mut run = asked();
    run.join_as(3, None);
    assert_eq!(starts(&run.ready(3)).len(), 1);
    let wrong = run.ranks().iter().position(|member| *member == 2).unwrap();
    let effects = audited(&mut run, wrong);
    assert!(evicted(&effects).is_some_and(|(who, permanent, _)| who == 2 && permanent), "{effects:?}");
    while run.machine.phase() != "done" {
        assert!(!run.commit().is_empty());
    }
    assert_eq!(**run.machine.committed().unwrap(), run.correct[6]);
    // Where no generation can have a third rank, nobody is waited for.
    let mut run = Run::begun(Shape { micro_batches: 2, ..PAIR }, 2);
    run.commit();
    assert!(failure(&audited(&mut run, 1)).is_some());
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
fn a_rank_that_received_other_rows_over_nccl_ends_the_generation_before_the_commit() {
    let mut run = over_nccl(PAIR, CollectiveChoice::Auto);
    let after = run.correct[1].clone();
    run.report(0, &after);
    let mut damaged = report(&run.config, run.generation(), 1, &after);
    damaged.received = Some([7; 32]);
    let effects = run.machine.handle(run.now, Event::Reported(MemberId(2), damaged));
    let [Effect::Pause(_, why), Effect::Begin(start)] = &effects[..] else { panic!("{effects:?}") };
    assert!(why.contains("worker 2") && why.contains("received other rows of unit 0 over NCCL"), "{why}");
    assert_eq!((start.state.step(), all_evicted(&effects)), (0, Vec::new()));
    assert!(matches!(&run.commit()[..], [Effect::Committed(_)]), "the unit is computed again");
}

/// A run whose only unit is a chunk.
const ROUND: Shape = Shape { steps: 1, solver: Solver::Exact, ..PAIR };

/// [`ROUND`] at the end of its chunk.
fn gathered_run() -> (Run, State) {
    let run = Run::begun(ROUND, 2);
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
fn over_nccl_features_that_are_not_those_of_the_digest_evict_rank_0() {
    for (features, words) in [(None, "without its features"), (Some(features(7)), "do not have the digest")] {
        let mut run = over_nccl(ROUND, CollectiveChoice::Auto);
        let gathered = run.correct[1].clone();
        run.report(1, &gathered);
        let bad = Report { features, ..report(&run.config, run.generation(), 0, &gathered) };
        let effects = run.machine.handle(run.now, Event::Reported(MemberId(1), bad));
        assert!(evicted(&effects).is_some_and(|(who, _, why)| who == 1 && why.contains(words)), "{effects:?}");
        assert_eq!(run.machine.committed().unwrap().position().gathered, Some(0));
        assert_eq!(run.ranks(), [2], "the other computes the chunk again");
    }
}
