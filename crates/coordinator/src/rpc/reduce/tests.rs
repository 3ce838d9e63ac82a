//! Rows in, sums out, and what is refused.

use std::sync::Arc;

use numalign_projector::State;
use numalign_protocol::codec::floats_from_bytes;
use tokio::sync::oneshot::error::TryRecvError;

use crate::machine::collective::CollectiveDecision;

use super::*;

const OLD: Generation = Generation { incarnation: 4, number: 1, rollback: 0 };
const NEW: Generation = Generation { incarnation: 4, number: 2, rollback: 0 };
const A: MemberId = MemberId(1);
const B: MemberId = MemberId(2);

/// Three micro-batches of one sample, and settings.
fn config(more: &[(&str, &str)]) -> Config {
    let three = [("batch_size", "3"), ("micro_batch_size", "1"), ("num_epochs", "10")];
    Config::with(&[&three, more].concat()).unwrap()
}

/// Rank A has micro-batches 0 and 1, rank B has 2.
fn begin(reducer: &Reducer, generation: Generation) {
    begin_with(reducer, generation, &config(&[]));
}

fn begin_with(reducer: &Reducer, generation: Generation, config: &Config) {
    let ranks = vec![(A, 0..2), (B, 2..3)];
    let state = Arc::new(State::initial(1, 0).prepared(&config.recipe));
    let collective = CollectiveDecision { backend: CollectiveBackend::Grpc, reason: "a test".to_owned() };
    let audit_order = vec![0, 1];
    reducer.begin(&GenerationStart { generation, ranks, state, collective, audit_order, first: false }, config);
}

/// With its digest.
fn received(micro_batch: usize, values: Vec<f32>) -> ReceivedRow {
    let digest = digest_of(&values);
    (micro_batch, values, digest)
}

/// Floats whose sum depends on the order of adding.
fn row(micro_batch: usize) -> ReceivedRow {
    let values = [[1.0, 1e-8, 0.1, -0.0, 3.0], [1e8, 1.0, 0.2, -0.0, 4.0], [-1e8, -1.0, 0.3, -0.0, 5.0]];
    received(micro_batch, values[micro_batch].to_vec())
}

fn bits(sum: &[f32]) -> Bytes {
    floats_to_bytes(sum).into()
}

fn later(contribution: Contribution) -> oneshot::Receiver<Answer> {
    match contribution {
        Contribution::Later(receiver) => receiver,
        Contribution::Done(_) => panic!("a sum without all rows"),
        Contribution::NotFinite(bad, _) => panic!("{bad:?} are not finite"),
        Contribution::Stale => panic!("stale"),
    }
}

fn sum(contribution: Contribution) -> Bytes {
    match contribution {
        Contribution::Done(answer) => sum_of(answer),
        Contribution::Later(_) => panic!("all rows are there"),
        Contribution::NotFinite(bad, _) => panic!("{bad:?} are not finite"),
        Contribution::Stale => panic!("stale"),
    }
}

fn sum_of(answer: Answer) -> Bytes {
    match answer.reduced {
        Reduced::Sum(sum) => sum,
        Reduced::Gathered(_) => panic!("a training step has a sum"),
    }
}

#[test]
fn rows_of_a_chunk_are_kept_in_order_and_answered_by_their_digest() {
    let exact = config(&[("solver", "exact"), ("train_input_projection", "false")]);
    let reducer = Reducer::default();
    begin_with(&reducer, OLD, &exact);
    // Hidden size 1: a hidden state and a target.
    let chunk_row = |micro_batch: usize| received(micro_batch, vec![micro_batch as f32, -0.0]);
    let mut waiting = later(reducer.contribute(OLD, B, 2, vec![chunk_row(2)]).unwrap());
    assert!(reducer.deposit(OLD, A, 2, vec![chunk_row(1)]).unwrap());
    assert!(!reducer.deposit(NEW, A, 2, vec![chunk_row(0)]).unwrap());
    assert_eq!(reducer.take_gathered(OLD, 2), None);
    let Contribution::Done(answer) = reducer.contribute(OLD, A, 2, vec![chunk_row(0)]).unwrap() else {
        panic!("all rows are there");
    };
    let expected = [0.0, -0.0, 1.0, -0.0, 2.0, -0.0];
    assert_eq!(answer.reduced, Reduced::Gathered(digest_of(&expected)));
    assert_eq!(waiting.try_recv(), Ok(answer));
    assert_eq!(reducer.take_gathered(NEW, 2), None);
    assert_eq!(reducer.take_gathered(OLD, 2).map(|rows| bits(&rows)), Some(bits(&expected)));
    assert_eq!(reducer.take_gathered(OLD, 2), None);
    assert_eq!(
        reducer.contribute(OLD, A, 3, vec![row(0)]).err(),
        Some(RowError::WrongLength { micro_batch: 0, got: 5, want: 2 }.into())
    );
}

