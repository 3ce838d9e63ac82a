//! Applies what the state machine decides: one task that owns the machine, the members' outboxes, the committed history
//! of the run, and its files.

pub mod ack_tracker;
mod checkpoints;
mod effects;
mod rollback;
mod samples;
mod shutdown;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numalign_access::rate_limited_log::RateLimitedLog;
use numalign_checkpoint::{Checkpoint, RunFolder, SplitDigests};
use numalign_config::{Arithmetic, Config};
use numalign_data::{SampleDigest, Schedule, Streams};
use numalign_projector::{NormTensor, State};
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message;
use tokio::sync::{Notify, mpsc};

use crate::background::checkpoint_writer::CheckpointWriter;
use crate::background::probe::Probe;
use crate::background::sample_check::SampleCheck;
use crate::background::solver::{Backlog, SolveResult, SolverThread};
use crate::error::CoordinatorError;
use crate::machine::{Effect, Event, Generation, JoinRequest, Machine, MemberId};
use crate::report::console::Console;
use crate::report::failures::FailureLog;
use crate::report::status::{StatusInput, status};
use crate::report::untold::Untold;
use crate::rpc::call::Call;
use crate::rpc::dispatch::{Dispatcher, micro_batch};
use crate::rpc::outbox::Outbox;
use crate::rpc::reduce::Reducer;
use crate::start::Start;
use crate::state_key::StateKey;
use ack_tracker::PendingAcks;

/// How a run ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Committed training steps.
    pub step: u64,
    /// True if the run had been finished before.
    pub already: bool,
}

/// Owner of the machine, and of everything that its effects touch.
pub struct Driver {
    config: Arc<Config>,
    /// The configuration as workers get it: JSON.
    config_text: String,
    /// A finished run's folder, cleared when this run is about to train.
    replaced: Option<RunFolder>,
    machine: Machine,
    dispatcher: Arc<Dispatcher>,
    reducer: Arc<Reducer>,
    streams: Streams,
    console: Console,
    writer: CheckpointWriter,
    solver: SolverThread,
    solutions: mpsc::UnboundedReceiver<SolveResult>,
    sample_check: Option<SampleCheck>,
    /// Of the frozen model; empty until it is known.
    fingerprint: String,
    /// Of its tokenizer, where it is known and the stage reads texts.
    tokenizer_fingerprint: Option<String>,
    /// To what the factors of products are rounded.
    arithmetic: Arithmetic,
    /// The base's layer norms, if they train and it is known.
    layer_norms: Vec<NormTensor>,
    dataset_digest: Option<String>,
    split: Option<SplitDigests>,
    loaded_digest: Option<String>,
    sample_digest: SampleDigest,
    /// Steps that `sample_digest` covers.
    digested_steps: u64,
    /// States that the run may have to go back to, by unit.
    kept: BTreeMap<u64, Arc<Checkpoint>>,
    outboxes: HashMap<MemberId, Outbox>,
    /// Where a quiescing generation comes to rest.
    boundary: Option<(Generation, u64)>,
    failures: FailureLog,
    pending_acks: PendingAcks,
    /// A worker that there is no place for asks again and again.
    turned_away: RateLimitedLog,
    /// Members that were disconnected, and why; the machine learns of them next.
    unreachable: Vec<(MemberId, String)>,
    started: Instant,
    last_reason: String,
    folder: RunFolder,
    key: StateKey,
    /// Messages that were found damaged, here and by the workers.
    damaged: u64,
    /// The last step is committed.
    finished: bool,
    /// A generation has begun.
    begun: bool,
    untold: Untold,
}

/// How often heartbeats and acknowledgements are checked.
const TICK: Duration = Duration::from_millis(50);

