//! Carries out what the state machine decides: one task that owns the machine, the members' outboxes,
//! the committed story of the run and its files. Started by [`crate::run`].

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_checkpoint::{Checkpoint, Identity, RunFolder, write_atomically};
use numalign_config::Config;
use numalign_data::{SampleDigest, Streams};
use numalign_projector::{Evaluation, Evaluations, NormTensor, State};
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message;
use tokio::sync::{Notify, mpsc};

use crate::collective::Way;
use crate::error::CoordinatorError;
use crate::failures::FailureLog;
use crate::heard::Unheard;
use crate::machine::{Activity, Beginning, Commit, Effect, Event, Generation, Machine, MemberId};
use crate::outbox::Outbox;
use crate::progress::Progress;
use crate::reduce::Reducer;
use crate::service::Call;
use crate::solving::{Answer, Solver};
use crate::work::{WorkBoard, micro_batch};
use crate::writer::Writer;

/// How a run ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub step: u64,
    /// True when the run had been finished before.
    pub already: bool,
}

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
    pub streams: Streams,
    pub progress: Progress,
    pub writer: Writer,
    pub solver: Solver,
    pub fingerprint: String,
    /// The base's layer norms, where they train and it is known.
    pub layer_norms: Vec<NormTensor>,
    pub dataset_digest: Option<String>,
    pub loaded_digest: Option<String>,
    pub ledger: SampleDigest,
    /// Steps that `ledger` covers.
    pub ledger_step: u64,
    pub outboxes: HashMap<MemberId, Outbox>,
    /// Where a quiescing generation comes to rest.
    pub boundary: Option<(Generation, u64)>,
    pub failures: FailureLog,
    pub unheard: Unheard,
    /// Members whose outbox was closed on them, and why; the machine hears of it next.
    pub unreachable: Vec<(MemberId, String)>,
    pub started: Instant,
    pub last_reason: String,
}

/// How long the disk may take for the last checkpoint: of a run that was told to stop, and of one that is complete.
const WHEN_STOPPED: Duration = Duration::from_secs(3);
const AT_THE_END: Duration = Duration::from_secs(600);

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(50);

