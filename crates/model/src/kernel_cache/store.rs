//! One process's part of the cache: its private folder, and the shared file that it is filled from and adds to.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::file;

/// The version of cubecl-common, which is part of its paths.
const CUBECL: &str = "0.10.0";

/// Builds whose kernels are kept.
const MOST_FILES: usize = 8;

/// What decides a kernel's compiled code besides its name and settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The GPU's compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// The run-time compiler's version, such as (12, 9).
    pub compiler: (u32, u32),
}

/// This process's part of the cache.
pub struct KernelCache {
    /// The file that all processes of this build share.
    pub shared: PathBuf,
    /// What cubecl reads once and then appends to.
    own: PathBuf,
    /// Bytes of it that are in the shared file.
    known: u64,
    /// Held as long as the process lives: its folder is in use.
    _in_use: File,
}

impl KernelCache {
    /// Adds what was compiled since the last time.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn share(&mut self) -> std::io::Result<()> {
        let bytes = std::fs::metadata(&self.own).map_or(0, |metadata| metadata.len());
        if bytes <= self.known {
            return Ok(());
        }
        let all = std::fs::read(&self.own)?;
        let new = all.get(self.known as usize..).unwrap_or_default();
        // Tried once: a full disk is no reason to try again after every step.
        self.known = all.len() as u64;
        file::append(&self.shared, new)
    }
}

/// `numalign/kernels` in `XDG_CACHE_HOME`, else in `~/.cache`.
#[cfg(feature = "cuda")]
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("numalign/kernels"))
}

/// The root that cubecl is given, and this process's part of the cache in `folder`.
///
/// # Errors
/// The folder cannot be read or written.
pub fn open(folder: &Path, target: Target) -> std::io::Result<(PathBuf, KernelCache)> {
    file::private_folder(folder)?;
    let program = program()?;
    // A folder that is being made must not look abandoned.
    let door = File::create(folder.join("door"))?;
    door.lock()?;
    remove_abandoned(folder);
    let Target { capability, compiler } = target;
    let name = format!(
        "{:.16}-sm{}{}-nvrtc{}.{}.kernels",
        program.to_hex(),
        capability.0,
        capability.1,
        compiler.0,
        compiler.1
    );
    let shared = folder.join(name);
    let root = folder.join(format!("process-{}", std::process::id()));
    // Of a process with this number that is gone.
    let _ = std::fs::remove_dir_all(&root);
    let own = root.join("cuda").join(CUBECL).join("ptx/chunk0.cbor");
    if let Some(parent) = own.parent() {
        file::private_folder(parent)?;
    }
    let in_use = File::create(root.join("in-use"))?;
    in_use.lock()?;
    let kernels = file::read(&shared);
    std::fs::write(&own, &kernels)?;
    let known = kernels.len() as u64;
    Ok((root, KernelCache { shared, own, known, _in_use: in_use }))
}

/// The digest of the running program.
fn program() -> std::io::Result<blake3::Hash> {
    let file = File::open("/proc/self/exe")?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize())
}

/// Takes away folders of processes that ended, and the files of old builds.
fn remove_abandoned(folder: &Path) {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with("process-") {
            let held = File::open(path.join("in-use")).is_ok_and(|file| file.try_lock().is_err());
            if !held {
                // Another process may do so at the same time.
                let _ = std::fs::remove_dir_all(&path);
            }
        } else if name.ends_with(".kernels") {
            files.extend(entry.metadata().and_then(|metadata| metadata.modified()).map(|time| (time, path)));
        }
    }
    files.sort();
    for (_, path) in files.iter().rev().skip(MOST_FILES) {
        let _ = std::fs::remove_file(path);
        let _ = std::fs::remove_file(path.with_extension("lock"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { capability: (9, 0), compiler: (12, 9) };

    #[test]
    fn what_one_process_compiled_the_next_one_finds() {
        let folder = tempfile::tempdir().unwrap();
        let (root, mut first) = open(folder.path(), TARGET).unwrap();
        assert!(first.own.starts_with(&root) && std::fs::read(&first.own).unwrap().is_empty());
        std::fs::write(&first.own, b"a kernel").unwrap();
        first.share().unwrap();
        first.share().unwrap();
        // The same process number: as after a restart.
        drop(first);
        let (_, second) = open(folder.path(), TARGET).unwrap();
        assert_eq!(std::fs::read(&second.own).unwrap(), b"a kernel");
        let other = Target { capability: (8, 0), ..TARGET };
        drop(second);
        let (_, third) = open(folder.path(), other).unwrap();
        assert!(std::fs::read(&third.own).unwrap().is_empty(), "another GPU has other code");
    }

    #[test]
    fn folders_of_the_dead_and_files_of_old_builds_go() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("process-1")).unwrap();
        for old in 0..MOST_FILES + 3 {
            std::fs::write(folder.path().join(format!("{old}.kernels")), b"").unwrap();
        }
        let (root, _cache) = open(folder.path(), TARGET).unwrap();
        remove_abandoned(folder.path());
        assert!(root.exists() && !folder.path().join("process-1").exists());
        let left = std::fs::read_dir(folder.path()).unwrap().flatten();
        let left = left.filter(|entry| entry.file_name().to_string_lossy().ends_with(".kernels")).count();
        assert_eq!(left, MOST_FILES);
    }
}
