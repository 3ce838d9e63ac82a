//! The coordinator's side of the gRPC collective: rows come in, the canonical sum goes out to every rank.
//! Called by the service; the shell begins and ends generations.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use numalign_projector::{RowError, Rows};
use tokio::sync::oneshot;

use crate::machine::{Beginning, Generation, MemberId};

struct StepRows {
    rows: Rows,
    waiting: Vec<oneshot::Sender<Vec<f32>>>,
    asked: HashSet<MemberId>,
    sum: Option<Vec<f32>>,
}

struct Current {
    generation: Generation,
    members: HashSet<MemberId>,
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
    Sum(Vec<f32>),
    /// The sum comes here, or the sender is dropped with the generation.
    Later(oneshot::Receiver<Vec<f32>>),
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
        let Some(current) = current
            .as_mut()
            .filter(|current| current.generation == generation && current.members.contains(&member))
        else {
            return Ok(Contribution::Stale);
        };
        let (micro_batches, row_len) = (current.micro_batches, current.row_len);
        let entry = current.steps.entry(step).or_insert_with(|| StepRows {
            rows: Rows::new(micro_batches, row_len),
            waiting: Vec::new(),
            asked: HashSet::new(),
            sum: None,
        });
        for (micro_batch, row) in rows {
            entry.rows.insert(micro_batch, row)?;
        }
        entry.asked.insert(member);
        if entry.sum.is_none() && entry.rows.complete() {
            entry.sum = Some(entry.rows.sum()?);
        }
        let Some(sum) = entry.sum.clone() else {
            let (sender, receiver) = oneshot::channel();
            entry.waiting.push(sender);
            return Ok(Contribution::Later(receiver));
        };
        for waiter in entry.waiting.drain(..) {
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
