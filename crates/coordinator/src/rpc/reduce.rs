//! The coordinator's side of the gRPC collective: rows come in, the canonical sum goes out to every rank. Rows of the
//! solver's chunks are kept instead, and only their digest goes out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use numalign_config::{Config, Recipe};
use numalign_data::{Schedule, Unit};
use numalign_projector::digest_of;
use numalign_projector::{Features, RowError, Rows, State, StateError};
use numalign_protocol as proto;
use numalign_protocol::codec::{CodecError, floats_to_bytes};
use prost::bytes::Bytes;
use tokio::sync::oneshot;

use crate::machine::collective::CollectiveBackend;
use crate::machine::{Generation, GenerationStart, MemberId};

/// No rank gets further ahead of the others than the unit after theirs, so only a handful of units are open: those from
/// the first that is not reduced yet. A member that names others is faulty or malicious: its rows would fill the memory,
/// or take the place of the units that everybody waits for.
const MAX_UNITS: u64 = 8;

/// Micro-batch, floats, and the digest that was made where they were computed.
pub type ReceivedRow = (usize, Vec<f32>, [u8; 32]);

/// What the rows of a unit come to.
#[derive(Debug, Clone, PartialEq)]
pub enum Reduced {
    /// The canonical sum of a training step's rows: little-endian floats, as they are sent; shared by all who ask.
    Sum(Bytes),
    /// BLAKE3 of a chunk's rows in micro-batch order.
    Gathered([u8; 32]),
}

/// What goes to every rank once the rows of a unit are there: the same for all, so that it is encoded once.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What the rows come to.
    pub reduced: Reduced,
    /// What was committed since the answer before.
    pub committed: Option<proto::Committed>,
}

impl Answer {
    /// As a message; `unit` is the unit of the rows.
    pub fn to_message(&self, unit: u64) -> proto::WorkMessage {
        let mut sum = proto::Sum { unit, committed: self.committed.clone(), ..proto::Sum::default() };
        match &self.reduced {
            Reduced::Sum(bytes) => sum.sum = bytes.clone(),
            Reduced::Gathered(digest) => sum.gathered_digest = digest.to_vec(),
        }
        proto::WorkMessage { sum: Some(sum), work: Vec::new() }
    }
}

/// A unit in work, and its result until the unit is long done: a rank whose answer was damaged asks once more.
struct UnitRows {
    /// Empty once they are reduced.
    rows: Rows,
    /// Of the rows that came: micro-batch and digest.
    digests: BTreeMap<usize, [u8; 32]>,
    /// One per member: a repeated call replaces the earlier one.
    waiting: HashMap<MemberId, oneshot::Sender<Answer>>,
    asked: HashSet<MemberId>,
    answer: Option<Answer>,
    /// The state after the unit, as every rank must make it.
    made: Option<Arc<State>>,
}

struct Current {
    generation: Generation,
    /// Micro-batches of each rank: nobody else's rows of them are taken.
    parts: HashMap<MemberId, Range<usize>>,
    /// Rank 0.
    first_rank: Option<MemberId>,
    /// Rows come here, not over NCCL.
    brings_rows: bool,
    recipe: Recipe,
    eval_samples: u64,
    /// After the latest unit that was reduced.
    state: Arc<State>,
    units: Schedule,
    first_unit: u64,
    /// One past the latest unit that was reduced; the first unit before that.
    next_unit: u64,
    open: BTreeMap<u64, UnitRows>,
    /// Gathered rows of chunks that are not committed yet.
    gathered: BTreeMap<u64, Vec<f32>>,
    /// What the next answer tells, and since when it waits for one.
    committed: Option<(proto::Committed, Instant)>,
    /// Units below this are reduced, and every rank has the result.
    finished: u64,
    micro_batches: usize,
    row_len: usize,
    chunk_row_len: usize,
}

/// Largest message of a rank before the first generation sets the size of a row.
const INITIAL_LIMIT: usize = 64 << 10;

/// Rows of the present generation's units. Dropping a generation cancels everybody who waits in it.
pub struct Reducer {
    current: Mutex<Option<Current>>,
    /// Bytes of a message with every row of a step, as the latest generation has them.
    largest: AtomicUsize,
}

impl Default for Reducer {
    fn default() -> Self {
        Self { current: Mutex::default(), largest: AtomicUsize::new(INITIAL_LIMIT) }
    }
}

