//! Ranks that are alive and do nothing: who is replaced, when, and that the others go on.

use std::time::Duration;

use numalign_config::CollectiveChoice;
use numalign_coordinator::machine::{Effect, MemberId};

use crate::fixtures::{PAIR, Shape};
use crate::harness::{Run, all_evicted, members_of, over_nccl, starts};

/// As the driver does every tick: what the coordinator lacks, heartbeats, a tick.
fn pass(run: &mut Run, seconds: u64, missing: &[usize]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for _ in 0..2 * seconds {
        if let (Some(unit), Some(generation)) = (run.machine.awaited_unit(), run.machine.generation()) {
            run.machine.rows_missing(run.now, generation, unit, missing);
        }
        let members: Vec<u64> = run.machine.members().keys().map(|id| id.0).collect();
        for member in members {
            run.beat(member);
        }
        effects.extend(run.tick(500));
    }
    effects
}

fn replaced(effects: &[Effect]) -> Vec<(u64, &str)> {
    let found = effects.iter().filter_map(|effect| match effect {
        Effect::Replace(member, why) => Some((member.0, why.as_str())),
        _ => None,
    });
    found.collect()
}

#[test]
fn a_rank_that_sends_no_rows_is_replaced_and_the_other_goes_on() {
    let mut run = Run::begun(PAIR, 2);
    run.commit();
    // Rank 1 has micro-batches 2 and 3.
    assert_eq!(pass(&mut run, 60, &[2, 3]), Vec::new(), "a minute is allowed");
    let effects = pass(&mut run, 1, &[2, 3]);
    let [(2, why)] = replaced(&effects)[..] else { panic!("{effects:?}") };
    assert!(why.contains("has sent no rows of unit 1 for 60 s although it is alive"), "{why}");
    let pause = effects.iter().find_map(|effect| match effect {
        Effect::Pause(members, why) => Some((members.clone(), why)),
        _ => None,
    });
    let (members, why) = pause.expect("the generation ends");
    assert!(members == [MemberId(1)] && why.contains("worker 2 (rank 1"), "{members:?} {why}");
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((members_of(start), start.state.step()), (vec![1], 1));
}

#[test]
fn a_rank_that_never_did_a_unit_gets_ten_times_as_long() {
    let mut run = Run::begun(PAIR, 2);
    assert_eq!(pass(&mut run, 600, &[2, 3]), Vec::new());
    assert_eq!(replaced(&pass(&mut run, 1, &[2, 3])).len(), 1);
}

#[test]
fn each_replacement_without_a_commit_doubles_the_bound() {
    let mut run = Run::begun(Shape { workers: 3, ..PAIR }, 3);
    run.commit();
    // Rank 2 has the last micro-batch; then rank 1 of two has the last two.
    assert_eq!(replaced(&pass(&mut run, 61, &[3])).len(), 1);
    assert_eq!(pass(&mut run, 119, &[2, 3]), Vec::new());
    assert_eq!(replaced(&pass(&mut run, 2, &[2, 3])).len(), 1);
}

#[test]
fn a_rank_that_has_all_rows_and_does_not_report_is_replaced() {
    let mut run = Run::begun(PAIR, 2);
    run.commit();
    pass(&mut run, 1, &[]);
    let after = run.correct[2].clone();
    run.report(0, &after);
    assert_eq!(pass(&mut run, 59, &[]), Vec::new());
    let effects = pass(&mut run, 2, &[]);
    let [(2, why)] = replaced(&effects)[..] else { panic!("{effects:?}") };
    assert!(why.contains("has not reported unit 1"), "{why}");
}

#[test]
fn a_coordinator_that_was_stopped_blames_nobody() {
    let mut run = Run::begun(PAIR, 2);
    run.commit();
    pass(&mut run, 1, &[2, 3]);
    run.now += Duration::from_secs(3600);
    for member in 1..=2 {
        run.beat(member);
    }
    assert_eq!(run.tick(0), Vec::new());
    assert_eq!(pass(&mut run, 58, &[2, 3]), Vec::new());
    assert_eq!(replaced(&pass(&mut run, 3, &[2, 3])).len(), 1);
}

#[test]
fn a_coordinator_that_was_stopped_takes_nobody_for_dead() {
    let mut run = Run::begun(PAIR, 2);
    assert_eq!(run.tick(500), Vec::new());
    // The heartbeats of that time are still on their way.
    assert_eq!(run.tick(10_000), Vec::new());
    run.beat(1);
    let effects: Vec<Effect> = (0..8).flat_map(|_| run.tick(500)).collect();
    assert_eq!(all_evicted(&effects)[..1], [2], "from then on the usual time is allowed");
}

#[test]
fn what_a_rank_owes_adds_up_over_generations() {
    let mut run = Run::begun_on_hosts(Shape { workers: 3, ..PAIR }, 3);
    run.commit();
    // Member 3 hangs, and the others come and go.
    let missing = |run: &Run| run.machine.part_of(MemberId(3)).expect("it has a rank").collect::<Vec<_>>();
    for newcomer in 4..7 {
        let owed = missing(&run);
        assert_eq!(replaced(&pass(&mut run, 19, &owed)), []);
        let gone = run.ranks().into_iter().find(|member| *member != 3).expect("another");
        run.leave(gone);
        run.join_as(newcomer, None);
        run.ready(newcomer);
    }
    let owed = missing(&run);
    let effects = pass(&mut run, 6, &owed);
    let [(3, why)] = replaced(&effects)[..] else { panic!("{effects:?}") };
    assert!(why.contains("has sent no rows of unit 1 for 60 s"), "{why}");
}

#[test]
fn a_process_that_comes_back_still_owes_what_it_owed() {
    let mut run = Run::begun_on_hosts(PAIR, 2);
    run.commit();
    assert_eq!(pass(&mut run, 40, &[2, 3]), Vec::new());
    run.leave(2);
    run.join_as(2, None);
    run.ready(2);
    run.leave(1);
    assert_eq!(run.ranks(), [2]);
    // It is no new process, which would get ten times as long.
    let all = [0, 1, 2, 3];
    assert_eq!(replaced(&pass(&mut run, 19, &all)), []);
    assert_eq!(replaced(&pass(&mut run, 2, &all)).len(), 1);
}

#[test]
fn over_nccl_heartbeats_tell_who_has_computed_and_a_sum_that_never_comes_is_nccls_failure() {
    let mut run = over_nccl(PAIR, CollectiveChoice::Auto);
    run.commit();
    let number = run.generation().number;
    run.machine.rows_computed(run.now, MemberId(1), number, 2);
    let effects = pass(&mut run, 61, &[]);
    let [(2, _)] = replaced(&effects)[..] else { panic!("{effects:?}") };

    let mut run = over_nccl(PAIR, CollectiveChoice::Auto);
    run.commit();
    let number = run.generation().number;
    for member in 1..=2 {
        run.machine.rows_computed(run.now, MemberId(member), number, 2);
    }
    let effects = pass(&mut run, 61, &[]);
    assert_eq!(replaced(&effects), []);
    let said =
        effects.iter().any(|effect| matches!(effect, Effect::Pause(_, why) if why.contains("the sum of unit 1")));
    assert!(said && starts(&effects).len() == 1, "{effects:?}");
}