impl Driver {
    /// A driver of `machine`, which continues from `start`; the threads for checkpoints and solving are started here.
    /// `dispatcher` and `reducer` are shared with the service.
    ///
    /// # Errors
    /// A thread does not start.
    pub fn new(
        config: Arc<Config>,
        start: &Start,
        machine: Machine,
        streams: Streams,
        dispatcher: Arc<Dispatcher>,
        reducer: Arc<Reducer>,
    ) -> Result<Self, CoordinatorError> {
        let config_text = serde_json::to_string(&*config).map_err(|error| {
            CoordinatorError::Server(format!("the configuration cannot be written as JSON: {error}"))
        })?;
        let writer = CheckpointWriter::start(start.folder.clone(), config.run.keep_checkpoints)
            .map_err(|error| CoordinatorError::Server(format!("the checkpoint thread does not start: {error}")))?;
        let constant = streams.held_out.as_ref().map(|held_out| held_out.constant_error(config.run.eval_samples));
        let (sender, solutions) = mpsc::unbounded_channel();
        let probe = Probe::of(&config.recipe, start.folder.path());
        let solver = SolverThread::start(start.sums.clone(), config.recipe.ridge_folds, probe, writer.clone(), sender)
            .map_err(|error| CoordinatorError::Server(format!("the solver's thread does not start: {error}")))?;
        let units = Schedule::of_run(&config);
        let mut driver = Self {
            config_text,
            replaced: start.replaces.then(|| start.folder.clone()),
            machine,
            dispatcher,
            reducer,
            console: Console::new(config.clone(), start.folder.path(), constant),
            streams,
            config,
            writer,
            solver,
            solutions,
            sample_check: None,
            fingerprint: start.base.as_ref().map(|base| base.fingerprint.clone()).unwrap_or_default(),
            tokenizer_fingerprint: start.base.as_ref().and_then(|base| base.tokenizer.clone()),
            arithmetic: start.base.as_ref().and_then(|base| base.arithmetic).unwrap_or_default(),
            layer_norms: start.layer_norms.clone(),
            dataset_digest: start.dataset_digest.clone(),
            split: start.split.clone(),
            loaded_digest: start.loaded_digest.clone(),
            sample_digest: start.sample_digest,
            digested_steps: start.state.as_ref().map_or(0, |state| state.step()),
            kept: start.unaudited.values().map(|kept| (units.index(kept.state.position()), kept.clone())).collect(),
            outboxes: HashMap::new(),
            boundary: None,
            failures: FailureLog::default(),
            pending_acks: PendingAcks::default(),
            turned_away: RateLimitedLog::default(),
            unreachable: Vec::new(),
            started: Instant::now(),
            last_reason: String::new(),
            folder: start.folder.clone(),
            key: start.key.clone(),
            damaged: 0,
            finished: false,
            begun: false,
            untold: Untold::default(),
        };
        if let Some(state) = &start.state {
            driver.keep_state(&Arc::new(state.rewound(&driver.config.recipe)));
        }
        Ok(driver)
    }

    /// What the solver has not added yet.
    pub fn backlog(&self) -> Backlog {
        self.solver.backlog()
    }