/// Why rows are not taken: only their sender can be at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsRefused {
    /// They are another rank's.
    #[error("it sent a row of micro-batch {micro_batch}, and its own are {part:?}")]
    NotItsOwn {
        /// Whose row came.
        micro_batch: usize,
        /// What the sender has to compute.
        part: Range<usize>,
    },
    /// They do not fit.
    #[error(transparent)]
    Row(#[from] RowError),
    /// They are no row, or not the one that was computed.
    #[error("its row of micro-batch {micro_batch} cannot be used: {reason}")]
    Unreadable {
        /// Whose row came.
        micro_batch: u32,
        /// What is wrong with it.
        reason: CodecError,
    },
}

/// What became of a contribution.
pub enum Contribution {
    /// The result.
    Done(Answer),
    /// The result comes here, or the sender is dropped with the generation.
    Later(oneshot::Receiver<Answer>),
    /// All rows are there, and those of these micro-batches are not finite: there is no result. The receiver is dropped
    /// with the generation.
    NotFinite(Vec<usize>, oneshot::Receiver<Answer>),
    /// It belongs to no present generation.
    Stale,
}

impl Current {
    /// Whether `unit` is one of this generation, and neither far ahead of the others nor long done.
    fn accepts(&self, unit: u64) -> bool {
        let oldest = self.next_unit.saturating_sub(MAX_UNITS).max(self.first_unit);
        unit >= oldest && unit < self.next_unit.saturating_add(MAX_UNITS)
    }

    fn is_chunk(&self, unit: u64) -> bool {
        matches!(self.units.unit(unit), Unit::Chunk { .. })
    }

    fn add(&mut self, member: MemberId, unit: u64, rows: Vec<ReceivedRow>) -> Result<&mut UnitRows, RowsRefused> {
        let part = self.parts.get(&member).cloned().unwrap_or_default();
        for (micro_batch, ..) in &rows {
            if *micro_batch < self.micro_batches && !part.contains(micro_batch) {
                return Err(RowsRefused::NotItsOwn { micro_batch: *micro_batch, part });
            }
        }
        let row_len = if self.is_chunk(unit) { self.chunk_row_len } else { self.row_len };
        let micro_batches = self.micro_batches;
        let entry = self.open.entry(unit).or_insert_with(|| UnitRows {
            rows: Rows::new(micro_batches, row_len),
            digests: BTreeMap::new(),
            waiting: HashMap::new(),
            asked: HashSet::new(),
            answer: None,
            made: None,
        });
        if entry.answer.is_some() {
            // They were here before.
            return Ok(entry);
        }
        for (micro_batch, row, digest) in rows {
            entry.rows.insert(micro_batch, row)?;
            entry.digests.insert(micro_batch, digest);
        }
        Ok(entry)
    }

    /// Every row of `unit` is there, and they come to these floats: their sum, or of a chunk all of them.
    fn complete(&mut self, unit: u64, floats: Vec<f32>) {
        let is_chunk = self.is_chunk(unit);
        let reduced = match is_chunk {
            true => Reduced::Gathered(digest_of(&floats)),
            false => Reduced::Sum(floats_to_bytes(&floats).into()),
        };
        let made = self.state_after(unit, &floats, &reduced);
        if let Some(made) = &made {
            self.state = made.clone();
        }
        let committed = self.committed.take().map(|(committed, _)| committed);
        if let Some(entry) = self.open.get_mut(&unit) {
            (entry.answer, entry.made) = (Some(Answer { reduced, committed }), made);
        }
        if is_chunk {
            self.gathered.insert(unit, floats);
        }
    }

    /// The state after `unit`, whose rows came to these floats and this result. `None` if the unit is not the one after the
    /// latest, or the ranks cannot make a state of it either.
    fn state_after(&self, unit: u64, floats: &[f32], reduced: &Reduced) -> Option<Arc<State>> {
        if self.units.index(self.state.position()) != unit {
            return None;
        }
        let made = match (self.units.unit(unit), reduced) {
            (Unit::Step(_), Reduced::Sum(_)) => updated(&self.state, floats, &self.recipe),
            (Unit::Chunk { .. }, Reduced::Gathered(digest)) => self.state.gathered(&self.recipe, *digest),
            (Unit::Evaluate, Reduced::Sum(_)) => self.state.evaluated(&self.recipe, floats, self.eval_samples),
            _ => return None,
        };
        made.ok().map(Arc::new)
    }
}

