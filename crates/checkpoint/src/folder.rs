//! The folder of one run, `chk/<run-id>/`: atomic writes, listing, the newest valid checkpoint, the last k.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::CheckpointError;
use crate::file::Checkpoint;
use crate::temporary;

/// Name of the file in a run's folder that has its whole configuration (YAML).
pub const CONFIGURATION: &str = "config.yaml";

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Opens the folder, creating it if it is not there.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        std::fs::create_dir_all(path).map_err(|source| CheckpointError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `step-00000100.safetensors`
    pub fn file_of(&self, step: u64) -> PathBuf {
        self.path.join(format!("step-{step:08}.safetensors"))
    }

    /// Step and path of every file with a checkpoint's name, newest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: self.path.clone(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let digits = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".safetensors"));
            if let Some(step) = digits.and_then(|digits| digits.parse().ok()) {
                found.push((step, path));
            }
        }
        found.sort();
        found.reverse();
        Ok(found)
    }

    /// The newest checkpoint that reads and verifies, and why newer ones were passed over.
    ///
    /// # Errors
    /// The folder cannot be read.
    #[allow(clippy::type_complexity)]
    pub fn newest_valid(&self) -> Result<(Option<(PathBuf, Checkpoint)>, Vec<CheckpointError>), CheckpointError> {
        let mut skipped = Vec::new();
        for (_, path) in self.list()? {
            match Checkpoint::read(&path) {
                Ok(checkpoint) => return Ok((Some((path, checkpoint)), skipped)),
                Err(error) => skipped.push(error),
            }
        }
        Ok((None, skipped))
    }

    /// Writes `step-….safetensors` and then drops all but the newest `keep`. On a full disk those go first that would go
    /// afterwards, so room for `keep` files is enough; one older file stays in any case.
    ///
    /// # Errors
    /// The file cannot be written, or an old one not removed.
    pub fn write(&self, step: u64, bytes: &[u8], keep: usize) -> Result<PathBuf, CheckpointError> {
        let (path, older) = (self.file_of(step), keep.max(1) - 1);
        match write_atomically(&path, bytes) {
            Err(error) if error.is_disk_full() => {
                if self.drop_older(step, older.max(1))? == 0 {
                    return Err(error);
                }
                write_atomically(&path, bytes)?;
            }
            written => written?,
        }
        self.drop_older(step, older)?;
        Ok(path)
    }

    /// Removes all checkpoints of earlier steps than `step` but the newest `keep`; says how many went.
    fn drop_older(&self, step: u64, keep: usize) -> Result<usize, CheckpointError> {
        let mut dropped = 0;
        for (_, old) in self.list()?.into_iter().filter(|(known, _)| *known < step).skip(keep) {
            std::fs::remove_file(&old).map_err(|source| CheckpointError::Write { path: old, source })?;
            dropped += 1;
        }
        Ok(dropped)
    }

    /// Marks the checkpoints as those of an earlier run that is being replaced, so that a resumed run does not continue from
    /// them. They stay until [`RunFolder::clear`], so that a run that never trains destroys nothing.
    ///
    /// # Errors
    /// The mark cannot be written.
    pub fn mark_replaced(&self) -> Result<(), CheckpointError> {
        let path = self.path.join(REPLACED);
        open_regular(&path, false).map_err(|source| CheckpointError::Write { path, source })?;
        Ok(())
    }

    /// Whether the checkpoints are those of an earlier run that is being replaced.
    pub fn is_replaced(&self) -> bool {
        self.path.join(REPLACED).exists()
    }

    /// Removes every checkpoint of an earlier run that is being replaced, then the mark that says so.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn clear(&self) -> Result<(), CheckpointError> {
        for (_, path) in self.list()? {
            std::fs::remove_file(&path).map_err(|source| CheckpointError::Write { path, source })?;
        }
        self.clear_rollbacks()?;
        self.clear_audited()?;
        let path = self.path.join(REPLACED);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(CheckpointError::Write { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Name of the mark of [`RunFolder::mark_replaced`].
const REPLACED: &str = "being-replaced";

/// Writes a file so that its name only ever holds the old or the new bytes: temporary file in the same folder, synced,
/// renamed, folder synced.
///
/// # Errors
/// The file cannot be written, or the path is a folder.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    // A checkpoint is a result, not a secret.
    write_with_mode(path, bytes, 0o666)
}

/// As [`write_atomically`], for a file that its owner alone may read.
///
/// # Errors
/// The file cannot be written, or the path is a folder.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    write_with_mode(path, bytes, 0o600)
}

fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    if path.is_dir() {
        return Err(failed(std::io::Error::other("it is a folder")));
    }
    let mut temporary = temporary::create(folder, mode).map_err(failed)?;
    temporary.write_all(bytes).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Opens a file for reading and writing, or makes it; nothing but a regular file, and never through a symbolic link, which could lead
/// out of the run's folder.
///
/// # Errors
/// Something else has that name, or the file cannot be opened.
pub fn open_regular(path: &Path, append: bool) -> std::io::Result<File> {
    let other = |what: &str| std::io::Error::other(format!("{} is {what}, not a file", path.display()));
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => return Err(other("a symbolic link")),
        Ok(found) if found.is_dir() => return Err(other("a folder")),
        Ok(found) if found.file_type().is_fifo() => return Err(other("a named pipe")),
        Ok(found) if !found.is_file() => return Err(other("a device or socket")),
        _ => {}
    }
    // It may have become another thing since.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true).append(append);
    options.custom_flags(flags.bits() as i32).open(path)
}
