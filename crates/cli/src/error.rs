//! An error on its way to the user: the chain of causes, a hint, and the exit code.

use std::fmt;

use numalign_access::AccessError;
use numalign_checkpoint::CheckpointError;
use numalign_coordinator::CoordinatorError;
use numalign_data::DataError;
use numalign_data::table::TableError;
use numalign_engine::EngineError;
use numalign_model::ModelError;
use numalign_worker::WorkerError;

/// The exit code of a run that was stopped before its end and can be continued: by Ctrl-C, by another signal, by `max_time`.
/// What a shell reports of a program that Ctrl-C ended.
pub const STOPPED: u8 = 130;

/// What `main` prints and exits with: 1 failed, 2 wrong usage or configuration, [`STOPPED`].
pub struct CliError {
    error: anyhow::Error,
    hint: Option<String>,
    pub code: u8,
}

impl CliError {
    /// Wrong usage or configuration.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { error: anyhow::anyhow!("{message}"), hint: None, code: 2 }
    }

    /// Any other failure.
    pub fn new(message: impl fmt::Display) -> Self {
        Self { error: anyhow::anyhow!("{message}"), hint: None, code: 1 }
    }

    /// Somebody wanted it to end.
    pub fn stopped(message: impl fmt::Display) -> Self {
        Self { code: STOPPED, ..Self::new(message) }
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A child process printed its error and ended with `code`; there is nothing left to say.
    pub fn already_reported(code: u8) -> Self {
        Self { error: anyhow::anyhow!(""), hint: None, code }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for cause in self.error.chain() {
            let cause = cause.to_string();
            // Many errors tell their cause themselves.
            if text.is_empty() {
                text = cause;
            } else if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        write!(f, "error: {text}")?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self { error: error.into(), hint: None, code: 1 }
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        let code = if matches!(error, ModelError::UnknownModel { .. }) { 2 } else { 1 };
        let hint = error.hint().map(str::to_owned);
        Self { error: error.into(), hint, code }
    }
}

impl From<CheckpointError> for CliError {
    fn from(error: CheckpointError) -> Self {
        let hint = Some(error.hint().to_owned());
        Self { error: error.into(), hint, code: 1 }
    }
}

impl From<csv::Error> for CliError {
    fn from(error: csv::Error) -> Self {
        Self { error: error.into(), hint: None, code: 1 }
    }
}

impl From<TableError> for CliError {
    fn from(error: TableError) -> Self {
        Self { error: error.into(), hint: None, code: 1 }
    }
}

impl From<DataError> for CliError {
    fn from(error: DataError) -> Self {
        CoordinatorError::from(error).into()
    }
}

impl From<CoordinatorError> for CliError {
    fn from(error: CoordinatorError) -> Self {
        let hint = error.hint();
        let code = if matches!(error, CoordinatorError::Stopped { .. }) { STOPPED } else { 1 };
        Self { error: error.into(), hint, code }
    }
}

impl From<AccessError> for CliError {
    fn from(error: AccessError) -> Self {
        WorkerError::from(error).into()
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Model(error) => error.into(),
            EngineError::Data(error) => error.into(),
            error => {
                let hint = error.hint().map(str::to_owned);
                Self { error: error.into(), hint, code: 1 }
            }
        }
    }
}

impl From<WorkerError> for CliError {
    fn from(error: WorkerError) -> Self {
        let code = if matches!(&error, WorkerError::Access(access) if access.is_usage()) { 2 } else { 1 };
        let hint = error.hint();
        Self { error: error.into(), hint, code }
    }
}
