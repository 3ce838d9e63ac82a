//! Who becomes a member: workers that connect, the state they may bring along, and the model they loaded.

use std::sync::Arc;
use std::time::Instant;

use numalign_config::{CollectiveChoice, RUNS_FOLDER};
use numalign_projector::{Layout, NormTensor, State};

use super::collective::{self, Candidate, NcclFailures};
use super::events::{Activity, Effect, JoinRequest, Member, MemberId, Process, Timing, WorkerReady};
use super::load_balancing::StepTimeEma;
use super::rejoin::check_rejoin_state;
use super::{Base, Machine};

/// Larger hidden sizes are nonsense, and their state would fill the memory.
pub(super) const MAX_HIDDEN: usize = 1 << 20;

impl Machine {
    pub(super) fn joined(&mut self, now: Instant, id: MemberId, join_request: JoinRequest, effects: &mut Vec<Effect>) {
        if self.members.len() >= self.config.run.max_workers {
            // One of them may be dead without anybody knowing it yet.
            let reason = format!(
                "max_workers is {} and as many are connected; a place comes free when one leaves",
                self.config.run.max_workers
            );
            effects.push(Effect::TurnAway(id, reason));
            return;
        }
        // Once a generation has begun, the coordinator knows every committed state itself.
        if let Some(state) = join_request.rejoin_state.as_ref().filter(|_| self.generations == 0) {
            let accepted = match join_request.mac_holds || self.config.run.trust_returning_state {
                true => self.accept_rejoin_state(state),
                false => Err(format!(
                    "no coordinator with the key of this run committed it (step {}); if {RUNS_FOLDER}/{} was lost, start \
                     the coordinator with --trust-returning-state true",
                    state.step(),
                    self.config.run.run_id
                )),
            };
            if let Err(reason) = accepted {
                let reason = format!("the state that it brought along is not taken: {reason}");
                self.refuse(id, join_request.process, reason, effects);
                return;
            }
            self.resuming = true;
        }
        self.deserted = None;
        // What a process did for this coordinator before its connection broke is known.
        let known = self.welcome_back.get(&join_request.process);
        let is_from_before = join_request.returns && known.is_none();
        let pace = known.cloned().unwrap_or_default();
        let member = Member {
            join_request,
            worker_ready: None,
            activity: Activity::Loading,
            has_trained: false,
            is_from_before,
            last_seen: now,
            last_timing: Timing::default(),
            step_time: StepTimeEma::default(),
            pace,
        };
        self.members.insert(id, member);
    }

    /// Before the first generation, a rejoin state that is further than what this coordinator knows is gone on from, if
    /// it can be one of this run. The sums of a round in progress were lost with the coordinator that kept them, so that
    /// round starts over.
    fn accept_rejoin_state(&mut self, state: &State) -> Result<(), String> {
        check_rejoin_state(state, &self.config.recipe)?;
        if let Some(committed) = &self.committed
            && state.layout().with_layer_norms(0) != committed.layout().with_layer_norms(0)
        {
            let (its, ours) = (state.layout().hidden(), committed.layout().hidden());
            return Err(format!("its hidden size is {its}, this run's is {ours}"));
        }
        let known = self.unit();
        let rewound = state.rewound(&self.config.recipe);
        for state in [state, &rewound] {
            if let Some(committed) = &self.committed
                && self.unit_after(state) == known
                && committed.layout() == state.layout()
                && **committed != *state
            {
                return Err(format!(
                    "two states for step {} differ: {} here, {} from a returning worker",
                    state.step(),
                    committed.digest(),
                    state.digest()
                ));
            }
        }
        if self.unit_after(&rewound) > known {
            self.committed = Some(Arc::new(rewound));
        }
        Ok(())
    }

