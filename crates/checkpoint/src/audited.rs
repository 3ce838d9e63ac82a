//! What a run would go back to if a machine turned out to compute wrong numbers: for every machine the state up to which its
//! rows are known to be right, in `audited/` of the run's folder. The newest checkpoints alone are kept, so these states
//! are kept besides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::file::Checkpoint;
use crate::folder::{RunFolder, write_atomically};

/// Folder of the states in the run's folder.
const FOLDER: &str = "audited";

/// Name of the list in that folder: which machine has which state.
const LIST: &str = "machines.json";

/// A machine, and the number of the unit that follows the state up to which its rows are known to be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditedMachine {
    /// Host name.
    pub host: String,
    /// Device, as its workers describe it.
    pub device: String,
    /// The state's unit.
    pub unit: u64,
}

/// Every machine with unaudited rows, and the states named by them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Audited {
    /// The machines.
    pub machines: Vec<AuditedMachine>,
    /// By unit. Of one that is in the folder already the file stays.
    pub states: BTreeMap<u64, Arc<Checkpoint>>,
}

impl RunFolder {
    fn audited_file(&self, unit: u64) -> PathBuf {
        self.path().join(FOLDER).join(format!("unit-{unit:08}.safetensors"))
    }

    /// Writes the states that are not among `written` (unit and state digest), then the list, and drops all other states.
    ///
    /// # Errors
    /// A file cannot be written or removed.
    pub fn keep_audited(
        &self,
        audited: &Audited,
        written: &mut BTreeMap<u64, [u8; 32]>,
    ) -> Result<(), CheckpointError> {
        for (unit, checkpoint) in &audited.states {
            let digest = checkpoint.state.digest().0;
            let path = self.audited_file(*unit);
            // Somebody may have removed the folder.
            if written.get(unit) != Some(&digest) || !path.exists() {
                write_atomically(&path, &checkpoint.to_bytes())?;
                written.insert(*unit, digest);
            }
        }
        let list = self.path().join(FOLDER).join(LIST);
        match serde_json::to_vec(&audited.machines) {
            Ok(bytes) => write_atomically(&list, &bytes)?,
            Err(error) => return Err(CheckpointError::Write { path: list, source: error.into() }),
        }
        let named: BTreeSet<PathBuf> = audited.machines.iter().map(|machine| self.audited_file(machine.unit)).collect();
        let folder = self.path().join(FOLDER);
        let failed = |source| CheckpointError::Read { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !named.contains(&path) && path != list {
                std::fs::remove_file(&path).map_err(|source| CheckpointError::Write { path, source })?;
            }
        }
        written.retain(|unit, _| audited.states.contains_key(unit));
        Ok(())
    }

    /// The machines of the list and their states; those whose file cannot be read come back as errors.
    ///
    /// # Errors
    /// The list cannot be read.
    #[allow(clippy::type_complexity)]
    pub fn audited(&self) -> Result<Vec<(AuditedMachine, Result<Checkpoint, CheckpointError>)>, CheckpointError> {
        let path = self.path().join(FOLDER).join(LIST);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(CheckpointError::Read { path, source }),
        };
        let machines: Vec<AuditedMachine> = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::Damaged { path, reason: error.to_string() })?;
        let read = |machine: AuditedMachine| {
            let state = Checkpoint::read(&self.audited_file(machine.unit));
            (machine, state)
        };
        Ok(machines.into_iter().map(read).collect())
    }

    /// Removes what an earlier run left.
    pub(crate) fn clear_audited(&self) -> Result<(), CheckpointError> {
        let path = self.path().join(FOLDER);
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(CheckpointError::Write { path, source })
            }
            _ => Ok(()),
        }
    }
}
