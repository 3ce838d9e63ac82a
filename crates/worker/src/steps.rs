//! The units of one generation — training steps, chunks of the solver's rounds, evaluations: work in, rows, sum, update,
//! report. One task per generation.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use numalign_collective::nccl::NcclRows;
use numalign_collective::{Collective, CollectiveError, DigestedRows, Gathered, Summed, digested};
use numalign_config::Config;
use numalign_data::sample::NoInput;
use numalign_data::{Audits, Domain, MicroBatchId, Sample, SampleStream, Schedule, Unit, held_out_of};
use numalign_engine::memory::PeakMemory;
use numalign_projector::{MicroBatchGradients, State};
use numalign_protocol as proto;
use numalign_protocol::worker_message::Message;
use tokio::sync::mpsc;

use crate::device::{Device, RowKind};
use crate::error::WorkerError;
use crate::fault::Faults;
use crate::link::{Link, MAX_ATTEMPTS, failed, is_damage};
use crate::uncommitted::UncommittedStates;

/// A report waits for the next rows to travel with, but no longer than this: what is slower to compute is worth a message.
const REPORT_DELAY: Duration = Duration::from_millis(100);

/// What a generation's task needs.
pub(crate) struct Steps {
    pub config: Arc<Config>,
    pub device: Device,
    pub link: Link,
    /// Where the rows go, if not to the coordinator.
    pub nccl: Option<NcclRows>,
    pub generation: proto::Generation,
    pub rank: u32,
    pub part: Range<usize>,
    pub state: Arc<State>,
    pub uncommitted: UncommittedStates,
    pub reports: mpsc::Sender<proto::WorkerMessage>,
    /// The unit below which the rows are computed; heartbeats say it.
    pub rows_until: Arc<AtomicU64>,
}

/// Why no work came.
enum Received {
    /// The stream broke.
    Broken(tonic::Status),
    /// It ended, or makes no sense.
    Wrong(WorkerError),
}

impl From<WorkerError> for Received {
    fn from(error: WorkerError) -> Self {
        Self::Wrong(error)
    }
}

/// What came of a unit.
struct Made {
    state: State,
    /// NaN after a chunk or an evaluation, which have none.
    loss: f32,
    /// Gathered rows as bytes, for rank 0 to report.
    features: Vec<u8>,
    /// Digest of all rows as they were received, over NCCL.
    received: Option<[u8; 32]>,
}

