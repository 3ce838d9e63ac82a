//! Who is admitted, and which state a run continues from.

use numalign_config::{Arithmetic, CollectiveChoice};
use numalign_coordinator::machine::{Effect, Event, KnownBase, Machine, MemberId, WorkerReady};
use numalign_projector::State;

use crate::fixtures::{PAIR, Shape, config_of, correct_states, join_request, known_base, next, worker_ready};
use crate::harness::{Run, evicted, failure, over_nccl, starts, with_nccl};

#[test]
fn collective_nccl_takes_only_workers_that_have_it() {
    let mut run = over_nccl(PAIR, CollectiveChoice::Nccl);
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
fn more_than_max_workers_are_turned_away_until_one_leaves() {
    let mut run = Run::begun(Shape { max_workers: 2, ..PAIR }, 2);
    let effects = run.join(3);
    let [Effect::TurnAway(MemberId(3), why)] = &effects[..] else { panic!("{effects:?}") };
    assert!(why.starts_with("max_workers is 2 and as many are connected"), "{why}");
    assert_eq!(run.machine.members().len(), 2);
    assert_eq!(run.machine.refused().count(), 0, "a launcher would not start it again");
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
        (WorkerReady { trial_digest: vec![1, 2, 4], ..worker_ready() }, "other bits than this run's machines"),
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
    let effects = run.ready_with(2, WorkerReady { trial_digest: vec![9], ..worker_ready() });
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
        run.join_as(1, None);
        let effects = run.ready_with(1, wrong.clone());
        assert!(matches!(evicted(&effects), Some((1, true, _))));
        assert_eq!(failure(&effects), None, "another one may come");
        run.join_as(2, None);
        let effects = run.ready_with(2, wrong);
        assert!(matches!(evicted(&effects), Some((2, true, _))));
        let why = failure(&effects).expect("both workers of the run are refused");
        assert!(why.contains("host-1") && why.contains("host-2"), "{why}");
    }
}

