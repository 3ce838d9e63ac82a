//! Carries out what the state machine decides: one task that owns the machine, the members' outboxes,
//! the committed story of the run and its files. Started by [`crate::run`].

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_checkpoint::{Checkpoint, Identity, RunFolder, write_atomically};
use numalign_config::Config;
use numalign_data::{Ledger, SampleStream};
use numalign_projector::NormTensor;
use numalign_wire as wire;
use numalign_wire::coordinator_message::Message;
use tokio::sync::mpsc;
use tonic::Status;

use crate::error::CoordinatorError;
use crate::machine::{Activity, Beginning, Commit, Effect, Event, Generation, Machine, MemberId};
use crate::progress::Progress;
use crate::reduce::Reducer;
use crate::service::Call;
use crate::start::advance_ledger;
use crate::work::{WorkBoard, micro_batch};
use crate::writer::Writer;

/// How a run ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub step: u64,
    /// True when the run had been finished before.
    pub already: bool,
}

type Outbox = mpsc::Sender<Result<wire::CoordinatorMessage, Status>>;

/// Everything the shell owns.
pub struct Shell {
    pub config: Arc<Config>,
    pub config_text: String,
    /// A finished run's folder, cleared when this run is about to train.
    pub replaced: Option<RunFolder>,
    pub machine: Machine,
    pub incarnation: u64,
    pub board: Arc<WorkBoard>,
    pub reducer: Arc<Reducer>,
    pub stream: SampleStream,
    pub progress: Progress,
    pub writer: Writer,
    pub fingerprint: String,
    /// The base's layer norms, where they train and it is known.
    pub layer_norms: Vec<NormTensor>,
    pub dataset_digest: Option<String>,
    pub loaded_digest: Option<String>,
    pub ledger: Ledger,
    /// Steps that `ledger` covers.
    pub ledger_step: u64,
    pub history: Vec<String>,
    pub outboxes: HashMap<MemberId, Outbox>,
    /// Where a quiescing generation comes to rest.
    pub boundary: Option<(Generation, u64)>,
    pub failures: Vec<String>,
    pub last_reason: String,
}

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(50);

