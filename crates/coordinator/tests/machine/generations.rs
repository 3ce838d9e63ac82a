//! When generations begin and end, and who is in them.

use std::time::Duration;

use numalign_config::CollectiveChoice;
use numalign_coordinator::machine::collective::CollectiveBackend;
use numalign_coordinator::machine::{
    Activity, Cause, Effect, Event, Generation, Machine, MemberId, RebalancePolicy, Report,
};
use numalign_projector::State;

use crate::fixtures::{HIDDEN, PAIR, Shape, join_request, report, worker_ready};
use crate::harness::{Run, evicted, failure, members_of, over_nccl, starts};

#[test]
fn the_first_generation_waits_for_all_workers() {
    let mut run = Run::new(Shape { workers: 3, ..PAIR });
    assert_eq!(run.tick(0), Vec::new());
    assert_eq!(run.machine.reason(), "waiting for 3 workers to connect");
    run.join(1);
    assert_eq!(run.machine.reason(), "1 of 3 workers are loading the model");
    assert_eq!(run.ready(1), vec![Effect::BaseKnown(worker_ready())]);
    run.join(2);
    assert_eq!(run.ready(2), Vec::new());
    run.join(3);
    assert_eq!(run.machine.reason(), "2 of 3 workers are ready, 1 loading the model");
    let effects = run.ready(3);
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(start), vec![1, 2, 3]);
    let parts: Vec<_> = start.ranks.iter().map(|(_, part)| part.clone()).collect();
    assert_eq!(parts, vec![0..2, 2..3, 3..4]);
    assert_eq!(*start.state, State::initial(HIDDEN, run.config.recipe.seed));
    assert!(start.first);
}

#[test]
fn rank_0s_id_goes_to_every_rank_of_its_generation() {
    let mut run = over_nccl(PAIR, CollectiveChoice::Auto);
    assert_eq!(run.machine.collective().map(|choice| choice.backend), Some(CollectiveBackend::Nccl));
    let generation = run.generation();
    let id = |member: u64, generation| Event::NcclId(MemberId(member), generation, vec![7; 128]);
    let effects = run.machine.handle(run.now, id(1, generation));
    assert_eq!(effects, vec![Effect::BroadcastNcclId(vec![MemberId(1), MemberId(2)], generation, vec![7; 128])]);
    assert_eq!(run.machine.handle(run.now, id(2, generation)), Vec::new(), "only rank 0 makes ids");
    let late = Generation { number: generation.number + 1, ..generation };
    assert_eq!(run.machine.handle(run.now, id(1, late)), Vec::new());
}

#[test]
fn nccl_that_fails_twice_without_a_step_gives_way_to_grpc_or_ends_the_run() {
    let fail = |run: &mut Run, generation| {
        run.machine.handle(run.now, Event::NcclFailed(MemberId(2), generation, "no socket".to_owned()))
    };
    let mut run = over_nccl(PAIR, CollectiveChoice::Auto);
    let first = run.generation();
    let effects = fail(&mut run, first);
    let [Effect::Pause(_, why), Effect::Begin(start)] = &effects[..] else { panic!("{effects:?}") };
    assert!(why.contains("worker 2") && why.contains("no socket"), "{why}");
    assert_eq!(start.collective.backend, CollectiveBackend::Nccl, "once may be an accident");
    assert_eq!(fail(&mut run, first), Vec::new(), "that generation is over");
    let second = run.generation();
    let effects = fail(&mut run, second);
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(start.collective.backend, CollectiveBackend::Grpc);
    assert!(start.collective.reason.contains("no socket"), "{}", start.collective.reason);
    assert!(!run.commit().is_empty());

    let mut run = over_nccl(PAIR, CollectiveChoice::Nccl);
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
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(start), vec![1, 2]);
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
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(start), vec![2, 3]);
    assert_eq!(start.state.step(), 1);
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
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(start), vec![2, 3]);
    assert_eq!((start.state.step(), start.generation.number, start.first), (1, 2, false));
}

