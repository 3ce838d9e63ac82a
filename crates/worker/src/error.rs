//! Why a worker ends without having been told that the run is done.

use numalign_access::AccessError;
use numalign_collective::CollectiveError;
use numalign_collective::nccl::NcclError;
use numalign_data::DataError;
use numalign_engine::EngineError;
use numalign_model::ModelError;
use numalign_projector::StateError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Model, samples or state.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No access to the coordinator.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The coordinator did not answer within the timeout.
    #[error("no coordinator at {url} for {seconds:.0} s: {reason}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// How long it was tried, in seconds.
        seconds: f64,
        /// How the latest attempt ended.
        reason: String,
    },
    /// The coordinator is of another build, or does not accept this worker.
    #[error("the coordinator does not take this worker: {reason}")]
    Refused {
        /// What the coordinator says.
        reason: String,
    },
    /// The run failed or was stopped, for every worker.
    #[error("the coordinator ended the run: {reason}")]
    Aborted {
        /// What the coordinator says.
        reason: String,
        /// What the user can do about it.
        hint: String,
    },
    /// The run goes on without this worker.
    #[error("the coordinator dismissed this worker: {reason}")]
    Dismissed {
        /// What the coordinator says.
        reason: String,
        /// What the user can do about it.
        hint: String,
    },
    /// It was alive and did nothing.
    #[error("the coordinator dismissed this process: {reason}")]
    Stalled {
        /// What the coordinator says.
        reason: String,
        /// What follows.
        hint: String,
    },
    /// A message that makes no sense.
    #[error("the coordinator broke the protocol: {0}")]
    Protocol(String),
    /// The device thread panicked or could not be started.
    #[error("the device thread ended: {0}")]
    Device(String),
    /// A unit without a sum.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

impl From<ModelError> for WorkerError {
    fn from(error: ModelError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<DataError> for WorkerError {
    fn from(error: DataError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<StateError> for WorkerError {
    fn from(error: StateError) -> Self {
        Self::Engine(error.into())
    }
}

impl WorkerError {
    /// Another process may fare better after a panic or with a GPU that is free again; a wrong model or bad data stay. The
    /// coordinator tells the user of permanent failures only.
    pub fn is_permanent(&self) -> bool {
        !matches!(
            self,
            WorkerError::Device(_)
                | WorkerError::Engine(EngineError::Model(ModelError::DeviceTask { .. }))
                | WorkerError::Collective(CollectiveError::Nccl(NcclError::Stuck { .. }))
        )
    }

    /// Whether the samples or the recipe are at fault: another worker would meet the same.
    pub(crate) fn is_about_data(&self) -> bool {
        let WorkerError::Engine(error) = self else {
            return false;
        };
        matches!(
            error,
            EngineError::Sample { .. } | EngineError::BadSample { .. } | EngineError::Data(_) | EngineError::State(_)
        )
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            WorkerError::Engine(error) => error.hint().map(str::to_owned),
            WorkerError::Access(error) => error.hint(),
            WorkerError::Unreachable { .. } => {
                Some("start `numalign coordinator` first, and check host, port and firewall".to_owned())
            }
            WorkerError::Refused { .. } => Some("use the same build of numalign on every machine".to_owned()),
            WorkerError::Aborted { hint, .. }
            | WorkerError::Dismissed { hint, .. }
            | WorkerError::Stalled { hint, .. } => Some(hint.clone()),
            _ => None,
        }
    }
}