impl Steps {
    /// Runs units until the end of a round or of the run, or until the task is aborted or fails. After a round the
    /// solution comes with the next generation.
    pub async fn run(mut self) -> Result<(), WorkerError> {
        let units = Schedule::of_run(&self.config);
        // Those of a dataset come with the work.
        let held_out = match self.config.run.dataset_file {
            None => Some(SampleStream::generated(&self.config.recipe, Domain::Eval)?),
            Some(_) => None,
        };
        let (faults, audits) = (Faults::from_env(), Audits::of_run(&self.config));
        let mut memory = PeakMemory::default();
        self.link.open(units.index(self.state.position())).await?;
        loop {
            let unit = units.index(self.state.position());
            let kind = match units.unit(unit) {
                Unit::Step(_) => RowKind::Gradients,
                Unit::Chunk { .. } => RowKind::Features,
                Unit::Evaluate => RowKind::Errors,
                Unit::Solve | Unit::End => {
                    tell(&self.reports, self.link.take_report()).await;
                    return Ok(());
                }
            };
            if !self.link.has_work() {
                tell(&self.reports, self.link.take_report()).await;
            }
            let asked = Instant::now();
            let mut micro_batches = self.receive(unit).await?;
            let data_wait = asked.elapsed();
            if let (RowKind::Errors, Some(held_out)) = (kind, &held_out) {
                self.draw(held_out, &mut micro_batches);
            }
            if self.nccl.is_some() {
                self.link.ask();
            }

            let started = Instant::now();
            let rows = {
                let computed = compute(&self.device, &faults, unit, kind, self.state.clone(), micro_batches);
                tokio::pin!(computed);
                tokio::select! {
                    biased;
                    rows = &mut computed => rows?,
                    () = tokio::time::sleep(REPORT_DELAY), if self.link.has_report() => {
                        tell(&self.reports, self.link.take_report()).await;
                        computed.await?
                    }
                }
            };
            self.rows_until.store(unit + 1, Ordering::Relaxed);
            let compute = started.elapsed();
            let mut rows = digested(rows);
            let digests = match audits.due(unit) || self.nccl.is_some() {
                true => reported(&rows),
                false => Vec::new(),
            };
            rows.retain(|(micro_batch, ..)| self.part.contains(micro_batch));
            faults.alter(unit, &mut rows);
            faults.add_foreign(unit, self.config.recipe.micro_batches(), &mut rows);

            let started = Instant::now();
            let made = match kind {
                RowKind::Gradients => self.updated(unit, rows).await?,
                RowKind::Features => self.gathered(unit, rows).await?,
                RowKind::Errors => self.evaluated(unit, rows).await?,
            };
            let reduce = started.elapsed();

            let next = Arc::new(faults.misupdated(unit, made.state));
            self.uncommitted.computed(next.clone());
            self.state = next;
            if let Some(committed) = self.link.take_committed() {
                self.uncommitted.committed(committed.unit, committed.mac);
            }
            // Over gRPC the coordinator makes it itself.
            let sends_state = self.rank == 0 && self.nccl.is_some();
            let done = proto::UnitDone {
                generation: Some(self.generation),
                unit,
                loss: made.loss,
                digest: self.state.digest().0.to_vec(),
                state: if sends_state { self.state.to_bytes() } else { Vec::new() },
                rows: digests,
                features: made.features,
                received_digest: made.received.map_or_else(Vec::new, |digest| digest.to_vec()),
                ..proto::UnitDone::default()
            };
            let timing = proto::Timing { compute, data_wait, reduce, peak_rss_mib: memory.mib() };
            let done = done.with_timing(timing);
            match self.nccl {
                Some(_) => tell(&self.reports, Some(done)).await,
                None => self.link.enclose(done),
            }
        }
    }

    async fn all_reduce(&mut self, unit: u64, rows: DigestedRows) -> Result<Summed, CollectiveError> {
        match &mut self.nccl {
            Some(nccl) => nccl.all_reduce(unit, rows).await,
            None => self.link.all_reduce(unit, rows).await,
        }
    }

    async fn gather(&mut self, unit: u64, rows: DigestedRows) -> Result<Gathered, CollectiveError> {
        match &mut self.nccl {
            Some(nccl) => nccl.gather(unit, rows).await,
            None => self.link.gather(unit, rows).await,
        }
    }

    /// The state after a training step, from its gradient rows.
    async fn updated(&mut self, unit: u64, rows: DigestedRows) -> Result<Made, WorkerError> {
        let Summed { sum, received } = self.all_reduce(unit, rows).await?;
        let mut state = self.state.as_ref().clone();
        state.update(&sum, &self.config.recipe)?;
        Ok(Made { state, loss: sum.last().copied().unwrap_or(f32::NAN), features: Vec::new(), received })
    }

    /// The state after a chunk of the solver's round, from its features.
    async fn gathered(&mut self, unit: u64, rows: DigestedRows) -> Result<Made, WorkerError> {
        let gathered = self.gather(unit, rows).await?;
        let state = self.state.gathered(&self.config.recipe, gathered.digest)?;
        let rows = gathered.rows.filter(|_| self.rank == 0).unwrap_or_default();
        let features = proto::codec::floats_to_bytes(&rows);
        Ok(Made { state, loss: f32::NAN, features, received: gathered.received })
    }

    /// The state after an evaluation, from the sums of its errors.
    async fn evaluated(&mut self, unit: u64, rows: DigestedRows) -> Result<Made, WorkerError> {
        let Summed { sum, received } = self.all_reduce(unit, rows).await?;
        let state = self.state.evaluated(&self.config.recipe, &sum, self.config.run.eval_samples)?;
        Ok(Made { state, loss: f32::NAN, features: Vec::new(), received })
    }

