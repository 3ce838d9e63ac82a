//! The units of one generation — training steps, chunks of the solver's rounds, evaluations: work in, rows, sum, update,
//! report. One task per generation.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use numalign_access::Client;
use numalign_collective::{
    Chosen, Collective, CollectiveError, DigestedRows, MAX_ATTEMPTS, Summed, digested, is_damage,
};
use numalign_config::Config;
use numalign_data::sample::NoInput;
use numalign_data::{Audits, Domain, MicroBatchId, Sample, SampleStream, Schedule, Unit, held_out_of};
use numalign_engine::memory::peak_rss_mib;
use numalign_projector::State;
use numalign_protocol as proto;
use numalign_protocol::worker_message::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::device::{Device, RowKind};
use crate::error::WorkerError;
use crate::fault::Faults;
use crate::uncommitted::UncommittedStates;

/// What a generation's task needs.
pub(crate) struct Steps {
    pub config: Arc<Config>,
    pub client: Client,
    pub device: Device,
    pub collective: Chosen,
    pub generation: proto::Generation,
    pub member: u64,
    pub rank: u32,
    pub part: Range<usize>,
    pub state: Arc<State>,
    pub uncommitted: UncommittedStates,
    pub reports: mpsc::Sender<proto::WorkerMessage>,
    /// The unit below which the rows are computed; heartbeats say it.
    pub rows_until: Arc<AtomicU64>,
}

/// The stream that brings the work, and the one that asks for it.
struct WorkLink {
    credits: mpsc::Sender<proto::WorkCredit>,
    work: Streaming<proto::MicroBatch>,
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
        let mut link = self.open_work(units.index(self.state.position())).await?;
        loop {
            let unit = units.index(self.state.position());
            let kind = match units.unit(unit) {
                Unit::Step(_) => RowKind::Gradients,
                Unit::Chunk { .. } => RowKind::Features,
                Unit::Evaluate => RowKind::Errors,
                Unit::Solve | Unit::End => return Ok(()),
            };
            let asked = Instant::now();
            let mut micro_batches = self.receive(&mut link, unit).await?;
            let data_wait = asked.elapsed();
            if let (RowKind::Errors, Some(held_out)) = (kind, &held_out) {
                self.draw(held_out, &mut micro_batches);
            }
            // The stream's end shows itself at the next receive.
            let _ = link.credits.try_send(self.credit(1));

            let started = Instant::now();
            let delay = faults.delay(micro_batches.len());
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if faults.freezes(unit) {
                self.device.freeze().await;
            }
            let mut rows = self.device.rows(kind, self.state.clone(), micro_batches).await?;
            self.rows_until.store(unit + 1, Ordering::Relaxed);
            faults.corrupt(unit, &mut rows);
            let compute = started.elapsed();
            let mut rows = digested(rows);
            let digests = match audits.due(unit) || matches!(self.collective, Chosen::Nccl(_)) {
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
            let done = proto::UnitDone {
                generation: Some(self.generation),
                unit,
                loss: made.loss,
                digest: self.state.digest().0.to_vec(),
                state: if self.rank == 0 { self.state.to_bytes() } else { Vec::new() },
                rows: digests,
                features: made.features,
                received_digest: made.received.map_or_else(Vec::new, |digest| digest.to_vec()),
                ..proto::UnitDone::default()
            };
            let timing = proto::Timing { compute, data_wait, reduce, peak_rss_mib: peak_rss_mib() };
            let done = done.with_timing(timing);
            let message = proto::WorkerMessage { message: Some(Message::UnitDone(done)) };
            if self.reports.send(message).await.is_err() {
                return Ok(());
            }
        }
    }

    /// The state after a training step, from its gradient rows.
    async fn updated(&mut self, unit: u64, rows: DigestedRows) -> Result<Made, WorkerError> {
        let Summed { sum, received } = self.collective.all_reduce(unit, rows).await?;
        let mut state = self.state.as_ref().clone();
        state.update(&sum, &self.config.recipe)?;
        Ok(Made { state, loss: sum.last().copied().unwrap_or(f32::NAN), features: Vec::new(), received })
    }