#[test]
fn a_death_throws_away_what_is_pending_and_the_others_go_on_at_once() {
    let mut run = Run::begun(PAIR, 2);
    run.commit();
    let (old, second) = (run.generation(), run.correct[2].clone());
    assert_eq!(run.report(0, &second), Vec::new());
    let effects = run.leave(2);
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((members_of(start), start.state.step()), (vec![1], 1));
    let late = Event::Reported(MemberId(1), report(&run.config, old, 0, &second));
    assert_eq!(run.machine.handle(run.now, late), Vec::new());
    assert_eq!(run.machine.committed().unwrap().step(), 1);
    assert!(matches!(&run.report(0, &second)[..], [Effect::Committed(commit)] if commit.world == 1));
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
    let [Effect::Begin(start)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((members_of(start), start.state.step()), (vec![1, 2, 3], 2));
    assert_eq!(run.machine.at_rest(run.now, generation), Vec::new(), "that generation is over");
}

#[test]
fn silence_longer_than_dead_after_is_death() {
    let mut run = Run::begun(PAIR, 2);
    run.tick(2000);
    run.beat(1);
    assert_eq!(run.tick(1000), Vec::new(), "3 s are allowed");
    let effects = run.tick(1);
    assert_eq!(evicted(&effects), Some((2, false, "declared dead: no heartbeat for 3.0 s")));
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(members_of(start), vec![1]);
    // A worker that is loading dies in the same way.
    run.join(3);
    for _ in 0..3 {
        run.beat(1);
        assert_eq!(run.tick(1000), Vec::new());
    }
    run.beat(1);
    let effects = run.tick(1);
    assert_eq!(evicted(&effects).map(|(member, ..)| member), Some(3));
    assert_eq!(run.ranks(), vec![1]);
}

#[test]
fn a_permanent_failure_ends_the_run_only_where_nobody_else_is() {
    let mut run = Run::begun(Shape { workers: 1, ..PAIR }, 1);
    assert_eq!(run.fail(8, Cause::Data, "the data file is gone"), Vec::new(), "it is no member");
    let effects = run.fail(1, Cause::Machine, "the data file is gone");
    assert_eq!(failure(&effects), Some("worker 1 (rank 0, host, pid 7): the data file is gone"));

    // With another rank the run goes on, and the worker is told not to come back.
    let mut run = Run::begun_on_hosts(PAIR, 2);
    run.commit();
    let effects = run.fail(2, Cause::Machine, "the GPU is gone");
    assert_eq!(evicted(&effects), Some((2, true, "the GPU is gone")));
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!((members_of(start), start.state.step()), (vec![1], 1));
    assert_eq!(run.machine.refused().map(|process| process.host.as_str()).collect::<Vec<_>>(), ["host-2"]);
}

#[test]
fn a_newcomer_that_cannot_load_is_dismissed_and_disturbs_nobody() {
    let mut run = Run::begun_on_hosts(PAIR, 2);
    run.commit();
    let generation = run.generation();
    for (member, cause) in [(3, Cause::Machine), (4, Cause::Data), (5, Cause::Machine)] {
        run.join_as(member, None);
        let effects = run.fail(member, cause, "there is no model ./model");
        assert_eq!(effects, vec![Effect::Evict(MemberId(member), true, "there is no model ./model".to_owned())]);
        assert_eq!(run.generation(), generation);
    }
    assert_eq!(run.machine.refused().count(), 3);
    assert!(!run.commit().is_empty());
}

#[test]
fn two_workers_that_cannot_load_before_step_0_end_the_run_at_once() {
    let mut run = Run::new(Shape { workers: 3, ..PAIR });
    run.join_as(1, None);
    run.join_as(2, None);
    let effects = run.fail(1, Cause::Machine, "there is no model ./model");
    assert!(matches!(evicted(&effects), Some((1, true, _))) && failure(&effects).is_none(), "{effects:?}");
    let effects = run.fail(2, Cause::Machine, "0.3 GiB are free");
    let why = failure(&effects).expect("two say so");
    for words in ["two workers cannot load", "host-1", "./model", "host-2", "0.3 GiB are free"] {
        assert!(why.contains(words), "{why}");
    }

    // The same container that starts again and again is one worker.
    let mut run = Run::new(Shape { workers: 3, ..PAIR });
    run.join_as(1, None);
    run.ready(1);
    for member in 2..6 {
        let mut request = join_request(None);
        request.process.namespace = 100 + member;
        run.machine.handle(run.now, Event::Joined(MemberId(member), request));
        assert_eq!(failure(&run.fail(member, Cause::Machine, "no memory")), None);
    }
}

#[test]
fn a_run_that_everybody_left_waits_for_another_worker_and_then_says_why_it_ends() {
    let mut run = Run::new(PAIR);
    run.join_as(1, None);
    assert_eq!(failure(&run.fail(1, Cause::Machine, "no memory")), None, "a second worker is expected");
    assert_eq!(failure(&run.tick(5000)), None);
    let effects = run.tick(1);
    assert_eq!(failure(&effects), Some("worker 1 (host-1, pid 7): no memory"));

    let mut run = Run::new(PAIR);
    run.join_as(1, None);
    run.fail(1, Cause::Machine, "no memory");
    run.tick(4000);
    run.join_as(2, None);
    run.ready(2);
    run.beat(2);
    let effects = run.tick(2000);
    assert_eq!(failure(&effects), None, "somebody is there");
}

#[test]
fn what_no_worker_can_begin_with_is_told_once() {
    for (cause, what) in
        [(Cause::Data, "two workers cannot use the samples"), (Cause::Machine, "cannot load the model")]
    {
        let mut run = Run::new(PAIR);
        run.join_as(1, None);
        run.join_as(2, None);
        let why = "row 18 of a.csv: 9001 positions";
        assert_eq!(failure(&run.fail(2, cause, why)), None);
        let effects = run.fail(1, cause, why);
        let end = failure(&effects).expect("two workers say so");
        assert!(end.contains(what) && end.contains("host-1") && end.contains("host-2"), "{end}");
        assert_eq!(end.matches(why).count(), 1, "{end}");
    }
}

#[test]
fn bad_data_ends_the_run_once_a_second_rank_says_so() {
    let mut run = Run::begun_on_hosts(Shape { workers: 3, steps: 20, ..PAIR }, 3);
    run.commit();
    let effects = run.fail(3, Cause::Data, "sample 13: its text has no tokens");
    assert!(matches!(evicted(&effects), Some((3, true, _))) && failure(&effects).is_none(), "{effects:?}");
    assert_eq!(run.ranks(), [1, 2]);
    let effects = run.fail(1, Cause::Data, "sample 13: its text has no tokens");
    let why = failure(&effects).expect("two ranks say so");
    assert!(why.contains("two ranks") && why.contains("rank 2, host-3") && why.contains("rank 0, host-1"), "{why}");

    // Commits with the same samples refute the first one: the machine was at fault.
    let mut run = Run::begun_on_hosts(Shape { workers: 3, steps: 20, ..PAIR }, 3);
    run.commit();
    run.fail(3, Cause::Data, "sample 13: its text has no tokens");
    for _ in 0..3 {
        assert!(!run.commit().is_empty());
    }
    let effects = run.fail(1, Cause::Data, "sample 40: its text has no tokens");
    assert_eq!(failure(&effects), None);
    assert_eq!(run.ranks(), [2]);
}

#[test]
fn rows_that_a_rank_must_not_send_end_its_membership_and_nobody_elses() {
    let mut run = Run::begun_on_hosts(PAIR, 2);
    let generation = run.generation();
    let refused = |member, generation| Event::RowsRefused(MemberId(member), generation, "it sent a row".to_owned());
    let late = Generation { number: generation.number + 1, ..generation };
    assert_eq!(run.machine.handle(run.now, refused(2, late)), Vec::new());
    assert_eq!(run.machine.handle(run.now, refused(9, generation)), Vec::new());
    let effects = run.machine.handle(run.now, refused(2, generation));
    assert_eq!(evicted(&effects), Some((2, true, "it sent a row")));
    assert_eq!((failure(&effects), run.ranks()), (None, vec![1]));
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
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    let sizes: Vec<usize> = start.ranks.iter().map(|(_, part)| part.len()).collect();
    assert_eq!(sizes, [6, 2]);
}

#[test]
fn another_split_comes_as_early_as_the_policy_says() {
    let shape = Shape { micro_batches: 8, steps: 100, ..PAIR };
    let policy = RebalancePolicy { after: Duration::ZERO, after_units: 3 };
    let mut run = Run::new(shape);
    run.machine = Machine::new(run.config.clone(), 9, None, None).with_rebalance(policy);
    for member in [1, 2] {
        run.join(member);
        run.ready(member);
    }
    for step in 1..=3 {
        let (after, generation) = (run.correct[step].clone(), run.generation());
        for (rank, milliseconds) in [(0, 40), (1, 120)] {
            let mut report = Report { rows: Vec::new(), ..report(&run.config, generation, rank, &after) };
            report.timing.compute = Duration::from_millis(milliseconds);
            let effects = run.machine.handle(run.now, Event::Reported(MemberId(rank as u64 + 1), report));
            let quiesced = effects.contains(&Effect::Quiesce(generation));
            assert_eq!(quiesced, (step, rank) == (3, 1), "step {step}: {effects:?}");
        }
    }
}
