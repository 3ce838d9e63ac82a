//! The coordinator's side of the gRPC collective: rows come in, the canonical sum goes out to every rank.
//! Called by the service; the shell begins and ends generations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use numalign_projector::{RowError, Rows};
use prost::bytes::Bytes;
use tokio::sync::oneshot;

use crate::machine::{Beginning, Generation, MemberId};

/// No rank gets further ahead of the others than the step after theirs, so what is in work is a handful of steps. A member
/// that names more is out of its mind, and its rows would fill the memory.
const MOST_STEPS: usize = 8;

struct StepRows {
    rows: Rows,
    /// One place per member: whoever asks again takes the place of its earlier call.
    waiting: HashMap<MemberId, oneshot::Sender<Bytes>>,
    asked: HashSet<MemberId>,
    /// Little-endian floats, as they are sent; shared by all who ask.
    sum: Option<Bytes>,
}

struct Current {
    generation: Generation,
    members: HashSet<MemberId>,
    first_step: u64,
    steps: BTreeMap<u64, StepRows>,
    micro_batches: usize,
    row_len: usize,
}

/// Rows of the present generation's steps. Dropping a generation cancels everybody who waits in it.
#[derive(Default)]
pub struct Reducer {
    current: Mutex<Option<Current>>,
}

/// What became of a contribution.
pub enum Contribution {
    /// Little-endian floats.
    Sum(Bytes),
    /// The sum comes here, or the sender is dropped with the generation.
    Later(oneshot::Receiver<Bytes>),
    /// It belongs to no present generation.
    Stale,
}

impl Reducer {
    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation begins; what an earlier one left is dropped.
    pub fn begin(&self, beginning: &Beginning, micro_batches: usize) {
        *self.lock() = Some(Current {
            generation: beginning.generation,
            members: beginning.ranks.iter().map(|(id, _)| *id).collect(),
            first_step: beginning.state.step(),
            steps: BTreeMap::new(),
            micro_batches,
            row_len: beginning.state.layout().row_len(),
        });
    }

    /// The generation is over.
    pub fn end(&self) {
        *self.lock() = None;
    }

    /// Adds a member's rows of one step.
    pub fn contribute(
        &self,
        generation: Generation,
        member: MemberId,
        step: u64,
        rows: Vec<(usize, Vec<f32>)>,
    ) -> Result<Contribution, RowError> {
        let mut current = self.lock();
        let Some(current) =
            current.as_mut().filter(|current| current.generation == generation && current.members.contains(&member))
        else {
            return Ok(Contribution::Stale);
        };
        let is_new = !current.steps.contains_key(&step);
        if step < current.first_step || (is_new && current.steps.len() >= MOST_STEPS) {
            return Ok(Contribution::Stale);
        }
        let (micro_batches, row_len) = (current.micro_batches, current.row_len);
        let entry = current.steps.entry(step).or_insert_with(|| StepRows {
            rows: Rows::new(micro_batches, row_len),
            waiting: HashMap::new(),
            asked: HashSet::new(),
            sum: None,
        });
        for (micro_batch, row) in rows {
            entry.rows.insert(micro_batch, row)?;
        }
        entry.asked.insert(member);
        if entry.sum.is_none() && entry.rows.complete() {
            let sum = entry.rows.sum()?;
            entry.sum = Some(sum.iter().flat_map(|value| value.to_le_bytes()).collect());
        }
        let Some(sum) = entry.sum.clone() else {
            let (sender, receiver) = oneshot::channel();
            entry.waiting.insert(member, sender);
            return Ok(Contribution::Later(receiver));
        };
        for (_, waiter) in entry.waiting.drain() {
            // A waiter that went away has left its generation too.
            let _ = waiter.send(sum.clone());
        }
        if entry.asked.len() == current.members.len() {
            current.steps.remove(&step);
        }
        Ok(Contribution::Sum(sum))
    }