    /// The state after a chunk of the solver's round, from its features.
    async fn gathered(&mut self, unit: u64, rows: DigestedRows) -> Result<Made, WorkerError> {
        let gathered = self.collective.gather(unit, rows).await?;
        let state = self.state.gathered(&self.config.recipe, gathered.digest)?;
        let rows = gathered.rows.filter(|_| self.rank == 0).unwrap_or_default();
        let features = proto::codec::floats_to_bytes(&rows);
        Ok(Made { state, loss: f32::NAN, features, received: gathered.received })
    }

    /// The state after an evaluation, from the sums of its errors.
    async fn evaluated(&mut self, unit: u64, rows: DigestedRows) -> Result<Made, WorkerError> {
        let Summed { sum, received } = self.collective.all_reduce(unit, rows).await?;
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

    fn credit(&self, units: u32) -> proto::WorkCredit {
        proto::WorkCredit { generation: Some(self.generation), member: self.member, units, from_unit: 0 }
    }

    /// Opens a stream of work that begins with `unit`.
    async fn open_work(&mut self, unit: u64) -> Result<WorkLink, WorkerError> {
        let ahead = self.config.run.prefetch_steps;
        let mut attempt = 1;
        loop {
            let (credits, outbound) = mpsc::channel(ahead as usize + 1);
            // The channel has room for it.
            let _ = credits.try_send(proto::WorkCredit { from_unit: unit, ..self.credit(ahead as u32) });
            match self.client.work(ReceiverStream::new(outbound)).await {
                Ok(work) => return Ok(WorkLink { credits, work: work.into_inner() }),
                Err(status) if is_damage(&status) && attempt < MAX_ATTEMPTS => attempt += 1,
                Err(status) => return Err(connection(&status)),
            }
        }
    }

    /// The work of `unit`. A stream whose message was damaged is opened again from this unit on.
    async fn receive(&mut self, link: &mut WorkLink, unit: u64) -> Result<Vec<(usize, Vec<Sample>)>, WorkerError> {
        let mut attempt = 1;
        loop {
            match self.receive_from(&mut link.work, unit).await {
                Err(Received::Broken(status)) if is_damage(&status) && attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                    *link = self.open_work(unit).await?;
                }
                Err(Received::Broken(status)) => return Err(connection(&status)),
                Err(Received::Wrong(error)) => return Err(error),
                Ok(micro_batches) => return Ok(micro_batches),
            }
        }
    }

    /// In an audited unit perhaps micro-batches of other ranks first, then all of this rank.
    async fn receive_from(
        &self,
        work: &mut Streaming<proto::MicroBatch>,
        unit: u64,
    ) -> Result<Vec<(usize, Vec<Sample>)>, Received> {
        let mut micro_batches = Vec::with_capacity(self.part.len() + 1);
        let mut own = 0;
        while own < self.part.len() {
            let message = work.message().await.map_err(Received::Broken)?;
            let Some(message) = message else {
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

/// The digest of each row, for the coordinator's comparison.
fn reported(rows: &DigestedRows) -> Vec<proto::RowDigest> {
    rows.iter().map(|(micro_batch, _, digest)| proto::RowDigest::new(*micro_batch, *digest)).collect()
}

fn connection(status: &tonic::Status) -> WorkerError {
    WorkerError::Collective(CollectiveError::Connection { unit: 0, reason: status.message().to_owned() })
}

/// Samples of a message.
pub(crate) fn samples_of(messages: Vec<proto::Sample>) -> Result<Vec<Sample>, WorkerError> {
    let samples: Result<_, _> = messages.into_iter().map(Sample::try_from).collect();
    samples.map_err(|error: NoInput| WorkerError::Protocol(error.to_string()))
}
