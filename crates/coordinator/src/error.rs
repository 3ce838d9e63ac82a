//! Why a run cannot start or continue.

use std::path::PathBuf;

use numalign_checkpoint::{CheckpointError, RunFolder};
use numalign_data::DataError;

/// Errors of the coordinator; the command line adds a hint.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is a value of its message")]
pub enum CoordinatorError {
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The data file is at fault.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Another coordinator runs here.
    #[error("the run folder {folder} is in use by another coordinator")]
    Locked { folder: PathBuf },
    /// The lock file cannot be used.
    #[error("cannot lock the run folder {folder}: {source}")]
    Lock { folder: PathBuf, source: std::io::Error },
    /// The folder holds a run that is not finished.
    #[error("{folder} holds an unfinished run at step {step} of {total}")]
    Unfinished { folder: PathBuf, step: u64, total: u64, run_id: String },
    /// The folder holds a finished run of another configuration.
    #[error("{folder} holds a finished run of another configuration:\n{differences}")]
    OtherRun { folder: PathBuf, differences: String },
    /// `resume` names no file.
    #[error("there is no file {path} to resume from; resume takes auto or a checkpoint")]
    NothingToResume { path: PathBuf },
    /// No checkpoint in the folder is valid.
    #[error("no checkpoint in {folder} can be read; the newest: {source}")]
    Unreadable { folder: PathBuf, source: CheckpointError },
    /// The checkpoint was made with other settings.
    #[error("{path} cannot be continued with this configuration:\n{differences}")]
    Differs { path: PathBuf, differences: String },
    /// The projectors to load have another shape.
    #[error("the projectors of {path} do not fit this run: {reason}")]
    NotLoadable { path: PathBuf, reason: String, hint: &'static str },
    /// The server stopped.
    #[error("the server stopped: {0}")]
    Server(String),
    /// The run failed.
    #[error("{reason}")]
    Failed { reason: String, hint: String },
    /// The run was told to stop.
    #[error("stopped at step {step} of {total}{}", saved.as_ref().map_or_else(String::new, |path| format!("; wrote {}", path.display())))]
    Stopped { step: u64, total: u64, run_id: String, saved: Option<PathBuf> },
}

impl CoordinatorError {
    /// Names the checkpoint that a stopped run wrote last, if it lies in `folder`.
    pub(crate) fn with_checkpoint_of(mut self, folder: &RunFolder) -> Self {
        if let CoordinatorError::Stopped { step, saved, .. } = &mut self {
            *saved = Some(folder.file_of(*step)).filter(|path| path.exists());
        }
        self
    }

    /// What the person at the keyboard can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            CoordinatorError::Checkpoint(error) => Some(error.hint().to_owned()),
            CoordinatorError::Data(error) => Some(error.hint().to_owned()),
            CoordinatorError::Locked { .. } => Some("wait for the other run, or choose another --run-id".to_owned()),
            CoordinatorError::Lock { source, .. } if is_disk_full(source) => {
                Some("the disk is full: free some space".to_owned())
            }
            CoordinatorError::Lock { .. } => {
                Some("check the permissions of chk/, and that `lock` there is a file".to_owned())
            }
            CoordinatorError::Unfinished { run_id, .. } => {
                Some(format!("continue it with `{}`, or start another with --run-id", resume_command(run_id)))
            }
            CoordinatorError::OtherRun { folder, .. } => Some(format!(
                "choose another --run-id, or remove {} to begin again; where only num_epochs grew, --resume auto continues it",
                folder.display()
            )),
            CoordinatorError::NothingToResume { .. } => Some(
                "auto takes the newest checkpoint of the run; those of a run are chk/<run-id>/step-*.safetensors"
                    .to_owned(),
            ),
            CoordinatorError::Unreadable { folder, .. } => {
                Some(format!("choose another --run-id, or remove {} to begin again", folder.display()))
            }
            CoordinatorError::Differs { .. } => {
                Some("undo the change, or start a new run with another --run-id; only num_epochs may grow".to_owned())
            }
            CoordinatorError::NotLoadable { hint, .. } => Some((*hint).to_owned()),
            CoordinatorError::Failed { hint, .. } => Some(hint.clone()),
            CoordinatorError::Stopped { run_id, saved: Some(_), .. } => {
                Some(format!("continue with: {}", resume_command(run_id)))
            }
            CoordinatorError::Stopped { saved: None, .. } => {
                Some("no checkpoint was written: start it again".to_owned())
            }
            CoordinatorError::Server(_) => None,
        }
    }
}

/// A whole command that continues a run of `launch`: its folder has the configuration.
fn resume_command(run_id: &str) -> String {
    let is_plain = run_id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let quote = if is_plain { "" } else { "'" };
    format!("numalign launch --run-id {quote}{run_id}{quote} --resume auto")
}

fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}