#[test]
fn all_ranks_get_the_canonical_sum_in_any_order_of_arrival() {
    let mut canonical = Rows::new(3, 5);
    for micro_batch in 0..3 {
        canonical.insert(micro_batch, row(micro_batch).1).unwrap();
    }
    let canonical = bits(&canonical.sum().unwrap());
    for a_first in [true, false] {
        let reducer = Reducer::default();
        begin(&reducer, OLD);
        let parts = [(A, vec![row(1), row(0)]), (B, vec![row(2)])];
        let [first, second] = if a_first { parts } else { [parts[1].clone(), parts[0].clone()] };
        let mut waiting = later(reducer.contribute(OLD, first.0, 7, first.1).unwrap());
        assert_eq!(waiting.try_recv(), Err(TryRecvError::Empty));
        let answer = sum(reducer.contribute(OLD, second.0, 7, second.1).unwrap());
        assert_eq!(answer, canonical);
        assert_eq!(sum_of(waiting.try_recv().unwrap()), canonical);
        assert_eq!(reducer.waiting_for(), None);
    }
}

#[test]
fn what_is_missing_is_named_and_steps_do_not_mix() {
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    let mut of_six = later(reducer.contribute(OLD, B, 6, vec![row(2)]).unwrap());
    let mut of_seven = later(reducer.contribute(OLD, B, 7, vec![row(2)]).unwrap());
    assert_eq!(reducer.waiting_for(), Some((6, vec![0, 1])));
    sum(reducer.contribute(OLD, A, 6, vec![row(0), row(1)]).unwrap());
    assert!(of_six.try_recv().is_ok());
    assert_eq!(of_seven.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(reducer.waiting_for(), Some((7, vec![0, 1])));
}

#[test]
fn the_end_of_a_generation_cancels_who_waits_in_it() {
    let reducer = Reducer::default();
    for replace in [true, false] {
        begin(&reducer, OLD);
        let mut waiting = later(reducer.contribute(OLD, A, 0, vec![row(0), row(1)]).unwrap());
        match replace {
            true => begin(&reducer, NEW),
            false => reducer.end(),
        }
        assert_eq!(waiting.try_recv(), Err(TryRecvError::Closed));
        assert_eq!(reducer.waiting_for(), None);
    }
}

#[test]
fn rows_of_other_generations_and_strangers_count_for_nothing() {
    let reducer = Reducer::default();
    let stale = |generation, member| {
        let contribution = reducer.contribute(generation, member, 0, vec![row(2)]).unwrap();
        matches!(contribution, Contribution::Stale)
    };
    assert!(stale(OLD, B));
    begin(&reducer, OLD);
    begin(&reducer, NEW);
    assert!(stale(OLD, B));
    assert!(stale(Generation { incarnation: 5, ..NEW }, B));
    assert!(stale(NEW, MemberId(3)));
    later(reducer.contribute(NEW, A, 0, vec![row(0), row(1)]).unwrap());
    assert_eq!(reducer.waiting_for(), Some((0, vec![2])));
}

#[test]
fn far_ahead_units_are_rejected() {
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    let mut first = later(reducer.contribute(OLD, B, 0, vec![row(2)]).unwrap());
    let mut again = later(reducer.contribute(OLD, B, 0, vec![row(2)]).unwrap());
    assert_eq!(first.try_recv(), Err(TryRecvError::Closed), "it has one place to wait at");
    assert_eq!(again.try_recv(), Err(TryRecvError::Empty));
    for step in 1..10_000 {
        let contribution = reducer.contribute(OLD, B, step, vec![row(2)]).unwrap();
        assert_eq!(matches!(contribution, Contribution::Stale), step >= MAX_UNITS, "step {step}");
    }
    sum(reducer.contribute(OLD, A, 0, vec![row(0), row(1)]).unwrap());
    assert!(again.try_recv().is_ok(), "the step in work is not harmed");
}

#[test]
fn junk_units_never_take_the_place_of_the_units_that_all_wait_for() {
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    for junk in (1 << 50)..(1 << 50) + 100 {
        assert!(!reducer.deposit(OLD, B, junk, vec![row(2)]).unwrap());
    }
    // What is ahead and allowed moves the bound by nothing: only a whole unit does.
    for ahead in 1..MAX_UNITS {
        assert!(reducer.deposit(OLD, B, ahead, vec![row(2)]).unwrap());
    }
    assert!(!reducer.deposit(OLD, B, MAX_UNITS, vec![row(2)]).unwrap());
    for unit in 0..100 {
        let of_a = reducer.contribute(OLD, A, unit, vec![row(0), row(1)]).unwrap();
        // B's rows of the first units are there already.
        assert_eq!(matches!(of_a, Contribution::Done(_)), (1..MAX_UNITS).contains(&unit), "unit {unit}");
        sum(reducer.contribute(OLD, B, unit, vec![row(2)]).unwrap());
    }
    assert!(!reducer.deposit(OLD, B, u64::MAX, vec![row(2)]).unwrap());
    // Nor do units that are long done.
    for old in 0..100 - MAX_UNITS {
        assert!(!reducer.deposit(OLD, B, old, vec![row(2)]).unwrap(), "unit {old}");
    }
    let reducer = reducer.lock();
    let open = &reducer.as_ref().unwrap().open;
    assert_eq!(open.keys().copied().collect::<Vec<_>>(), (100 - MAX_UNITS..100).collect::<Vec<_>>());
    assert!(open.values().all(|entry| entry.rows.complete() && entry.waiting.is_empty()), "they hold results alone");
}

#[test]
fn rows_of_another_rank_are_refused_and_their_owners_still_count() {
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    for foreign in [0, 1] {
        let refused = RowsRefused::NotItsOwn { micro_batch: foreign, part: 2..3 };
        let garbage = vec![received(foreign, vec![7.0; 5])];
        assert_eq!(reducer.deposit(OLD, B, 0, garbage.clone()), Err(refused.clone()));
        assert_eq!(reducer.contribute(OLD, B, 0, garbage).err(), Some(refused));
    }
    later(reducer.contribute(OLD, A, 0, vec![row(0), row(1)]).unwrap());
    sum(reducer.contribute(OLD, B, 0, vec![row(2)]).unwrap());
}

#[test]
fn rows_that_are_not_finite_have_no_sum_and_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let reducer = Reducer::default();
        begin(&reducer, OLD);
        let mut waiting = later(reducer.contribute(OLD, A, 0, vec![row(0), row(1)]).unwrap());
        let found = reducer.contribute(OLD, B, 0, vec![received(2, vec![1.0, 2.0, bad, 3.0, 4.0])]).unwrap();
        let Contribution::NotFinite(micro_batches, mut receiver) = found else { panic!("it has a sum") };
        assert_eq!(micro_batches, [2]);
        assert_eq!((waiting.try_recv(), receiver.try_recv()), (Err(TryRecvError::Empty), Err(TryRecvError::Empty)));
        reducer.end();
        assert_eq!(waiting.try_recv(), Err(TryRecvError::Closed));
    }
    // The rows are finite and their sum is not: that is for the ranks to say.
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    let huge = |micro_batch| received(micro_batch, vec![f32::MAX; 5]);
    later(reducer.contribute(OLD, A, 0, vec![huge(0), huge(1)]).unwrap());
    sum(reducer.contribute(OLD, B, 0, vec![huge(2)]).unwrap());
    // Features are looked at too.
    let exact = config(&[("solver", "exact"), ("train_input_projection", "false")]);
    begin_with(&reducer, NEW, &exact);
    later(reducer.contribute(NEW, B, 0, vec![received(2, vec![1.0, 2.0])]).unwrap());
    let rows = vec![received(0, vec![1.0, 2.0]), received(1, vec![f32::NAN, 2.0])];
    let found = reducer.contribute(NEW, A, 0, rows).unwrap();
    assert!(matches!(found, Contribution::NotFinite(bad, _) if bad == [1]));
    assert_eq!(reducer.take_gathered(NEW, 0), None);
}