fn updated(before: &State, sum: &[f32], recipe: &Recipe) -> Result<State, StateError> {
    let mut after = before.clone();
    after.update(sum, recipe)?;
    Ok(after)
}

impl Reducer {
    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation begins; what an earlier one left is dropped.
    pub fn begin(&self, start: &GenerationStart, config: &Config) {
        let (recipe, units) = (&config.recipe, Schedule::of_run(config));
        let (layout, first_unit) = (start.state.layout(), units.index(start.state.position()));
        let (row_len, width) = (layout.row_len(), Features::width(layout.read_width()));
        let chunk_row_len = recipe.micro_batch_size * width;
        let largest = message_bytes(recipe.micro_batches(), row_len.max(chunk_row_len));
        self.largest.store(largest, Ordering::Relaxed);
        *self.lock() = Some(Current {
            generation: start.generation,
            parts: start.ranks.iter().cloned().collect(),
            first_rank: start.ranks.first().map(|(member, _)| *member),
            brings_rows: start.collective.backend == CollectiveBackend::Grpc,
            recipe: recipe.clone(),
            eval_samples: config.run.eval_samples,
            state: start.state.clone(),
            units,
            first_unit,
            next_unit: first_unit,
            open: BTreeMap::new(),
            gathered: BTreeMap::new(),
            committed: None,
            finished: 0,
            micro_batches: recipe.micro_batches(),
            row_len,
            chunk_row_len,
        });
    }

    /// The largest message of a rank, in bytes, that can be legitimate: every row of a step, and a report.
    pub fn max_message_bytes(&self) -> usize {
        self.largest.load(Ordering::Relaxed)
    }

    /// The generation is over.
    pub fn end(&self) {
        *self.lock() = None;
    }

    /// Adds some of a member's rows of one unit; more will come. False if they belong to no present generation.
    ///
    /// # Errors
    /// A row that does not fit, or is not the member's own.
    pub fn deposit(
        &self,
        generation: Generation,
        member: MemberId,
        unit: u64,
        rows: Vec<ReceivedRow>,
    ) -> Result<bool, RowsRefused> {
        match self.lock().as_mut() {
            Some(current) if current.generation == generation && current.parts.contains_key(&member) => {
                let accepted = current.accepts(unit);
                if accepted {
                    current.add(member, unit, rows)?;
                }
                Ok(accepted)
            }
            _ => Ok(false),
        }
    }

    /// Adds a member's rows of one unit, or the last of them.
    ///
    /// # Errors
    /// A row that does not fit, or is not the member's own.
    pub fn contribute(
        &self,
        generation: Generation,
        member: MemberId,
        unit: u64,
        rows: Vec<ReceivedRow>,
    ) -> Result<Contribution, RowsRefused> {
        let mut current = self.lock();
        let Some(current) =
            current.as_mut().filter(|current| current.generation == generation && current.parts.contains_key(&member))
        else {
            return Ok(Contribution::Stale);
        };
        if !current.accepts(unit) {
            return Ok(Contribution::Stale);
        }
        let is_chunk = current.is_chunk(unit);
        let entry = current.add(member, unit, rows)?;
        entry.asked.insert(member);
        let (mut complete, mut bad) = (None, Vec::new());
        if entry.answer.is_none() && entry.rows.complete() {
            let floats = if is_chunk { entry.rows.concatenated()? } else { entry.rows.sum()? };
            // A sum of finite rows may be infinite too: that is the recipe's doing, and every rank finds it.
            if !floats.iter().all(|value| value.is_finite()) {
                bad = entry.rows.not_finite();
            }
            if bad.is_empty() {
                entry.rows = Rows::new(0, 0);
                complete = Some(floats);
            }
        }
        if let Some(floats) = complete {
            current.complete(unit, floats);
        }
        let Some(entry) = current.open.get_mut(&unit) else {
            return Ok(Contribution::Stale);
        };
        let Some(answer) = entry.answer.clone() else {
            let (sender, receiver) = oneshot::channel();
            entry.waiting.insert(member, sender);
            return Ok(match bad.is_empty() {
                true => Contribution::Later(receiver),
                false => Contribution::NotFinite(bad, receiver),
            });
        };
        for (_, waiter) in entry.waiting.drain() {
            // A waiter that went away has left its generation too.
            let _ = waiter.send(answer.clone());
        }
        if entry.asked.len() == current.parts.len() {
            current.finished = current.finished.max(unit + 1);
        }
        current.next_unit = current.next_unit.max(unit + 1);
        let oldest = current.next_unit.saturating_sub(MAX_UNITS);
        current.open.retain(|open, _| *open >= oldest);
        Ok(Contribution::Done(answer))
    }