    /// Runs until the last step is committed, the run fails, or `shutdown` resolves.
    ///
    /// # Errors
    /// The run failed or was stopped, or its result cannot be written.
    pub async fn run(
        mut self,
        mut calls: mpsc::Receiver<Call>,
        shutdown: impl Future<Output = ()>,
        checkpoint_wanted: Arc<Notify>,
    ) -> Result<Outcome, CoordinatorError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        tokio::pin!(shutdown);
        loop {
            let effects = tokio::select! {
                call = calls.recv() => match call {
                    Some(call) => self.handle_call(call),
                    None => return Err(CoordinatorError::Server("no more calls can come".to_owned())),
                },
                Some((unit, solution)) = self.solutions.recv() => {
                    self.machine.handle(Instant::now(), Event::Solved(unit, solution))
                }
                batch = SampleCheck::next(&mut self.sample_check) => self.check_samples(batch),
                _ = tick.tick() => self.tick(Instant::now()),
                () = checkpoint_wanted.notified() => {
                    self.write_checkpoint();
                    Vec::new()
                }
                () = &mut shutdown => return Err(self.stop()),
            };
            self.log_reason();
            if let Some(end) = self.apply_effects(effects).await {
                return end;
            }
            while let Some((member, why)) = self.unreachable.pop() {
                let effects = self.machine.handle(Instant::now(), Event::Left(member, why));
                self.log_reason();
                if let Some(end) = self.apply_effects(effects).await {
                    return end;
                }
            }
            if self.finished {
                return self.finish(&mut calls, shutdown.as_mut()).await;
            }
        }
    }

    /// Evicts members that ignore a generation, and lets the machine look for silent ones.
    fn tick(&mut self, now: Instant) -> Vec<Effect> {
        self.damaged = self.damaged.saturating_add(proto::take_damaged());
        for line in self.untold.due(now) {
            self.console.print(&line);
        }
        if let Some(committed) = self.reducer.untold_commit(now, self.config.run.heartbeat) {
            self.tell_committed(&committed);
        }
        let limit = self.config.run.dead_after;
        for member in self.pending_acks.overdue(now, limit) {
            self.pending_acks.forget(member);
            let why = format!("it has not answered the news of a generation for {:.1} s", limit.as_secs_f64());
            self.console.print(&format!("worker {} is dismissed: {why}", member.0));
            let abort = proto::Abort { reason: why.clone(), hint: "it may come back".to_owned(), ..Default::default() };
            self.send(member, Message::Abort(abort));
            self.disconnect(member, why);
        }
        if let Some(unit) = self.machine.awaited_unit()
            && let Some((generation, missing)) = self.reducer.missing(unit)
        {
            self.machine.rows_missing(now, generation, unit, &missing);
        }
        self.machine.handle(now, Event::Tick)
    }

    /// Closes a member's outbox; the machine learns of it after the present effects.
    fn disconnect(&mut self, member: MemberId, why: String) {
        if self.outboxes.remove(&member).is_some() {
            self.pending_acks.forget(member);
            self.unreachable.push((member, why));
        }
    }

    /// Logs the reason whenever it changes; that of the end is said as the result or as the error.
    fn log_reason(&mut self) {
        if self.machine.reason() != self.last_reason {
            self.last_reason = self.machine.reason().to_owned();
            if self.machine.phase() == "done" {
                return;
            }
            tracing::info!("{}: {}", self.machine.phase(), self.last_reason);
        }
    }

    fn handle_call(&mut self, call: Call) -> Vec<Effect> {
        let now = Instant::now();
        match call {
            Call::Event(event) => {
                if let Event::Left(member, _) = &event {
                    self.outboxes.remove(member);
                    self.pending_acks.forget(*member);
                }
                self.machine.handle(now, event)
            }
            Call::Heartbeat(member, proto::Heartbeat { generation, rows_until, damaged }) => {
                self.damaged = self.damaged.saturating_add(damaged);
                self.pending_acks.acked(member, generation);
                self.machine.rows_computed(now, member, generation, rows_until);
                self.machine.handle(now, Event::Heartbeat(member))
            }
            Call::Connected(member, join_request, outbox) => {
                self.outboxes.insert(member, outbox);
                self.note_lost_coordinator(&join_request);
                let effects = self.machine.handle(now, Event::Joined(member, join_request));
                // A Welcome makes a worker load its model: one that has no place gets none.
                if self.machine.members().contains_key(&member) || self.machine.phase() == "done" {
                    self.welcome(member);
                }
                effects
            }
            Call::SamplesChecked(member, checked) => self.samples_checked(member, checked),
            Call::SampleFailed(member, index, problem) => self.sample_failed(member, index, &problem),
            Call::Status(reply) => {
                // The client may have gone.
                let _ = reply.send(self.status(now));
                Vec::new()
            }
        }
    }

    /// A worker with a rejoin state shows that a coordinator was lost; that is recorded once.
    fn note_lost_coordinator(&mut self, join_request: &JoinRequest) {
        if join_request.returns && self.failures.total() == 0 && self.machine.phase() == "waiting" {
            let text = "the coordinator was lost and started again".to_owned();
            self.failures.record(self.started, self.committed_step(), text);
        }
    }

    fn welcome(&mut self, member: MemberId) {
        let trial = micro_batch(&self.streams, &self.config, 0, 0);
        let welcome = proto::Welcome {
            protocol: proto::PROTOCOL,
            run_id: self.config.run.run_id.clone(),
            config: self.config_text.clone(),
            incarnation: self.machine.incarnation(),
            member: member.0,
            base_fingerprint: self.fingerprint.clone(),
            trial: trial.samples,
        };
        self.send(member, Message::Welcome(welcome));
    }

    fn status(&self, now: Instant) -> proto::StatusReply {
        let input = StatusInput {
            config: &self.config,
            machine: &self.machine,
            waiting_for: self.reducer.waiting_for(),
            steps_per_second: self.console.steps_per_second(),
            loss: self.console.loss(),
            failures: &self.failures,
            failed_checkpoints: self.writer.failed(),
            damaged_messages: self.damaged,
        };
        status(now, &input)
    }

    /// A worker that does not read its messages is disconnected.
    fn send(&mut self, member: MemberId, message: Message) {
        let sent = self.outboxes.get(&member).map(|outbox| outbox.send(message));
        if let Some(Err(error)) = sent {
            self.disconnect(member, error.to_string());
        }
    }

    /// Committed training steps.
    fn committed_step(&self) -> u64 {
        self.machine.committed().map_or(0, |state| state.step())
    }

    fn unit_after(&self, state: &State) -> u64 {
        Schedule::of_run(&self.config).index(state.position())
    }
}
