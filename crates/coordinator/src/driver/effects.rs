//! What each effect of the machine does to outboxes, console, reducer, dispatcher and files.

use std::sync::Arc;
use std::time::Instant;

use numalign_checkpoint::{CONFIGURATION, write_atomically};
use numalign_config::Config;
use numalign_data::Schedule;
use numalign_projector::State;
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message;

use super::shutdown::STOP_TIMEOUT;
use super::{Driver, Outcome};
use crate::error::CoordinatorError;
use crate::machine::collective::CollectiveBackend;
use crate::machine::{Commit, Effect, Event, GenerationStart};

impl Driver {
    /// Applies effects; answers with the outcome once the run is over.
    pub(super) async fn apply_effects(&mut self, effects: Vec<Effect>) -> Option<Result<Outcome, CoordinatorError>> {
        for effect in effects {
            match effect {
                Effect::BaseKnown(base) => {
                    self.fingerprint = base.base_fingerprint.clone();
                    self.tokenizer_fingerprint = base.tokenizer_fingerprint.clone();
                    self.arithmetic = base.arithmetic;
                    self.layer_norms = base.layer_norms.clone();
                    if let Some(folder) = self.replaced.take() {
                        if let Err(error) = self.key.keep().and_then(|()| folder.clear()) {
                            self.abort_all(&error.to_string(), error.hint());
                            return Some(Err(error.into()));
                        }
                        self.console.replace_record();
                    }
                    self.keep_configuration();
                    self.console.banner(&base);
                    self.update_sample_digest();
                }
                Effect::CheckSamples(member, longest_text) => self.start_sample_check(member, longest_text),
                Effect::Begin(start) => self.begin(&start),
                Effect::BroadcastNcclId(members, generation, id) => {
                    for member in members {
                        let message = proto::NcclId { generation: Some(generation), id: id.clone() };
                        self.send(member, Message::NcclId(message));
                    }
                }
                Effect::Pause(members, reason) => {
                    self.dispatcher.end();
                    self.reducer.end();
                    self.boundary = None;
                    self.console.print(&format!("{reason}; going on from the last committed step"));
                    self.failures.record(Instant::now(), self.committed_step(), reason.clone());
                    for member in members {
                        self.send(member, Message::Pause(proto::Pause { reason: reason.clone() }));
                    }
                }
                Effect::Quiesce(generation) => {
                    if let Some(limit) = self.dispatcher.quiesce(generation) {
                        self.boundary = Some((generation, limit));
                    }
                }
                Effect::RollBack(back) => {
                    if let Err(error) = self.roll_back(&back).await {
                        let hint = error.hint().unwrap_or_default();
                        self.abort_all(&error.to_string(), &hint);
                        return Some(Err(error));
                    }
                }
                Effect::MakeState(generation, unit, reason) => {
                    let digest = self.state_made_here(generation, unit);
                    let event = Event::StateMade((generation, unit), digest, reason);
                    let more = self.machine.handle(Instant::now(), event);
                    if let Some(end) = Box::pin(self.apply_effects(more)).await {
                        return Some(end);
                    }
                }
                Effect::Warn(words) => self.console.print(&words),
                Effect::Committed(commit) => self.committed(&commit),
                Effect::Solve(unit) => {
                    self.dispatcher.end();
                    self.reducer.end();
                    self.boundary = None;
                    self.console.print("solving for the output projector");
                    self.solver.solve(unit);
                }
                Effect::Solved(state) => self.solved(&state),
                Effect::Evict(member, permanent, reason) => {
                    let line = format!("worker {} is dismissed: {reason}", member.0);
                    match self.begun {
                        true => self.console.print(&line),
                        false => self.untold.add(Instant::now(), line, reason.clone()),
                    }
                    let hint = if permanent { "give the worker what the message asks for" } else { "it may come back" };
                    self.send(
                        member,
                        Message::Abort(proto::Abort { permanent, reason, hint: hint.to_owned(), ..Default::default() }),
                    );
                    self.outboxes.remove(&member);
                    self.pending_acks.forget(member);
                }
                Effect::Replace(member, reason) => {
                    self.console.print(&format!("worker {} is dismissed: {reason}", member.0));
                    let hint = "another process may take its place".to_owned();
                    let abort = proto::Abort { restart: true, reason, hint, ..Default::default() };
                    self.send(member, Message::Abort(abort));
                    self.outboxes.remove(&member);
                    self.pending_acks.forget(member);
                }
                Effect::TurnAway(member, reason) => {
                    self.turned_away.warn(&format!("worker {} is turned away: {reason}", member.0));
                    let hint = "it may come back".to_owned();
                    self.send(member, Message::Abort(proto::Abort { reason, hint, ..Default::default() }));
                    self.outboxes.remove(&member);
                }
                Effect::Finished => {
                    self.finished = true;
                    return None;
                }
                Effect::Failed(reason, hint) => {
                    for line in self.untold.besides(&reason) {
                        self.console.print(&line);
                    }
                    self.abort_all(&reason, hint);
                    self.flush(STOP_TIMEOUT);
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
        self.log_reason();
        Box::pin(self.apply_effects(rest)).await
    }

    /// Writes the configuration beside the checkpoints, so that `--resume` alone can continue the run.
    fn keep_configuration(&self) {
        let mut config = Config::clone(&self.config);
        config.run.resume = None;
        let path = self.folder.path().join(CONFIGURATION);
        if let Err(error) = write_atomically(&path, numalign_config::to_yaml(&config).as_bytes()) {
            tracing::warn!("{error}; to continue this run, give its whole configuration again");
        }
    }

    /// A generation begins: every rank gets the state and its micro-batches.
    fn begin(&mut self, start: &GenerationStart) {
        self.begun = true;
        for line in self.untold.all() {
            self.console.print(&line);
        }
        self.boundary = None;
        self.update_sample_digest();
        self.keep_state(&Arc::new(start.state.rewound(&self.config.recipe)));
        // A coordinator that starts anew is to know every machine whose rows are in the run.
        self.record_unaudited();
        self.reducer.begin(start, &self.config);
        self.dispatcher.begin(start, Schedule::of_run(&self.config));
        if start.first {
            let workers = self.rank_descriptions(start);
            self.console.start(&start.state, &workers);
        }
        self.console.collective(&start.collective);
        let (state, mac) = (start.state.to_bytes(), self.key.mac(&start.state).to_vec());
        let world = start.ranks.len() as u32;
        for (rank, (member, part)) in start.ranks.iter().enumerate() {
            let begin = proto::Begin {
                generation: Some(start.generation),
                rank: rank as u32,
                world,
                state: state.clone(),
                first_micro_batch: part.start as u32,
                end_micro_batch: part.end as u32,
                nccl: start.collective.backend == CollectiveBackend::Nccl,
                mac: mac.clone(),
            };
            self.pending_acks.sent(*member, start.generation.number, Instant::now());
            self.send(*member, Message::Begin(begin));
        }
        let (number, step) = (start.generation.number, start.state.step());
        tracing::info!("generation {number} begins at step {step} with {world} ranks");
    }

    /// Device and host of each rank, and its number of micro-batches.
    fn rank_descriptions(&self, start: &GenerationStart) -> Vec<(String, usize)> {
        let mut list = Vec::with_capacity(start.ranks.len());
        for (id, part) in &start.ranks {
            let member = self.machine.members().get(id);
            let host = member.map_or("?", |member| member.join_request.process.host.as_str());
            let device =
                member.and_then(|member| member.worker_ready.as_ref()).map_or("?", |ready| ready.device.as_str());
            list.push((format!("{device} on {host}"), part.len()));
        }
        list
    }

    fn committed(&mut self, commit: &Commit) {
        self.console.committed(commit);
        if let Some(before) = &commit.audited {
            self.keep_state(before);
            self.drop_unneeded_states();
        }
        self.update_sample_digest();
        let position = commit.state.position();
        if let (Some(features), Some(gathered)) = (&commit.features, position.gathered) {
            self.solver.add(gathered - 1, features.clone());
        }
        // In a round, chunks count as steps do.
        let count = position.gathered.filter(|gathered| *gathered > 0).unwrap_or(position.step);
        if count.is_multiple_of(self.config.run.checkpoint_every) {
            self.queue_checkpoint();
        }
        self.announce_commit(&commit.state);
        for failure in self.failures.committed(Instant::now()) {
            self.console.recovered(&failure);
        }
    }

    /// The solution of a round is part of the state now.
    fn solved(&mut self, state: &State) {
        self.console.solved(state);
        if state.step().is_multiple_of(self.config.run.checkpoint_every) {
            self.queue_checkpoint();
        }
        self.announce_commit(state);
    }

    /// What was committed last and was not sent yet is void, and must not be taken for what comes again.
    pub(super) fn retract_commits(&self) {
        for outbox in self.outboxes.values() {
            outbox.committed(proto::Committed { unit: u64::MAX, mac: Vec::new() });
        }
    }

    /// Tells every worker which unit is committed, with the MAC of its state: with the next sum, where there is one.
    fn announce_commit(&self, state: &State) {
        // At the end the workers are told that the run is done.
        if self.machine.phase() == "done" {
            return;
        }
        let committed = proto::Committed { unit: self.unit_after(state), mac: self.key.mac(state).to_vec() };
        if let Err(committed) = self.reducer.commit(committed, Instant::now()) {
            self.tell_committed(&committed);
        }
    }

    /// Tells every worker by itself which unit is committed.
    pub(super) fn tell_committed(&self, committed: &proto::Committed) {
        for outbox in self.outboxes.values() {
            outbox.committed(committed.clone());
        }
    }
}