#[test]
fn a_row_that_does_not_fit_is_refused() {
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    let refusal = |rows| reducer.contribute(OLD, A, 0, rows).err();
    let no_such = RowError::NoSuchMicroBatch { micro_batch: 3, count: 3 };
    assert_eq!(refusal(vec![received(3, row(0).1)]), Some(no_such.into()));
    assert_eq!(
        refusal(vec![received(0, vec![1.0])]),
        Some(RowError::WrongLength { micro_batch: 0, got: 1, want: 5 }.into())
    );
    later(reducer.contribute(OLD, A, 0, vec![row(0)]).unwrap());
    assert_eq!(refusal(vec![received(0, row(1).1)]), Some(RowError::Conflict { micro_batch: 0 }.into()));
}

#[test]
fn a_result_is_there_for_a_rank_that_asks_once_more() {
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    for unit in 0..3 {
        later(reducer.contribute(OLD, A, unit, vec![row(0), row(1)]).unwrap());
        let answer = sum(reducer.contribute(OLD, B, unit, vec![row(2)]).unwrap());
        for _ in 0..2 {
            assert_eq!(sum(reducer.contribute(OLD, A, unit, vec![row(0), row(1)]).unwrap()), answer);
        }
        assert_eq!(reducer.missing(unit), Some((OLD, Vec::new())));
    }
    assert_eq!(reducer.waiting_for(), None);
}