impl Shell {
    /// Runs until the last step is committed, the run fails, or `shutdown` resolves.
    pub async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Outcome, CoordinatorError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        tokio::pin!(shutdown);
        loop {
            let effects = tokio::select! {
                call = calls.recv() => match call {
                    Some(call) => self.take(call),
                    None => return Err(CoordinatorError::Server("no more calls can come".to_owned())),
                },
                _ = tick.tick() => self.machine.handle(Instant::now(), Event::Tick),
                () = &mut shutdown => return Err(self.stop()),
            };
            self.explain();
            if let Some(end) = self.carry_out(effects).await {
                return end;
            }
        }
    }

    /// Logs the reason whenever it changes.
    fn explain(&mut self) {
        if self.machine.reason() != self.last_reason {
            self.last_reason = self.machine.reason().to_owned();
            tracing::info!("{}: {}", self.machine.phase(), self.last_reason);
        }
    }

    fn take(&mut self, call: Call) -> Vec<Effect> {
        let now = Instant::now();
        match call {
            Call::Event(event) => {
                if let Event::Left(member, _) = &event {
                    self.outboxes.remove(member);
                }
                self.machine.handle(now, event)
            }
            Call::Connected(member, introduction, outbox) => {
                self.outboxes.insert(member, outbox);
                let nowhere = Generation { incarnation: self.incarnation, number: 0 };
                let probe = micro_batch(&self.stream, &self.config.recipe, nowhere, 0, 0);
                self.send(
                    member,
                    Message::Welcome(wire::Welcome {
                        protocol: wire::PROTOCOL,
                        run_id: self.config.run.run_id.clone(),
                        config: self.config_text.clone(),
                        incarnation: self.incarnation,
                        member: member.0,
                        base_fingerprint: self.fingerprint.clone(),
                        probe: probe.samples,
                    }),
                );
                self.machine.handle(now, Event::Joined(member, introduction))
            }
            Call::Status(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(self.status(now));
                Vec::new()
            }
        }
    }

    /// A worker that does not read its messages is cut off; its stream's end will say so to the machine.
    fn send(&mut self, member: MemberId, message: Message) {
        let message = wire::CoordinatorMessage { message: Some(message) };
        if let Some(outbox) = self.outboxes.get(&member)
            && outbox.try_send(Ok(message)).is_err()
        {
            self.outboxes.remove(&member);
        }
    }

    /// Carries out effects; some answer when the run is over.
    async fn carry_out(&mut self, effects: Vec<Effect>) -> Option<Result<Outcome, CoordinatorError>> {
        for effect in effects {
            match effect {
                Effect::BaseKnown(base) => {
                    self.fingerprint = base.base_fingerprint.clone();
                    self.layer_norms = base.layer_norms.clone();
                    if let Some(folder) = self.replaced.take()
                        && let Err(error) = folder.clear()
                    {
                        self.end_everybody(&error.to_string(), error.hint());
                        return Some(Err(error.into()));
                    }
                    self.progress.banner(&base);
                    self.catch_up_ledger();
                }
                Effect::Begin(beginning) => {
                    self.boundary = None;
                    self.catch_up_ledger();
                    self.reducer.begin(&beginning, self.config.recipe.micro_batches());
                    self.board.begin(&beginning, self.config.recipe.total_steps());
                    if beginning.first {
                        let workers = self.places(&beginning);
                        self.progress.start(beginning.state.step(), &workers);
                    }
                    let state = beginning.state.to_bytes();
                    let world = beginning.ranks.len() as u32;
                    for (rank, (member, part)) in beginning.ranks.iter().enumerate() {
                        let begin = wire::Begin {
                            generation: Some(beginning.generation.into()),
                            rank: rank as u32,
                            world,
                            state: state.clone(),
                            first_micro_batch: part.start as u32,
                            end_micro_batch: part.end as u32,
                        };
                        self.send(*member, Message::Begin(begin));
                    }
                    let step = beginning.state.step();
                    tracing::info!(
                        "generation {} begins at step {step} with {world} ranks",
                        beginning.generation.number
                    );
                }
                Effect::Pause(members, reason) => {
                    self.board.end();
                    self.reducer.end();
                    self.boundary = None;
                    self.progress.say(&format!("{reason}; going on from the last committed step"));
                    self.failures.push(reason.clone());
                    for member in members {
                        self.send(member, Message::Pause(wire::Pause { reason: reason.clone() }));
                    }
                }
                Effect::Quiesce(generation) => {
                    if let Some(limit) = self.board.quiesce(generation) {
                        self.boundary = Some((generation, limit));
                    }
                }
                Effect::Committed(commit) => self.committed(&commit),
                Effect::Dismiss(member, permanent, reason) => {
                    self.progress.say(&format!("worker {} is dismissed: {reason}", member.0));
                    let hint = if permanent { "give the worker what the message asks for" } else { "it may come back" };
                    self.send(member, Message::Abort(wire::Abort { permanent, reason, hint: hint.to_owned() }));
                    self.outboxes.remove(&member);
                }
                Effect::Finished => return Some(self.finish().await),
                Effect::Failed(reason, hint) => {
                    self.end_everybody(&reason, hint);
                    self.settle();
                    return Some(Err(CoordinatorError::Failed { reason, hint: hint.to_owned() }));
                }
            }
        }
        // Boxed, because resting may begin a generation that is at its boundary too.
        let rest = match (self.boundary, self.machine.committed()) {
            (Some((generation, limit)), Some(state)) if state.step() >= limit => {
                self.boundary = None;
                self.machine.at_rest(Instant::now(), generation)
            }
            _ => return None,
        };
        self.explain();
        Box::pin(self.carry_out(rest)).await
    }

    /// Host, device and number of micro-batches of each rank.
    fn places(&self, beginning: &Beginning) -> Vec<(String, usize)> {
        let mut places = Vec::with_capacity(beginning.ranks.len());
        for (id, part) in &beginning.ranks {
            let member = self.machine.members().get(id);
            let host = member.map_or("?", |member| member.introduction.host.as_str());
            let device = member.and_then(|member| member.readiness.as_ref()).map_or("?", |ready| ready.device.as_str());
            places.push((format!("{device} on {host}"), part.len()));
        }
        places
    }

    fn committed(&mut self, commit: &Commit) {
        self.progress.committed(commit);
        self.catch_up_ledger();
        let step = commit.state.step();
        let every = self.config.run.checkpoint_every;
        if step.is_multiple_of(every)
            && let Some(checkpoint) = self.checkpoint()
        {
            self.writer.write(&checkpoint);
        }
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            self.send(member, Message::Committed(wire::Committed { step }));
        }
    }

    /// The ledger covers exactly the committed steps; it is recomputed from the stream, never taken from a worker.
    fn catch_up_ledger(&mut self) {
        let step = self.machine.committed().map_or(0, |state| state.step());
        if step > self.ledger_step {
            advance_ledger(&mut self.ledger, &self.stream, &self.config.recipe, self.ledger_step, step);
            self.ledger_step = step;
        }
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        let state = self.machine.committed()?;
        if self.fingerprint.is_empty() {
            return None;
        }
        Some(Checkpoint {
            identity: Identity {
                recipe: self.config.recipe.clone(),
                base_fingerprint: self.fingerprint.clone(),
                layer_norms: self.layer_norms.clone(),
                dataset_digest: self.dataset_digest.clone(),
                loaded_digest: self.loaded_digest.clone(),
            },
            state: state.as_ref().clone(),
            sample_digest: self.ledger.to_hex(),
            history: self.history.clone(),
        })
    }

    /// Both final files are written before anybody is told that the run is done.
    async fn finish(&mut self) -> Result<Outcome, CoordinatorError> {
        self.progress.finish();
        let step = self.machine.committed().map_or(0, |state| state.step());
        self.settle();
        let Some(checkpoint) = self.checkpoint() else {
            return Err(CoordinatorError::Server("the run ended without a state".to_owned()));
        };
        let path = self.config.run.model_path_save.clone();
        if let Err(error) = write_atomically(&path, &checkpoint.to_bytes()) {
            self.end_everybody(&error.to_string(), "the run is complete in its folder: repeat it with --resume auto");
            return Err(error.into());
        }
        self.progress.say(&format!("wrote {}", path.display()));
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            self.send(member, Message::Done(wire::Done { summary: format!("all {step} steps are committed") }));
        }
        // Dropping the outboxes ends the streams once everything in them is sent.
        self.outboxes.clear();
        Ok(Outcome { step, already: false })
    }

    /// Writes a checkpoint of the committed state into the run's folder and waits for the disk.
    fn settle(&mut self) {
        self.progress.finish();
        self.catch_up_ledger();
        if let Some(checkpoint) = self.checkpoint()
            && checkpoint.state.step() > 0
        {
            self.writer.write(&checkpoint);
        }
        let failed = self.writer.finish();
        if failed > 0 {
            tracing::error!("{failed} checkpoints could not be written");
        }
    }

    fn stop(&mut self) -> CoordinatorError {
        self.end_everybody("the run was stopped", "start it again with --resume auto");
        self.settle();
        CoordinatorError::Stopped {
            step: self.machine.committed().map_or(0, |state| state.step()),
            total: self.config.recipe.total_steps(),
            run_id: self.config.run.run_id.clone(),
        }
    }

    fn end_everybody(&mut self, reason: &str, hint: &str) {
        self.board.end();
        self.reducer.end();
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            let abort = wire::Abort { permanent: true, reason: reason.to_owned(), hint: hint.to_owned() };
            self.send(member, Message::Abort(abort));
        }
        self.outboxes.clear();
    }

    fn status(&self, now: Instant) -> wire::StatusReply {
        let mut reason = self.machine.reason().to_owned();
        if let Some((step, missing)) = self.reducer.waiting_for() {
            reason = format!("{reason}; step {step} waits for the rows of micro-batches {missing:?}");
        }
        let mut workers = Vec::new();
        for (id, member) in self.machine.members() {
            let (state, rank) = match member.activity {
                Activity::Loading => ("loading", 0),
                Activity::Waiting(_) => ("spare", 0),
                Activity::Training(rank) => ("training", rank),
            };
            let timing = member.last_timing;
            workers.push(wire::WorkerStatus {
                member: id.0,
                host: member.introduction.host.clone(),
                pid: member.introduction.pid,
                device: member.readiness.as_ref().map_or_else(String::new, |ready| ready.device.clone()),
                state: state.to_owned(),
                rank,
                micro_batches: match self.machine.generation() {
                    Some(generation) => self.board.part_of(generation, *id).map_or(0, |(_, part)| part.len() as u32),
                    None => 0,
                },
                ms_per_step: (timing.compute + timing.data_wait + timing.reduce).as_secs_f64() * 1e3,
                last_heartbeat_seconds: now.saturating_duration_since(member.last_heard).as_secs_f64(),
            });
        }
        wire::StatusReply {
            run_id: self.config.run.run_id.clone(),
            phase: self.machine.phase().to_owned(),
            reason,
            generation: self.machine.generation().map_or(0, |generation| generation.number),
            step: self.machine.committed().map_or(0, |state| state.step()),
            total_steps: self.config.recipe.total_steps(),
            steps_per_second: self.progress.steps_per_second,
            loss: self.progress.loss,
            workers,
            failures: self.failures.clone(),
            collective: "grpc".to_owned(),
        }
    }
}
