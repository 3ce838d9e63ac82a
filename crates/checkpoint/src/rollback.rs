//! A run that goes back to an earlier state: the checkpoints written since are marked, by name, before anything else
//! happens, so that no resume continues from one of them.
//!
//! First `rollbacks.json` says which files are void, then they are renamed, then the state that the run goes on from is
//! written, and `rollbacks.json` says that all is done. Whoever finds it in between finishes the renaming.

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::file::Checkpoint;
use crate::folder::{RunFolder, write_atomically};

/// Name of the record in the run's folder.
const RECORD: &str = "rollbacks.json";

/// What the name of a checkpoint begins with that is void.
const VOID_PREFIX: &str = "rolled-back-";

/// How often a run went back, and what is still to be renamed.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    number: u64,
    /// Names of void checkpoints that may not be renamed yet.
    void: Vec<String>,
}

/// Whether a checkpoint's name says that its run went back to a state before it.
pub fn is_void(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(VOID_PREFIX))
}

impl RunFolder {
    /// How often the run went back so far. A marking that was interrupted is finished first.
    ///
    /// # Errors
    /// The record cannot be read, or a file not be renamed.
    pub fn rollbacks(&self) -> Result<u64, CheckpointError> {
        let path = self.path().join(RECORD);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(source) => return Err(CheckpointError::Read { path, source }),
        };
        let record: Record = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::Damaged { path: path.clone(), reason: error.to_string() })?;
        if !record.void.is_empty() {
            self.mark(&record)?;
            self.record(&Record { number: record.number, void: Vec::new() })?;
        }
        Ok(record.number)
    }

    /// The run goes back for the `number`-th time, to the state of `to`: checkpoints for which `is_beyond` holds are marked
    /// as void, and `to` becomes the newest valid one.
    ///
    /// # Errors
    /// A file cannot be written or renamed; the marking is finished by [`RunFolder::rollbacks`], or by another call.
    pub fn roll_back(
        &self,
        number: u64,
        to: &Checkpoint,
        is_beyond: impl Fn(&Checkpoint) -> bool,
    ) -> Result<(), CheckpointError> {
        let mut void = Vec::new();
        for (step, path) in self.list()? {
            // One that cannot be read is passed over anyway.
            let beyond = step >= to.state.step() && Checkpoint::read(&path).map_or(true, |found| is_beyond(&found));
            if let Some(name) = path.file_name().filter(|_| beyond) {
                void.push(name.to_string_lossy().into_owned());
            }
        }
        let record = Record { number, void };
        self.record(&record)?;
        self.mark(&record)?;
        write_atomically(&self.file_of(to.state.step()), &to.to_bytes())?;
        self.record(&Record { number, void: Vec::new() })
    }

    fn record(&self, record: &Record) -> Result<(), CheckpointError> {
        let path = self.path().join(RECORD);
        match serde_json::to_vec(record) {
            Ok(bytes) => write_atomically(&path, &bytes),
            Err(error) => Err(CheckpointError::Write { path, source: error.into() }),
        }
    }

    fn mark(&self, record: &Record) -> Result<(), CheckpointError> {
        for name in &record.void {
            let from = self.path().join(name);
            let to = self.path().join(format!("{VOID_PREFIX}{}-{name}", record.number));
            match std::fs::rename(&from, to) {
                // It was renamed before.
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CheckpointError::Write { path: from, source });
                }
                _ => {}
            }
        }
        let failed = |source| CheckpointError::Write { path: self.path().to_owned(), source };
        File::open(self.path()).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// Removes every trace of rollbacks of an earlier run.
    pub(crate) fn clear_rollbacks(&self) -> Result<(), CheckpointError> {
        let failed = |source| CheckpointError::Read { path: self.path().to_owned(), source };
        for entry in std::fs::read_dir(self.path()).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if is_void(&path) || path.ends_with(RECORD) {
                std::fs::remove_file(&path).map_err(|source| CheckpointError::Write { path, source })?;
            }
        }
        Ok(())
    }
}