    /// The first model that is loaded says what the hidden size is: real survivors have theirs loaded when they come. A
    /// rejoin state of another one was no state of this run: it is dropped, and who brought it is refused.
    fn drop_foreign_rejoin_states(&mut self, hidden: usize, effects: &mut Vec<Effect>) {
        let is_foreign = |state: &Option<State>| state.as_ref().is_some_and(|state| state.layout().hidden() != hidden);
        // A checkpoint comes with its model's fingerprint, and so does a worker that is ready.
        if self.base.is_some() || self.committed.as_ref().is_none_or(|state| state.layout().hidden() == hidden) {
            return;
        }
        let mut foreign = Vec::new();
        for (id, member) in &self.members {
            if is_foreign(&member.join_request.rejoin_state) {
                foreign.push((*id, member.join_request.process.clone()));
            }
        }
        for (id, process) in foreign {
            let reason = format!("the state that it brought along has another hidden size than the model, {hidden}");
            self.refuse(id, process, reason, effects);
            self.members.remove(&id);
        }
        self.committed = None;
        let remaining: Vec<State> =
            self.members.values().filter_map(|member| member.join_request.rejoin_state.clone()).collect();
        for state in &remaining {
            // Each was accepted when it came; of two for one step the first one counts.
            let _ = self.accept_rejoin_state(state);
        }
    }

    pub(super) fn ready(&mut self, now: Instant, id: MemberId, worker_ready: WorkerReady, effects: &mut Vec<Effect>) {
        self.mark_alive(now, id);
        // A repeated message changes nothing: a rank keeps its rank.
        let Some(member) = self.members.get(&id).filter(|member| member.worker_ready.is_none()) else {
            return;
        };
        let process = member.join_request.process.clone();
        let host = process.host.clone();
        let brought = member.join_request.rejoin_state.as_ref().map(|state| state.layout().hidden());
        if brought.is_none_or(|hidden| hidden == worker_ready.hidden_size) {
            self.drop_foreign_rejoin_states(worker_ready.hidden_size, effects);
        }
        let admissible = match self.check_admission(&process, &worker_ready) {
            Err(reason) => Err((reason, self.hint_of_refusal(&worker_ready))),
            Ok(()) => self.check_nccl(id, &host, &worker_ready).map_err(|reason| {
                (reason, "`numalign doctor` says what its machine lacks; or set collective: auto or grpc")
            }),
        };
        if let Err((reason, hint)) = admissible {
            return self.dismiss(now, id, &reason, hint, effects);
        }
        if self.base.as_ref().is_none_or(|base| base.trial_digest.is_none()) {
            effects.push(Effect::BaseKnown(worker_ready.clone()));
            self.base = Some(Base {
                fingerprint: worker_ready.base_fingerprint.clone(),
                tokenizer: worker_ready.tokenizer_fingerprint.clone(),
                arithmetic: Some(worker_ready.arithmetic),
                source: None,
                trial_digest: Some(worker_ready.trial_digest.clone()),
            });
        }
        self.complete_initial_state(&worker_ready);
        if let Some(member) = self.members.get_mut(&id) {
            member.worker_ready = Some(worker_ready);
            member.activity = Activity::Waiting(now);
        }
        self.first_ready.get_or_insert(now);
    }

    /// The state before the first step, once a model is known: fresh projectors unless some are loaded, and the model's
    /// own layer norms if they train and none are loaded.
    fn complete_initial_state(&mut self, worker_ready: &WorkerReady) {
        let recipe = &self.config.recipe;
        let initial = || {
            let layout = Layout::of(recipe, worker_ready.hidden_size, 0);
            let mut state = State::initial(layout, recipe.seed).prepared(recipe);
            state.set_layer_norms(&worker_ready.layer_norm_values);
            state
        };
        self.clean_audits.start_from(initial);
        let state = match &self.committed {
            Some(state) if state.layout().layer_norms().is_empty() == worker_ready.layer_norms.is_empty() => return,
            Some(state) => {
                let mut state = state.as_ref().clone();
                state.set_layer_norms(&worker_ready.layer_norm_values);
                state
            }
            None => initial(),
        };
        let state = Arc::new(state);
        self.clean_audits.completed(&state);
        self.committed = Some(state);
    }

    /// Whether the worker has this run's model and computes the same bits.
    fn check_admission(&self, process: &Process, worker_ready: &WorkerReady) -> Result<(), String> {
        self.check_not_excluded(process, &worker_ready.device)?;
        if !(1..=MAX_HIDDEN).contains(&worker_ready.hidden_size) {
            return Err(format!("a hidden size of {} is not from 1 to {MAX_HIDDEN}", worker_ready.hidden_size));
        }
        if let Some(base) = &self.base {
            check_base(base, worker_ready)?;
        }
        self.check_layer_norms(worker_ready)?;
        if let Some(hidden) = self.committed.as_ref().map(|state| state.layout().hidden())
            && hidden != worker_ready.hidden_size
        {
            return Err(format!("its hidden size is {}, this run's is {hidden}", worker_ready.hidden_size));
        }
        if let Some(digest) = self.base.as_ref().and_then(|base| base.trial_digest.as_ref())
            && *digest != worker_ready.trial_digest
            && self.config.run.deterministic
        {
            return Err(format!(
                "it computes other bits than this run's machines on the trial micro-batch (device {}); \
                 deterministic: false would admit it",
                worker_ready.device
            ));
        }
        Ok(())
    }

