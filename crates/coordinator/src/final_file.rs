//! The final file of a run: written again and again while the disk is full, for as long as the user lets it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use numalign_checkpoint::{CheckpointError, write_atomically};

/// Time between two tries.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Time between two lines about a disk that stays full.
const REMIND_AFTER: Duration = Duration::from_secs(300);

/// A file that waits for room.
pub struct FinalFile {
    path: PathBuf,
    bytes: Vec<u8>,
    told: Option<Instant>,
}

impl FinalFile {
    /// A file of these bytes, not yet written.
    pub fn new(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, bytes, told: None }
    }

    /// Writes it; false if the disk is full. `tell` is called the first time, and then rarely.
    ///
    /// # Errors
    /// It cannot be written for another reason.
    pub fn write(&mut self, tell: impl FnOnce(&str)) -> Result<bool, CheckpointError> {
        match write_atomically(&self.path, &self.bytes) {
            Ok(()) => Ok(true),
            Err(error) if error.is_disk_full() => {
                if self.told.is_none_or(|told| told.elapsed() >= REMIND_AFTER) {
                    self.told = Some(Instant::now());
                    tell(&format!("{error}; the run is complete and tries again until there is room (Ctrl-C ends it)"));
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
