//! Everything that can be wrong with a checkpoint file or its folder.

use std::path::PathBuf;

/// Errors of this crate; each names the file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum CheckpointError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a numalign checkpoint: {reason}")]
    Foreign { path: PathBuf, reason: String },
    #[error("{path} holds no projectors for this stage, encoder and base: {reason}")]
    NotProjectors { path: PathBuf, reason: String },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} is void: its run went back to a state before it, because a machine had computed wrong numbers")]
    Void { path: PathBuf },
    #[error("{path} has format version {found}; this build reads version {known}")]
    Version { path: PathBuf, found: String, known: &'static str },
}

impl CheckpointError {
    /// Whether there was no room: writing again helps once there is.
    pub fn is_disk_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, CheckpointError::Write { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// What the person at the keyboard can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            CheckpointError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "name a checkpoint: a run's result is chk/<run-id>.safetensors"
            }
            CheckpointError::Read { .. } => "check the path and its permissions",
            CheckpointError::Write { .. } if self.is_disk_full() => "the disk is full: free some space",
            CheckpointError::Write { .. } => "check free space and permissions of the folder",
            CheckpointError::Foreign { .. } => {
                "give a file that `numalign launch` or `numalign coordinator` wrote; `numalign import` makes one of bare projectors (docs/OPERATIONS.md)"
            }
            CheckpointError::NotProjectors { .. } => {
                "docs/OPERATIONS.md says which tensors are wanted, and how a PyTorch file becomes such a file"
            }
            CheckpointError::Damaged { .. } => {
                "use an older checkpoint of the run (chk/<run-id>/step-*.safetensors), or --resume auto, which skips damaged files"
            }
            CheckpointError::Void { .. } => "use --resume auto, which continues from the newest valid checkpoint",
            CheckpointError::Version { .. } => "use the build of numalign that wrote the file",
        }
    }
}