    /// The digests of a member's rows of `unit`, as they were received; none of a unit that is long done.
    pub fn received(&self, generation: Generation, member: MemberId, unit: u64) -> Option<Vec<(usize, [u8; 32])>> {
        let current = self.lock();
        let current = current.as_ref().filter(|current| current.generation == generation)?;
        let (entry, part) = (current.open.get(&unit)?, current.parts.get(&member)?);
        Some(entry.digests.range(part.clone()).map(|(micro_batch, digest)| (*micro_batch, *digest)).collect())
    }

    /// The state after `unit`, made here out of the rows that came, unless the unit is long done; `None` also where the
    /// rows do not come here.
    pub fn made(&self, generation: Generation, unit: u64) -> Option<Arc<State>> {
        let current = self.lock();
        current.as_ref().filter(|current| current.generation == generation)?.open.get(&unit)?.made.clone()
    }

    /// The next answer tells the ranks what is committed.
    ///
    /// # Errors
    /// No rows come here, so there are no answers: gives it back.
    pub fn commit(&self, committed: proto::Committed, now: Instant) -> Result<(), proto::Committed> {
        match self.lock().as_mut().filter(|current| current.brings_rows) {
            Some(current) => {
                let since = current.committed.take().map_or(now, |(_, since)| since);
                current.committed = Some((committed, since));
                Ok(())
            }
            None => Err(committed),
        }
    }

    /// What is committed, if no answer has told it within `limit`.
    pub fn untold_commit(&self, now: Instant, limit: Duration) -> Option<proto::Committed> {
        let mut current = self.lock();
        let untold = &mut current.as_mut()?.committed;
        let overdue = untold.take_if(|(_, since)| now.saturating_duration_since(*since) > limit);
        overdue.map(|(committed, _)| committed)
    }

    /// Whether `member` is rank 0 of `generation`.
    pub fn is_first_rank(&self, generation: Generation, member: MemberId) -> bool {
        let current = self.lock();
        current.as_ref().is_some_and(|current| current.generation == generation && current.first_rank == Some(member))
    }

    /// The gathered rows of a chunk, once.
    pub fn take_gathered(&self, generation: Generation, unit: u64) -> Option<Vec<f32>> {
        let mut current = self.lock();
        current.as_mut().filter(|current| current.generation == generation)?.gathered.remove(&unit)
    }

    /// The present generation, and the micro-batches whose rows of `unit` are not here yet.
    pub fn missing(&self, unit: u64) -> Option<(Generation, Vec<usize>)> {
        let current = self.lock();
        let current = current.as_ref()?;
        let missing = match current.open.get(&unit) {
            Some(entry) if entry.answer.is_some() => Vec::new(),
            Some(entry) => entry.rows.missing(),
            None if unit < current.finished => Vec::new(),
            None => (0..current.micro_batches).collect(),
        };
        Some((current.generation, missing))
    }

    /// Micro-batches whose rows the oldest unfinished unit still lacks: the answer to "what does the reduction wait for?".
    pub fn waiting_for(&self) -> Option<(u64, Vec<usize>)> {
        let current = self.lock();
        let (unit, entry) = current.as_ref()?.open.iter().find(|(_, entry)| entry.answer.is_none())?;
        Some((*unit, entry.rows.missing()))
    }
}

/// Bytes of a `RankMessage` with `rows` rows of `row_len` floats: 72 for each row's tags, index and digest, 48 for its digest
/// in a report, a page for the rest.
fn message_bytes(rows: usize, row_len: usize) -> usize {
    rows.saturating_mul(row_len.saturating_mul(4).saturating_add(72 + 48)).saturating_add(4096)
}

#[cfg(test)]
mod tests;
