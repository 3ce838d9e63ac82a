//! Why a worker ends without having been told that the run is done.

use numalign_access::AccessError;
use numalign_model::ModelError;
use numalign_projector::StateError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("sample {index}: {source}")]
    Sample { index: u64, source: ModelError },
    #[error("sample {index}: {reason}")]
    BadSample { index: u64, reason: String },
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("no coordinator at {url} for {seconds:.0} s: {reason}")]
    Unreachable { url: String, seconds: f64, reason: String },
    #[error("the coordinator does not take this worker: {reason}")]
    Refused { reason: String },
    #[error("the coordinator ended the run: {reason}")]
    Aborted { reason: String, hint: String },
    #[error("the coordinator broke the protocol: {0}")]
    Protocol(String),
    #[error("the device thread ended: {0}")]
    Device(String),
    #[error(transparent)]
    Data(#[from] numalign_data::DataError),
    #[error(transparent)]
    Features(#[from] numalign_projector::FeaturesError),
    #[error("the output projector cannot be solved for: {0}")]
    Unsolvable(String),
    #[error("{0}")]
    State(#[from] StateError),
    #[error(transparent)]
    Collective(#[from] numalign_collective::CollectiveError),
}

impl From<numalign_projector::FitError> for WorkerError {
    fn from(error: numalign_projector::FitError) -> Self {
        Self::Unsolvable(error.to_string())
    }
}

impl WorkerError {
    /// What the person at the keyboard can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            WorkerError::Model(error) | WorkerError::Sample { source: error, .. } => error.hint().map(str::to_owned),
            WorkerError::Access(error) => error.hint(),
            WorkerError::Unreachable { .. } => {
                Some("start `numalign coordinator` first, and check host, port and firewall".to_owned())
            }
            WorkerError::Refused { .. } => Some("use the same build of numalign on every machine".to_owned()),
            WorkerError::Aborted { hint, .. } => Some(hint.clone()),
            WorkerError::BadSample { .. } => Some("mend that sample; a marked number looks like $$12.5&&".to_owned()),
            WorkerError::State(StateError::NotFinite { .. } | StateError::NotMeasurable { .. }) => {
                Some("the training diverged: lower lr, or look for extreme values in the dataset".to_owned())
            }
            _ => None,
        }
    }
}