#[test]
fn the_digests_of_what_was_received_are_known() {
    let reducer = Reducer::default();
    begin(&reducer, OLD);
    assert_eq!(reducer.received(OLD, A, 0), None);
    later(reducer.contribute(OLD, A, 0, vec![row(0), row(1)]).unwrap());
    sum(reducer.contribute(OLD, B, 0, vec![row(2)]).unwrap());
    let digests = |rows: &[usize]| Some(rows.iter().map(|place| (*place, row(*place).2)).collect::<Vec<_>>());
    assert_eq!(reducer.received(OLD, A, 0), digests(&[0, 1]));
    assert_eq!(reducer.received(OLD, B, 0), digests(&[2]));
    assert_eq!((reducer.received(NEW, B, 0), reducer.received(OLD, MemberId(9), 0)), (None, None));
}

#[test]
fn the_state_after_a_unit_is_made_of_its_sum_and_only_in_order() {
    let (reducer, config) = (Reducer::default(), config(&[]));
    begin_with(&reducer, OLD, &config);
    let mut expected = State::initial(1, 0).prepared(&config.recipe);
    for unit in [0, 1, 2] {
        assert_eq!(reducer.made(OLD, unit), None);
        later(reducer.contribute(OLD, A, unit, vec![row(0), row(1)]).unwrap());
        let sum = sum(reducer.contribute(OLD, B, unit, vec![row(2)]).unwrap());
        expected.update(&floats_from_bytes(&sum).unwrap(), &config.recipe).unwrap();
        assert_eq!(reducer.made(OLD, unit).as_deref(), Some(&expected));
    }
    later(reducer.contribute(OLD, A, 4, vec![row(0), row(1)]).unwrap());
    sum(reducer.contribute(OLD, B, 4, vec![row(2)]).unwrap());
    assert_eq!(reducer.made(OLD, 4), None, "the unit before it is not there");
    assert_eq!(reducer.made(NEW, 2), None);
    assert!(reducer.is_first_rank(OLD, A) && !reducer.is_first_rank(OLD, B) && !reducer.is_first_rank(NEW, A));
}

#[test]
fn the_next_sum_tells_what_is_committed_and_only_that_one() {
    let (reducer, start) = (Reducer::default(), Instant::now());
    let committed = |unit| proto::Committed { unit, mac: vec![unit as u8] };
    assert_eq!(reducer.commit(committed(1), start), Err(committed(1)), "no rank waits for a sum");
    begin(&reducer, OLD);
    for unit in [1, 2] {
        assert_eq!(reducer.commit(committed(unit), start), Ok(()));
    }
    let told = |unit| {
        later(reducer.contribute(OLD, A, unit, vec![row(0), row(1)]).unwrap());
        match reducer.contribute(OLD, B, unit, vec![row(2)]).unwrap() {
            Contribution::Done(answer) => answer.to_message(unit).sum.and_then(|sum| sum.committed),
            _ => panic!("all rows are there"),
        }
    };
    assert_eq!((told(2), told(3)), (Some(committed(2)), None));
    let (limit, later) = (Duration::from_secs(1), start + Duration::from_secs(2));
    assert_eq!(reducer.untold_commit(later, limit), None);
    assert_eq!(reducer.commit(committed(3), start), Ok(()));
    assert_eq!(reducer.untold_commit(start, limit), None, "a sum may come yet");
    assert_eq!(reducer.untold_commit(later, limit), Some(committed(3)));
    assert_eq!(told(4), None);
}

#[test]
fn the_largest_message_holds_every_row_of_a_step_and_little_more() {
    use prost::Message;
    let reducer = Reducer::default();
    assert_eq!(reducer.max_message_bytes(), INITIAL_LIMIT);
    begin(&reducer, OLD);
    let rows = (0..3).map(|index| proto::Row::new(index, &[0.0; 5], [0; 32])).collect();
    let done = proto::UnitDone {
        generation: Some(OLD),
        unit: u64::MAX,
        digest: vec![0; 32],
        rows: (0..3).map(|index| proto::RowDigest::new(index, [0; 32])).collect(),
        ..proto::UnitDone::default()
    };
    let (generation, unit, done) = (Some(OLD), Some(u64::MAX), Some(done));
    let message = proto::RankMessage { generation, unit, rows, done, member: u64::MAX, ..Default::default() };
    assert!(message.encoded_len() <= reducer.max_message_bytes());
    assert!(reducer.max_message_bytes() <= 2 * 4096);
    reducer.end();
    assert!(message.encoded_len() <= reducer.max_message_bytes(), "late messages are still read");
}
