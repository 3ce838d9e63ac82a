//! The one thread that owns the device: loads the model, then computes the jobs that come through a channel.

use std::sync::Arc;

use numalign_config::{Config, DeviceChoice};
use numalign_data::Sample;
use numalign_engine::Engine;
use numalign_model::{Description, LoadOptions, NormParameter};
use numalign_projector::{MicroBatchGradients, State};
use tokio::sync::{mpsc, oneshot};

use crate::error::WorkerError;
use crate::fault;
use crate::nccl::{self, Ability};

/// What the rows of micro-batches hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// Of a training step.
    Gradients,
    /// Of a chunk of the solver's round.
    Features,
    /// Of an evaluation.
    Errors,
}

/// What the thread is asked for.
pub(crate) enum Job {
    Rows(RowJob),
    /// Whether the model can take these samples.
    Check(Vec<Sample>, oneshot::Sender<Result<(), WorkerError>>),
    /// An injected fault: the thread stops for ever.
    Freeze,
}

/// Rows asked for.
pub(crate) struct RowJob {
    pub kind: RowKind,
    pub state: Arc<State>,
    pub micro_batches: Vec<(usize, Vec<Sample>)>,
    pub reply: oneshot::Sender<Result<MicroBatchGradients, WorkerError>>,
}

/// What is known once the model is loaded and the trial micro-batch computed.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub description: Description,
    /// What the rows could be reduced with over NCCL.
    pub nccl: Result<Ability, String>,
    /// Of the model, in hex.
    pub fingerprint: String,
    /// Of its tokenizer, in hex, where the stage reads texts.
    pub tokenizer_fingerprint: Option<String>,
    /// Bytes of the longest text that fits the model whatever it says.
    pub longest_text: u64,
    pub hidden_size: usize,
    /// Of the model.
    pub parameters: u64,
    /// BLAKE3 over the flattened gradient of the trial micro-batch: equal devices compute equal bits.
    pub trial_digest: Vec<u8>,
    /// The model's layer norms if they train.
    pub layer_norms: Vec<NormParameter>,
}

/// A handle of the device thread.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) jobs: mpsc::Sender<Job>,
}

/// Answers when the device is ready for work, or why it never will be.
pub(crate) type Loading = oneshot::Receiver<Result<Loaded, WorkerError>>;

impl Device {
    /// Starts the thread; the receiver answers when the model is loaded and the `trial` micro-batch computed.
    pub(crate) fn start(
        config: Arc<Config>,
        choice: DeviceChoice,
        local_rank: Option<usize>,
        trial: Vec<Sample>,
    ) -> Result<(Self, Loading), WorkerError> {
        let (jobs, mut inbox) = mpsc::channel::<Job>(2);
        let (loaded, receiver) = oneshot::channel();
        let body = move || {
            let mut engine = match load(&config, choice, local_rank, &trial) {
                Ok((engine, facts)) => {
                    // A session that ended in the meantime sends no jobs either.
                    let _ = loaded.send(Ok(facts));
                    engine
                }
                Err(error) => {
                    let _ = loaded.send(Err(error));
                    return;
                }
            };
            while let Some(job) = inbox.blocking_recv() {
                let job = match job {
                    Job::Rows(job) => job,
                    Job::Check(samples, reply) => {
                        // The connection may have ended in the meantime.
                        let _ = reply.send(engine.check_samples(&samples).map_err(WorkerError::from));
                        continue;
                    }
                    Job::Freeze => fault::hang(),
                };
                if job.reply.is_closed() {
                    continue;
                }
                let rows = match job.kind {
                    RowKind::Gradients => engine.gradients(&job.state, &job.micro_batches),
                    RowKind::Features => engine.features(&job.state, &job.micro_batches),
                    RowKind::Errors => engine.errors(&job.state, &job.micro_batches),
                };
                // The generation may have ended in the meantime.
                let _ = job.reply.send(rows.map_err(WorkerError::from));
            }
        };
        std::thread::Builder::new()
            .name("device".to_owned())
            .spawn(body)
            .map_err(|error| WorkerError::Device(error.to_string()))?;
        Ok((Self { jobs }, receiver))
    }

    /// Rows of micro-batches at `state`.
    pub async fn rows(
        &self,
        kind: RowKind,
        state: Arc<State>,
        micro_batches: Vec<(usize, Vec<Sample>)>,
    ) -> Result<MicroBatchGradients, WorkerError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Rows(RowJob { kind, state, micro_batches, reply })).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Whether the model can take `samples`; what is wrong with the first one that it cannot.
    pub async fn check(&self, samples: Vec<Sample>) -> Result<(), WorkerError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Check(samples, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// An injected fault: the thread does nothing any more, and the process goes on.
    pub async fn freeze(&self) {
        // A thread that ended does nothing either.
        let _ = self.jobs.send(Job::Freeze).await;
    }
}

fn gone() -> WorkerError {
    WorkerError::Device("it panicked; its message is above".to_owned())
}

fn load(
    config: &Config,
    choice: DeviceChoice,
    local_rank: Option<usize>,
    trial: &[Sample],
) -> Result<(Engine, Loaded), WorkerError> {
    let recipe = &config.recipe;
    let options = LoadOptions {
        device: choice,
        devices: config.run.devices_per_worker,
        backward: Engine::needs_backward(recipe),
        dtype: recipe.dtype,
        arithmetic: recipe.arithmetic,
        exact_f32: config.run.exact_f32,
        positions: Engine::most_positions(recipe),
    };
    let model = numalign_model::load_with(&recipe.model_name, options)?;
    let mut facts = Loaded {
        description: model.description.clone(),
        nccl: nccl::ability(config.run.collective, model.place, local_rank),
        fingerprint: model.lm.fingerprint().to_hex().to_string(),
        tokenizer_fingerprint: None,
        longest_text: 0,
        hidden_size: model.lm.hidden_size(),
        parameters: model.lm.parameters(),
        trial_digest: Vec::new(),
        layer_norms: if recipe.train_layer_norms { model.lm.norm_parameters()? } else { Vec::new() },
    };
    let mut engine = Engine::new(model.lm, recipe.clone());
    facts.tokenizer_fingerprint = engine.tokenizer_fingerprint()?;
    facts.longest_text = engine.longest_text()?;
    let state = engine.initial_state(0)?;
    let mut hasher = blake3::Hasher::new();
    for (_, row) in engine.gradients(&state, &[(0, trial.to_vec())])? {
        for value in row {
            hasher.update(&value.to_le_bytes());
        }
    }
    facts.trial_digest = hasher.finalize().as_bytes().to_vec();
    Ok((engine, facts))
}