    /// The generated held-out samples of an evaluation's micro-batches, which come without any.
    fn draw(&self, held_out: &SampleStream, micro_batches: &mut [(usize, Vec<Sample>)]) {
        for (micro_batch, samples) in micro_batches {
            let (count, place) = (self.config.run.eval_samples, MicroBatchId(*micro_batch));
            let indices = held_out_of(count, place, &self.config.recipe);
            *samples = indices.map(|index| held_out.sample(index)).collect();
        }
    }

    /// The work of `unit`. A stream whose message was damaged is opened again from this unit on.
    async fn receive(&mut self, unit: u64) -> Result<Vec<(usize, Vec<Sample>)>, WorkerError> {
        let mut attempt = 1;
        loop {
            match self.try_receive(unit).await {
                Err(Received::Broken(status)) if is_damage(&status) && attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                    self.link.open(unit).await?;
                }
                Err(Received::Broken(status)) => return Err(failed(unit, &status).into()),
                Err(Received::Wrong(error)) => return Err(error),
                Ok(micro_batches) => return Ok(micro_batches),
            }
        }
    }

    /// In an audited unit perhaps micro-batches of other ranks first, then all of this rank.
    async fn try_receive(&mut self, unit: u64) -> Result<Vec<(usize, Vec<Sample>)>, Received> {
        let mut micro_batches = Vec::with_capacity(self.part.len() + 1);
        let mut own = 0;
        while own < self.part.len() {
            let Some(message) = self.link.micro_batch().await.map_err(Received::Broken)? else {
                return Err(Received::Wrong(CollectiveError::GenerationOver.into()));
            };
            let micro_batch = message.micro_batch as usize;
            let is_audit = message.audit && message.unit == unit && own == 0;
            if is_audit && micro_batches.len() < self.config.recipe.micro_batches() {
                micro_batches.push((micro_batch, samples_of(message.samples)?));
                continue;
            }
            let expected = self.part.start + own;
            if message.unit != unit || micro_batch != expected {
                return Err(Received::Wrong(WorkerError::Protocol(format!(
                    "work of unit {} micro-batch {} came instead of unit {unit} micro-batch {expected}",
                    message.unit, message.micro_batch
                ))));
            }
            micro_batches.push((expected, samples_of(message.samples)?));
            own += 1;
        }
        Ok(micro_batches)
    }
}

/// The rows of `unit`, with what the faults do to them.
async fn compute(
    device: &Device,
    faults: &Faults,
    unit: u64,
    kind: RowKind,
    state: Arc<State>,
    micro_batches: Vec<(usize, Vec<Sample>)>,
) -> Result<MicroBatchGradients, WorkerError> {
    let delay = faults.delay(micro_batches.len());
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if faults.freezes(unit) {
        device.freeze().await;
    }
    let mut rows = device.rows(kind, state, micro_batches).await?;
    faults.corrupt(unit, &mut rows);
    Ok(rows)
}

/// The digest of each row, for the coordinator's comparison.
fn reported(rows: &DigestedRows) -> Vec<proto::RowDigest> {
    rows.iter().map(|(micro_batch, _, digest)| proto::RowDigest::new(*micro_batch, *digest)).collect()
}

/// Sends a report by itself. A closed channel means a lost connection, which the inbound stream reports.
async fn tell(reports: &mpsc::Sender<proto::WorkerMessage>, report: Option<proto::UnitDone>) {
    if let Some(done) = report {
        let _ = reports.send(proto::WorkerMessage { message: Some(Message::UnitDone(done)) }).await;
    }
}

/// Samples of a message.
pub(crate) fn samples_of(messages: Vec<proto::Sample>) -> Result<Vec<Sample>, WorkerError> {
    let samples: Result<_, _> = messages.into_iter().map(Sample::try_from).collect();
    samples.map_err(|error: NoInput| WorkerError::Protocol(error.to_string()))
}