#[test]
fn a_rejoin_state_binds_the_hidden_size() {
    let states = correct_states(&config_of(PAIR));
    let mut run = Run::new(PAIR);
    run.join_with(1, Some(states[2].clone()));
    run.ready(1);
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
fn a_rejoin_state_of_another_model_does_not_keep_honest_workers_out() {
    let states = correct_states(&config_of(PAIR));
    let mut run = Run::new(PAIR);
    let mut foreign = State::initial(64, 0);
    for _ in 0..4 {
        let row = vec![0.5; foreign.layout().row_len()];
        foreign.update(&row, &run.config.recipe).unwrap();
    }
    run.join_as(1, Some(foreign));
    assert_eq!(run.machine.committed().unwrap().step(), 4);
    run.join_as(2, None);
    let effects = run.ready(2);
    let Some((1, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("another hidden size than the model, 3"), "{why}");
    assert_eq!(failure(&effects), None);
    run.join_as(3, Some(states[2].clone()));
    let effects = run.ready(3);
    let [start] = starts(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(*start.state, states[2], "an honest worker's state counts");
}

#[test]
fn a_state_that_cannot_be_of_the_run_is_refused_with_who_brought_it() {
    let states = correct_states(&config_of(PAIR));
    let mut wrong_step = states[2].to_bytes();
    wrong_step[..8].copy_from_slice(&5u64.to_le_bytes());
    let mut run = Run::new(PAIR);
    let effects = run.join_as(1, Some(State::from_bytes(&wrong_step).unwrap()));
    let Some((1, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("the state that it brought along is not taken: its powers of β"), "{why}");
    assert_eq!((failure(&effects), run.machine.committed()), (None, None));
    assert!(run.machine.members().is_empty());
    assert_eq!(run.machine.refused().count(), 1);
}

#[test]
fn a_state_that_no_coordinator_of_the_run_committed_is_refused_unless_it_is_trusted() {
    let states = correct_states(&config_of(PAIR));
    for trust in [false, true] {
        let mut config = config_of(PAIR);
        config.run.trust_returning_state = trust;
        let mut run = Run::of(config, None);
        let mut request = join_request(Some(states[3].clone()));
        request.mac_holds = false;
        let effects = run.machine.handle(run.now, Event::Joined(MemberId(1), request));
        assert_eq!(run.machine.committed().is_some(), trust);
        if !trust {
            let Some((1, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
            assert!(why.contains("committed it (step 3)") && why.contains("--trust-returning-state true"), "{why}");
        }
    }
}

#[test]
fn what_a_newcomer_brings_along_matters_only_before_the_first_generation() {
    let mut run = Run::begun(PAIR, 2);
    for _ in 0..3 {
        run.commit();
    }
    let mut other = run.correct[2].clone();
    other.update(&[1.0; 11], &run.config.recipe).unwrap();
    let mut nonsense = run.correct[3].to_bytes();
    nonsense[32..36].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut wide = State::initial(64, 0);
    wide.update(&vec![0.5; wide.layout().row_len()], &run.config.recipe).unwrap();
    for (member, state) in [(3, other), (4, State::from_bytes(&nonsense).unwrap()), (5, wide)] {
        assert_eq!(run.join_with(member, Some(state)), Vec::new());
        assert!(run.machine.members().contains_key(&MemberId(member)));
    }
    assert_eq!(**run.machine.committed().unwrap(), run.correct[3]);
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
fn of_two_states_for_one_step_the_second_is_refused() {
    let states = correct_states(&config_of(PAIR));
    let mut other = states[2].clone();
    other.update(&[1.0; 11], &config_of(PAIR).recipe).unwrap();
    let mut run = Run::new(PAIR);
    run.join_with(1, Some(states[3].clone()));
    let effects = run.join_with(2, Some(other.clone()));
    assert_eq!(failure(&effects), None);
    let Some((2, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("two states for step 3 differ"), "{why}");
    assert_eq!(**run.machine.committed().unwrap(), states[3]);
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
    let mut run = Run::new(Shape { workers: 1, ..PAIR });
    run.machine = Machine::new(run.config.clone(), 9, Some(state), Some(base));
    run.join(1);
    let effects = run.ready_with(1, with("aaaa"));
    let why = failure(&effects).expect("nobody else is there");
    assert!(why.contains("that of chk/mine/step-2.safetensors has cccc"), "{why}");
}

#[test]
fn rounded_products_bind_the_run_and_exact_ones_too() {
    let with = |arithmetic: Arithmetic| WorkerReady { arithmetic, ..worker_ready() };
    let mut run = Run::new(PAIR);
    run.join(1);
    run.ready_with(1, with(Arithmetic::F32));
    run.join(2);
    let effects = run.ready_with(2, with(Arithmetic::Tf32));
    let Some((2, true, why)) = evicted(&effects) else { panic!("{effects:?}") };
    assert!(why.contains("it would multiply in tf32") && why.contains("so far is in f32"), "{why}");
    assert!(why.contains("exact_f32"), "{why}");
    // A file with a state that was computed so binds the first worker; one without leaves the choice to it.
    let state = correct_states(&config_of(PAIR))[2].clone();
    for (stored, admitted) in [(Some(Arithmetic::Bf16), false), (Some(Arithmetic::Tf32), true), (None, true)] {
        let base = KnownBase { arithmetic: stored, ..known_base() };
        let mut run = Run::new(Shape { workers: 1, ..PAIR });
        run.machine = Machine::new(run.config.clone(), 9, Some(state.clone()), Some(base));
        run.join(1);
        let effects = run.ready_with(1, with(Arithmetic::Tf32));
        assert_eq!(failure(&effects).is_none(), admitted, "{stored:?}: {effects:?}");
    }
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
        run.join_as(1, None);
        run.join_as(2, None);
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
    // One worker's word is not enough.
    let doubted = || {
        let mut bad = run();
        let effects = answer(&mut bad, 2, Err("sample 3: too long".to_owned()));
        assert_eq!((checks(&effects), failure(&effects)), (vec![(1, 0)], None));
        bad
    };
    let mut bad = doubted();
    assert_eq!(failure(&answer(&mut bad, 1, Err("sample 3: too long".to_owned()))), Some("sample 3: too long"));
    let mut bad = doubted();
    let effects = answer(&mut bad, 1, Ok(()));
    assert!(evicted(&effects).is_some_and(|(who, permanent, why)| who == 2 && permanent && why.contains("sample 3")));
    assert!(failure(&effects).is_none(), "the other goes on: {effects:?}");
    // The second one leaves, and nobody comes in its place.
    let mut bad = doubted();
    assert_eq!(failure(&bad.leave(1)), None);
    assert!(bad.machine.reason().contains("waiting for a second worker"), "{}", bad.machine.reason());
    assert_eq!(failure(&bad.beat_for(7, &[2])), Some("sample 3: too long"));
    // Where one worker is all that is asked for, its word counts.
    let mut alone = Run::new(Shape { workers: 1, ..PAIR });
    alone.machine = Machine::new(alone.config.clone(), 9, None, None).with_sample_check();
    alone.join(1);
    alone.ready(1);
    assert_eq!(failure(&answer(&mut alone, 1, Err("sample 3: too long".to_owned()))), Some("sample 3: too long"));
    // Its worker left: another one begins anew.
    let mut lost = run();
    lost.join_as(3, None);
    lost.ready(3);
    assert_eq!(checks(&lost.leave(2)), [(1, 0)]);
    assert_eq!(starts(&answer(&mut lost, 1, Ok(()))).len(), 1);
}