    /// What to do about a model that is not this run's: where a file binds the run, its own choice may be the wrong one.
    fn hint_of_refusal(&self, worker_ready: &WorkerReady) -> &'static str {
        let arithmetic = self.base.as_ref().and_then(|base| base.arithmetic);
        if arithmetic.is_some_and(|ours| ours != worker_ready.arithmetic) {
            return "products that a GPU rounded need such a GPU and the same dtype; exact ones exact_f32: true on a GPU";
        }
        match self.base.as_ref().and_then(|base| base.source.as_ref()) {
            Some(_) => "set model_name to the model that the file was made with, or start without the file",
            None => "give every worker the model of this run",
        }
    }

    /// With `collective: nccl` a worker that cannot share a communicator with those that are ready stays out.
    fn check_nccl(&self, id: MemberId, host: &str, worker_ready: &WorkerReady) -> Result<(), String> {
        let wanted = self.config.run.collective;
        if wanted != CollectiveChoice::Nccl {
            return Ok(());
        }
        let others: Vec<MemberId> = self.members.keys().copied().collect();
        let mut candidates = self.candidates(&others);
        candidates.push(Candidate { name: self.name(id), host, nccl: &worker_ready.nccl });
        match collective::choose(wanted, &candidates, &NcclFailures::default()) {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("collective: nccl cannot be used: {why}")),
        }
    }

    /// Those of `members` that are ready, as candidates for a collective.
    pub(super) fn candidates(&self, members: &[MemberId]) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::with_capacity(members.len());
        for id in members {
            if let Some(member) = self.members.get(id)
                && let Some(worker_ready) = &member.worker_ready
            {
                let host = member.join_request.process.host.as_str();
                candidates.push(Candidate { name: self.name(*id), host, nccl: &worker_ready.nccl });
            }
        }
        candidates
    }

    /// A worker whose model has the right fingerprint has the right layer norms, unless it is of another build.
    fn check_layer_norms(&self, worker_ready: &WorkerReady) -> Result<(), String> {
        let (named, values) = (NormTensor::total_len(&worker_ready.layer_norms), worker_ready.layer_norm_values.len());
        let wanted = self.config.recipe.train_layer_norms;
        if named != values || wanted != (values > 0) {
            return Err(format!("it sent {values} numbers for {named} of layer norms (train_layer_norms is {wanted})"));
        }
        let known = self.committed.as_ref().map_or(0, |state| state.layout().layer_norms().len());
        if known > 0 && known != values {
            return Err(format!("its model has {values} numbers of layer norms, this run's has {known}"));
        }
        Ok(())
    }
}

/// Whether the worker has the frozen model and, where texts are read, the tokenizer of `base`.
fn check_base(base: &Base, worker_ready: &WorkerReady) -> Result<(), String> {
    let whose = match &base.source {
        Some(file) => format!("that of {}", file.display()),
        None => "this run's".to_owned(),
    };
    if base.fingerprint != worker_ready.base_fingerprint {
        return Err(format!(
            "its frozen model has fingerprint {:.16}, {whose} has {:.16}",
            worker_ready.base_fingerprint, base.fingerprint
        ));
    }
    let its = worker_ready.arithmetic;
    if let Some(ours) = base.arithmetic
        && ours != its
    {
        let device = &worker_ready.device;
        // A run that goes on has no choice any more.
        let advice = if base.source.is_none() { "; exact_f32: true makes every GPU multiply in f32" } else { "" };
        return Err(format!(
            "it would multiply in {its} on {device}, and what was computed so far is in {ours}{advice}"
        ));
    }
    if let (Some(ours), Some(its)) = (&base.tokenizer, &worker_ready.tokenizer_fingerprint)
        && ours != its
    {
        return Err(format!(
            "its tokenizer has fingerprint {its:.16}, {whose} has {ours:.16}; the weights are the same, the tokenizer \
             files beside them are not"
        ));
    }
    Ok(())
}
