//! Temporary files beside what they become. A process that is killed leaves its own behind; the next run in the folder
//! removes them. A living process holds a lock on its file, on every machine that sees the folder.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use tempfile::NamedTempFile;

const PREFIX: &str = ".numalign-";
const SUFFIX: &str = ".tmp";

/// A locked temporary file in `folder` with these permissions, less what the umask takes.
pub(crate) fn create(folder: &Path, mode: u32) -> io::Result<NamedTempFile> {
    loop {
        let permissions = Permissions::from_mode(mode);
        let file =
            tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).permissions(permissions).tempfile_in(folder)?;
        // A file system without locks has no files removed from it either.
        if flock(file.as_file(), FlockOperation::LockExclusive).is_err() || file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
        // It was taken for an abandoned one before it was locked.
    }
}

/// Removes the temporary files in `folder` that no living process holds; how many. What cannot be read stays.
pub fn remove_abandoned(folder: &Path) -> usize {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if is_ours && is_abandoned(&entry.path()).is_ok_and(|abandoned| abandoned) {
            removed += usize::from(std::fs::remove_file(entry.path()).is_ok());
        }
    }
    removed
}

fn is_abandoned(path: &Path) -> io::Result<bool> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
    Ok(file.metadata()?.is_file() && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let held = create(folder.path(), 0o600).unwrap();
        let left = folder.path().join(".numalign-AbCdEf.tmp");
        std::fs::write(&left, "half").unwrap();
        std::fs::write(folder.path().join("a.tmp"), "another program's").unwrap();
        std::os::unix::fs::symlink("a.tmp", folder.path().join(".numalign-link.tmp")).unwrap();
        assert_eq!(remove_abandoned(folder.path()), 1);
        assert!(!left.exists() && held.path().exists() && folder.path().join("a.tmp").exists());
        assert_eq!(remove_abandoned(&folder.path().join("missing")), 0);
    }
}
