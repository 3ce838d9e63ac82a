//! Who is admitted, and which state a run continues from.

use numalign_config::CollectiveChoice;
use numalign_coordinator::machine::{Effect, Event, KnownBase, Machine, MemberId, WorkerReady};
use numalign_projector::State;

use crate::fixtures::{PAIR, Shape, config_of, correct_states, known_base, next, worker_ready};
use crate::harness::{Run, evicted, failure, over_nccl, starts, with_nccl};

#[test]
fn collective_nccl_takes_only_workers_that_have_it() {
    let mut run = over_nccl(CollectiveChoice::Nccl);
    run.join(3);
    let effects = run.ready_with(3, worker_ready());
    let Some((3, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("collective: nccl cannot be used") && why.contains("no GPU"), "{why}");
    run.join(4);
    let effects = run.ready_with(4, with_nccl(1));
    let Some((4, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("share a GPU (GPU-1)"), "{why}");
    run.join(5);
    assert_eq!(evicted(&run.ready_with(5, with_nccl(5))), None);
}

#[test]
fn more_than_max_workers_are_refused() {
    let mut run = Run::begun(Shape { max_workers: 2, ..PAIR }, 2);
    let effects = run.join(3);
    assert_eq!(evicted(&effects), Some((3, true, "max_workers is 2 and as many are connected")));
    assert_eq!(run.machine.members().len(), 2);
    run.leave(1);
    assert_eq!(run.join(4), Vec::new());
}

#[test]
fn another_model_is_refused() {
    let wrong = [
        (
            WorkerReady { base_fingerprint: "fedcba9876543210".to_owned(), ..worker_ready() },
            "fingerprint fedcba9876543210",
        ),
        (WorkerReady { hidden_size: 4, ..worker_ready() }, "its hidden size is 4, this run's is 3"),
        (WorkerReady { probe_digest: vec![1, 2, 4], ..worker_ready() }, "other bits than this run's machines"),
    ];
    for (worker_ready, words) in wrong {
        let mut run = Run::begun(PAIR, 2);
        run.join(3);
        let effects = run.ready_with(3, worker_ready);
        let Some((3, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
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
    let effects = run.ready_with(2, WorkerReady { probe_digest: vec![9], ..worker_ready() });
    assert_eq!(starts(&effects).len(), 1);
}

#[test]
fn a_checkpoint_binds_the_model() {
    let states = correct_states(&config_of(PAIR));
    for wrong in [
        WorkerReady { base_fingerprint: "other".to_owned(), ..worker_ready() },
        WorkerReady { hidden_size: 4, ..worker_ready() },
    ] {
        let mut run = Run::of(config_of(PAIR), Some(states[2].clone()));
        run.join(1);
        let effects = run.ready_with(1, wrong);
        assert!(matches!(evicted(&effects), Some((1, true, _))));
        assert!(failure(&effects).is_some_and(|why| why.contains("was refused")), "nobody else is there");
    }
}

#[test]
fn a_rejoin_state_binds_the_hidden_size() {
    let states = correct_states(&config_of(PAIR));
    let mut run = Run::new(PAIR);
    run.join_with(1, Some(states[2].clone()));
    run.join(2);
    let effects = run.ready_with(2, WorkerReady { hidden_size: 4, ..worker_ready() });
    assert!(matches!(evicted(&effects), Some((2, true, why)) if why.contains("hidden size is 4")), "{effects:?}");

    let mut other = State::initial(4, 0);
    for _ in 0..3 {
        other = next(&other, &run.config);
    }
    let effects = run.join_with(3, Some(other));
    assert!(matches!(evicted(&effects), Some((3, true, why)) if why.contains("hidden size")), "{effects:?}");
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
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(*start.state, states[3]);
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
    assert_eq!(run.ready(1), vec![Effect::BaseKnown(worker_ready()), Effect::Finished]);
    assert_eq!(run.machine.reason(), "all 6 steps are committed");
}

#[test]
fn a_second_ready_changes_nothing() {
    let mut run = Run::begun(PAIR, 2);
    assert_eq!(run.ready(1), Vec::new());
    assert_eq!(run.ready_with(2, WorkerReady { hidden_size: 9, ..worker_ready() }), Vec::new());
    assert_eq!(run.ranks(), vec![1, 2]);
    run.beat(1);
    run.beat(2);
    assert_eq!(run.tick(1000), Vec::new());
}

#[test]
fn another_tokenizer_is_refused_by_name() {
    let with = |hex: &str| WorkerReady { tokenizer_fingerprint: Some(hex.to_owned()), ..worker_ready() };
    let mut run = Run::new(PAIR);
    run.join(1);
    run.ready_with(1, with("aaaa"));
    run.join(2);
    let effects = run.ready_with(2, with("bbbb"));
    let Some((2, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("its tokenizer has fingerprint bbbb, this run's has aaaa"), "{why}");
    // A file binds the first worker too, and says so.
    let base = KnownBase { tokenizer: Some("cccc".to_owned()), ..known_base() };
    let state = correct_states(&config_of(PAIR))[2].clone();
    let mut run = Run::new(PAIR);
    run.machine = Machine::new(run.config.clone(), 9, Some(state), Some(base));
    run.join(1);
    let effects = run.ready_with(1, with("aaaa"));
    let why = failure(&effects).expect("nobody else is there");
    assert!(why.contains("that of chk/mine/step-2.safetensors has cccc"), "{why}");
}

#[test]
fn the_first_ready_worker_checks_the_samples_before_anybody_trains() {
    let checks = |effects: &[Effect]| {
        let of = |effect: &Effect| match effect {
            Effect::CheckSamples(member, longest) => Some((member.0, *longest)),
            _ => None,
        };
        effects.iter().filter_map(of).collect::<Vec<_>>()
    };
    let run = || {
        let mut run = Run::new(PAIR);
        run.machine = Machine::new(run.config.clone(), 9, None, None).with_sample_check();
        run.join(1);
        run.join(2);
        let effects = run.ready_with(2, WorkerReady { longest_text: 64, ..worker_ready() });
        assert_eq!(checks(&effects), [(2, 64)]);
        let effects = run.ready(1);
        assert_eq!((checks(&effects), starts(&effects).len()), (Vec::new(), 0), "one check, and nobody trains");
        assert!(run.machine.reason().contains("checking"), "{}", run.machine.reason());
        run
    };
    let answer = |run: &mut Run, member, checked| {
        let event = Event::SamplesChecked(MemberId(member), checked);
        run.machine.handle(run.now, event)
    };
    let mut good = run();
    assert_eq!(answer(&mut good, 1, Err("not asked".to_owned())), Vec::new());
    assert_eq!(starts(&answer(&mut good, 2, Ok(()))).len(), 1);
    let mut bad = run();
    assert_eq!(failure(&answer(&mut bad, 2, Err("sample 3: too long".to_owned()))), Some("sample 3: too long"));
    // Its worker left: another one begins anew.
    let mut lost = run();
    lost.join(3);
    lost.ready(3);
    assert_eq!(checks(&lost.leave(2)), [(1, 0)]);
    assert_eq!(starts(&answer(&mut lost, 1, Ok(()))).len(), 1);
}