    /// Micro-batches whose rows the oldest unfinished step still lacks: the answer to "what does the reduction wait for?".
    pub fn waiting_for(&self) -> Option<(u64, Vec<usize>)> {
        let current = self.lock();
        let (step, entry) = current.as_ref()?.steps.iter().find(|(_, entry)| entry.sum.is_none())?;
        Some((*step, entry.rows.missing()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use numalign_projector::State;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    const OLD: Generation = Generation { incarnation: 4, number: 1 };
    const NEW: Generation = Generation { incarnation: 4, number: 2 };
    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(2);

    /// Rank A has micro-batches 0 and 1, rank B has 2.
    fn begin(reducer: &Reducer, generation: Generation) {
        let ranks = vec![(A, 0..2), (B, 2..3)];
        let state = Arc::new(State::initial(1, 0));
        reducer.begin(&Beginning { generation, ranks, state, first: false }, 3);
    }

    /// Floats whose sum depends on the order of adding.
    fn row(micro_batch: usize) -> (usize, Vec<f32>) {
        let values = [[1.0, 1e-8, 0.1, -0.0, 3.0], [1e8, 1.0, 0.2, -0.0, 4.0], [-1e8, -1.0, 0.3, -0.0, 5.0]];
        (micro_batch, values[micro_batch].to_vec())
    }

    fn bits(sum: &[f32]) -> Bytes {
        sum.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn later(contribution: Contribution) -> oneshot::Receiver<Bytes> {
        match contribution {
            Contribution::Later(receiver) => receiver,
            Contribution::Sum(_) => panic!("a sum without all rows"),
            Contribution::Stale => panic!("stale"),
        }
    }

    fn sum(contribution: Contribution) -> Bytes {
        match contribution {
            Contribution::Sum(sum) => sum,
            Contribution::Later(_) => panic!("all rows are there"),
            Contribution::Stale => panic!("stale"),
        }
    }

    #[test]
    fn all_ranks_get_the_canonical_sum_whoever_comes_first() {
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
            assert_eq!(waiting.try_recv().unwrap(), canonical);
            assert_eq!(reducer.waiting_for(), None);
        }
    }

    #[test]
    fn what_is_missing_is_named_and_steps_do_not_mix() {
        let reducer = Reducer::default();
        begin(&reducer, OLD);
        let mut of_seven = later(reducer.contribute(OLD, B, 7, vec![row(2)]).unwrap());
        let mut of_eight = later(reducer.contribute(OLD, B, 8, vec![row(2)]).unwrap());
        assert_eq!(reducer.waiting_for(), Some((7, vec![0, 1])));
        sum(reducer.contribute(OLD, A, 7, vec![row(0), row(1)]).unwrap());
        assert!(of_seven.try_recv().is_ok());
        assert_eq!(of_eight.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(reducer.waiting_for(), Some((8, vec![0, 1])));
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
    fn a_member_gone_mad_takes_no_memory() {
        let reducer = Reducer::default();
        begin(&reducer, OLD);
        let mut first = later(reducer.contribute(OLD, B, 0, vec![row(2)]).unwrap());
        let mut again = later(reducer.contribute(OLD, B, 0, vec![row(2)]).unwrap());
        assert_eq!(first.try_recv(), Err(TryRecvError::Closed), "it has one place to wait at");
        assert_eq!(again.try_recv(), Err(TryRecvError::Empty));
        for step in 1..10_000 {
            let contribution = reducer.contribute(OLD, B, step, vec![row(2)]).unwrap();
            assert_eq!(matches!(contribution, Contribution::Stale), step >= MOST_STEPS as u64, "step {step}");
        }
        sum(reducer.contribute(OLD, A, 0, vec![row(0), row(1)]).unwrap());
        assert!(again.try_recv().is_ok(), "the step in work is not harmed");
    }

    #[test]
    fn a_row_that_does_not_fit_is_refused() {
        let reducer = Reducer::default();
        begin(&reducer, OLD);
        let refusal = |rows| reducer.contribute(OLD, A, 0, rows).err();
        let no_such = RowError::NoSuchMicroBatch { micro_batch: 3, count: 3 };
        assert_eq!(refusal(vec![(3, row(0).1)]), Some(no_such));
        assert_eq!(refusal(vec![(0, vec![1.0])]), Some(RowError::WrongLength { micro_batch: 0, got: 1, want: 5 }));
        later(reducer.contribute(OLD, A, 0, vec![row(0)]).unwrap());
        assert_eq!(refusal(vec![(0, row(1).1)]), Some(RowError::Conflict { micro_batch: 0 }));
    }
}