impl Shell {
    /// Runs until the last step is committed, the run fails, or `shutdown` resolves.
    pub async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        mut solutions: mpsc::UnboundedReceiver<Answer>,
        shutdown: impl Future<Output = ()>,
        checkpoint_wanted: Arc<Notify>,
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
                Some((unit, solution)) = solutions.recv() => {
                    self.machine.handle(Instant::now(), Event::Solved(unit, solution))
                }
                _ = tick.tick() => self.tick(),
                () = checkpoint_wanted.notified() => {
                    self.write_checkpoint();
                    Vec::new()
                }
                () = &mut shutdown => return Err(self.stop()),
            };
            self.explain();
            if let Some(end) = self.carry_out(effects).await {
                return end;
            }
            while let Some((member, why)) = self.unreachable.pop() {
                let effects = self.machine.handle(Instant::now(), Event::Left(member, why));
                self.explain();
                if let Some(end) = self.carry_out(effects).await {
                    return end;
                }
            }
        }
    }

    fn tick(&mut self) -> Vec<Effect> {
        let now = Instant::now();
        let limit = self.config.run.dead_after;
        for member in self.unheard.overdue(now, limit) {
            self.unheard.forget(member);
            let why = format!("it has not answered the news of a generation for {:.1} s", limit.as_secs_f64());
            self.progress.say(&format!("worker {} is dismissed: {why}", member.0));
            let abort = proto::Abort { permanent: false, reason: why.clone(), hint: "it may come back".to_owned() };
            self.send(member, Message::Abort(abort));
            self.cut_off(member, why);
        }
        self.machine.handle(now, Event::Tick)
    }

    /// Closes the way to a member; the machine hears of it after the present effects.
    fn cut_off(&mut self, member: MemberId, why: String) {
        if self.outboxes.remove(&member).is_some() {
            self.unheard.forget(member);
            self.unreachable.push((member, why));
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
                    self.unheard.forget(*member);
                }
                self.machine.handle(now, event)
            }
            Call::Heartbeat(member, generation) => {
                self.unheard.heard(member, generation);
                self.machine.handle(now, Event::Heartbeat(member))
            }
            Call::Connected(member, introduction, outbox) => {
                self.outboxes.insert(member, outbox);
                // Whoever outlived a coordinator tells that it was lost; it is told once.
                if introduction.rejoin_state.is_some()
                    && self.failures.total() == 0
                    && self.machine.phase() == "waiting"
                {
                    let step = self.machine.committed().map_or(0, |state| state.step());
                    let text = "the coordinator was lost and started again".to_owned();
                    self.failures.note(self.started, step, text);
                }
                let nowhere = Generation { incarnation: self.incarnation, number: 0 };
                let probe = micro_batch(&self.streams, &self.config, nowhere, 0, 0);
                self.send(
                    member,
                    Message::Welcome(proto::Welcome {
                        protocol: proto::PROTOCOL,
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

    /// A worker that does not read its messages is cut off.
    fn send(&mut self, member: MemberId, message: Message) {
        let sent = self.outboxes.get(&member).map(|outbox| outbox.send(message));
        if let Some(Err(unread)) = sent {
            self.cut_off(member, unread.to_string());
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
                    self.reducer.begin(&beginning, &self.config);
                    self.board.begin(&beginning, self.config.units());
                    if beginning.first {
                        let workers = self.places(&beginning);
                        self.progress.start(beginning.state.step(), &workers);
                    }
                    self.progress.reduced_by(&beginning.collective);
                    let state = beginning.state.to_bytes();
                    let world = beginning.ranks.len() as u32;
                    for (rank, (member, part)) in beginning.ranks.iter().enumerate() {
                        let begin = proto::Begin {
                            generation: Some(beginning.generation.into()),
                            rank: rank as u32,
                            world,
                            state: state.clone(),
                            first_micro_batch: part.start as u32,
                            end_micro_batch: part.end as u32,
                            nccl: beginning.collective.way == Way::Nccl,
                        };
                        self.unheard.told(*member, beginning.generation.number, Instant::now());
                        self.send(*member, Message::Begin(begin));
                    }
                    let step = beginning.state.step();
                    tracing::info!(
                        "generation {} begins at step {step} with {world} ranks",
                        beginning.generation.number
                    );
                }
                Effect::HandOut(members, generation, id) => {
                    for member in members {
                        let message = proto::NcclId { generation: Some(generation.into()), id: id.clone() };
                        self.send(member, Message::NcclId(message));
                    }
                }
                Effect::Pause(members, reason) => {
                    self.board.end();
                    self.reducer.end();
                    self.boundary = None;
                    self.progress.say(&format!("{reason}; going on from the last committed step"));
                    let step = self.machine.committed().map_or(0, |state| state.step());
                    self.failures.note(Instant::now(), step, reason.clone());
                    for member in members {
                        self.send(member, Message::Pause(proto::Pause { reason: reason.clone() }));
                    }
                }
                Effect::Quiesce(generation) => {
                    if let Some(limit) = self.board.quiesce(generation) {
                        self.boundary = Some((generation, limit));
                    }
                }
                Effect::Committed(commit) => self.committed(&commit),
                Effect::Solve(unit) => {
                    self.board.end();
                    self.reducer.end();
                    self.boundary = None;
                    self.progress.say("solving for the output projector");
                    self.solver.solve(unit);
                }
                Effect::Solved(state) => self.solved(&state),
                Effect::Dismiss(member, permanent, reason) => {
                    self.progress.say(&format!("worker {} is dismissed: {reason}", member.0));
                    let hint = if permanent { "give the worker what the message asks for" } else { "it may come back" };
                    self.send(member, Message::Abort(proto::Abort { permanent, reason, hint: hint.to_owned() }));
                    self.outboxes.remove(&member);
                    self.unheard.forget(member);
                }
                Effect::Finished => return Some(self.finish().await),
                Effect::Failed(reason, hint) => {
                    self.end_everybody(&reason, hint);
                    self.settle(WHEN_STOPPED);
                    return Some(Err(CoordinatorError::Failed { reason, hint: hint.to_owned() }));
                }
            }
        }
        // Boxed, because resting may begin a generation that is at its boundary too.
        let rest = match (self.boundary, self.machine.committed()) {
            (Some((generation, limit)), Some(state)) if self.unit_after(state) >= limit => {
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
        let position = commit.state.position();
        if let (Some(features), Some(gathered)) = (&commit.features, position.gathered) {
            self.solver.add(gathered - 1, features.clone());
        }
        // In a round, chunks count as steps do.
        let count = position.gathered.filter(|gathered| *gathered > 0).unwrap_or(position.step);
        if count.is_multiple_of(self.config.run.checkpoint_every) {
            self.queue_checkpoint();
        }
        self.tell_committed(&commit.state);
        for failure in self.failures.committed(Instant::now()) {
            self.progress.recovered(&failure);
        }
    }

    /// The solution of a round is part of the state now.
    fn solved(&mut self, state: &State) {
        self.progress.solved(state);
        if state.step().is_multiple_of(self.config.run.checkpoint_every) {
            self.queue_checkpoint();
        }
        self.tell_committed(state);
    }

    fn tell_committed(&self, state: &State) {
        let unit = self.unit_after(state);
        for outbox in self.outboxes.values() {
            outbox.committed(unit);
        }
    }

    fn unit_after(&self, state: &State) -> u64 {
        self.config.units().index(state.position())
    }

    /// Queues a checkpoint of the committed state. In a round it passes by the solver's thread, which adds the sums.
    fn queue_checkpoint(&self) {
        let Some(checkpoint) = self.checkpoint() else {
            return;
        };
        match checkpoint.state.position().gathered {
            Some(_) => self.solver.write(checkpoint),
            None => self.writer.write(&checkpoint),
        }
    }

    /// The ledger covers exactly the committed steps; it is recomputed from the stream, never taken from a worker.
    fn catch_up_ledger(&mut self) {
        let step = self.machine.committed().map_or(0, |state| state.step());
        if step > self.ledger_step {
            self.ledger.extend(&self.streams.train, &self.config.recipe, self.ledger_step..step);
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
            sums: None,
        })
    }

    /// Both final files are written before anybody is told that the run is done.
    async fn finish(&mut self) -> Result<Outcome, CoordinatorError> {
        self.progress.finish();
        let step = self.machine.committed().map_or(0, |state| state.step());
        self.settle(AT_THE_END);
        let Some(checkpoint) = self.checkpoint() else {
            return Err(CoordinatorError::Server("the run ended without a state".to_owned()));
        };
        let path = self.config.run.model_path_save.clone();
        if let Err(error) = write_atomically(&path, &checkpoint.to_bytes()) {
            self.end_everybody(&error.to_string(), "the run is complete in its folder: repeat it with --resume auto");
            return Err(error.into());
        }
        self.progress.say(&format!("wrote {}", path.display()));
        if let Some(line) = self.failures.summary() {
            self.progress.say(&line);
        }
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            self.send(member, Message::Done(proto::Done { summary: format!("all {step} steps are committed") }));
        }
        // Dropping the outboxes ends the streams once everything in them is sent.
        self.outboxes.clear();
        Ok(Outcome { step, already: false })
    }

    /// Queues a checkpoint of the committed state for the run's folder.
    fn write_checkpoint(&mut self) {
        self.catch_up_ledger();
        if self.machine.committed().is_some_and(|state| state.step() > 0) {
            self.queue_checkpoint();
        }
    }

    /// Writes a checkpoint of the committed state and waits for the disk, for so long at most.
    fn settle(&mut self, timeout: Duration) {
        self.progress.finish();
        self.write_checkpoint();
        if timeout == WHEN_STOPPED {
            self.writer.hurry();
        }
        let until = Instant::now() + timeout;
        if !self.solver.finish(timeout) {
            tracing::warn!("the solver's thread is still at work; the checkpoint before is valid");
        }
        if !self.writer.finish(until.saturating_duration_since(Instant::now())) {
            self.progress.say(&format!(
                "the disk has not taken the last checkpoint in {:.1} s; the one before is valid",
                timeout.as_secs_f64()
            ));
        }
        let failed = self.writer.failed();
        if failed > 0 {
            tracing::error!("{failed} checkpoints could not be written");
        }
    }

    fn stop(&mut self) -> CoordinatorError {
        self.end_everybody("the run was stopped", "start it again with --resume auto");
        self.settle(WHEN_STOPPED);
        CoordinatorError::Stopped {
            step: self.machine.committed().map_or(0, |state| state.step()),
            saved: None,
            total: self.config.recipe.total_steps(),
            run_id: self.config.run.run_id.clone(),
        }
    }

    fn end_everybody(&mut self, reason: &str, hint: &str) {
        self.board.end();
        self.reducer.end();
        let members: Vec<MemberId> = self.outboxes.keys().copied().collect();
        for member in members {
            let abort = proto::Abort { permanent: true, reason: reason.to_owned(), hint: hint.to_owned() };
            self.send(member, Message::Abort(abort));
        }
        self.outboxes.clear();
    }

    fn status(&self, now: Instant) -> proto::StatusReply {
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
            workers.push(proto::WorkerStatus {
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
                ms_per_step: milliseconds(timing.compute + timing.data_wait + timing.reduce),
                last_heartbeat_seconds: now.saturating_duration_since(member.last_heard).as_secs_f64(),
                restarts: member.introduction.restarts,
            });
        }
        let mut failures = Vec::new();
        for failure in self.failures.newest() {
            failures.push(proto::FailureStatus {
                text: failure.text.clone(),
                step: failure.step,
                recovered: failure.recovery.is_some(),
                recovery_ms: milliseconds(failure.recovery.unwrap_or_default()),
            });
        }
        let evaluations = self.machine.committed().map(|state| state.evaluations());
        let range = self.config.recipe.range();
        let of_status = |made: &Evaluation| proto::EvaluationStatus {
            step: made.step,
            samples: made.samples,
            mae: made.mae,
            mae_percent_of_range: 100.0 * made.mae / range,
            right_percent: made.right_percent(),
        };
        proto::StatusReply {
            run_id: self.config.run.run_id.clone(),
            phase: self.machine.phase().to_owned(),
            reason,
            generation: self.machine.generation().map_or(0, |generation| generation.number),
            step: self.machine.committed().map_or(0, |state| state.step()),
            total_steps: self.config.recipe.total_steps(),
            steps_per_second: self.progress.steps_per_second(),
            loss: self.progress.loss,
            workers,
            collective: self.machine.collective().map_or_else(String::new, |choice| choice.way.name().to_owned()),
            collective_reason: self.machine.collective().map_or_else(String::new, |choice| choice.reason.clone()),
            refused_pids: self.machine.refused_pids().collect(),
            failures,
            failures_total: self.failures.total(),
            recoveries_total: self.failures.recoveries(),
            median_recovery_ms: milliseconds(self.failures.median()),
            worst_recovery_ms: milliseconds(self.failures.worst()),
            failed_checkpoints: self.writer.failed(),
            latest_evaluation: evaluations.and_then(|made| made.list().last()).map(of_status),
            best_evaluation: evaluations.and_then(Evaluations::best).map(of_status),
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
