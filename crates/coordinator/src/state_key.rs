//! The run's key, with which the coordinator signs every state that it commits. A worker keeps the newest one with its
//! MAC; what it hands to this coordinator's successor is one of the run's exactly where the MAC holds. The key lies in
//! the run's folder, readable by its owner alone, and is never sent.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use numalign_checkpoint::{CheckpointError, write_private};
use numalign_config::Config;
use numalign_projector::State;
use rustix::fs::OFlags;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::CoordinatorError;

/// Name of the file in the run's folder.
pub const FILE_NAME: &str = "state-key";

const KEY_LEN: usize = 32;

/// Makes and checks the MACs of one run's committed states.
#[derive(Clone)]
pub struct StateKey {
    path: PathBuf,
    key: [u8; KEY_LEN],
    /// Run id and config digest, each of them delimited: what a MAC covers besides rollback number and state.
    run: Vec<u8>,
    /// How often the run went back to an earlier state; all clones share it.
    rollbacks: Arc<AtomicU64>,
}

impl StateKey {
    /// The key in the folder of `config`'s run; a new one, on the disk before this returns, where there is none.
    ///
    /// # Errors
    /// The file cannot be read or written, or the kernel has no random numbers.
    pub fn open(folder: &Path, config: &Config) -> Result<Self, CoordinatorError> {
        let path = folder.join(FILE_NAME);
        let mut run = b"numalign committed state 1".to_vec();
        for text in [config.run.run_id.as_str(), &config.digest()] {
            run.extend_from_slice(&(text.len() as u64).to_le_bytes());
            run.extend_from_slice(text.as_bytes());
        }
        if let Some(key) = read(&path)? {
            return Ok(Self { path, key, run, rollbacks: Arc::default() });
        }
        let new = Self { path, key: random()?, run, rollbacks: Arc::default() };
        new.keep()?;
        Ok(new)
    }

    /// Another key for the same folder, which holds nothing of this run yet: it is stored with [`StateKey::keep`].
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn renewed(&self) -> Result<Self, CoordinatorError> {
        Ok(Self { key: random()?, rollbacks: Arc::default(), ..self.clone() })
    }

    /// Stores the key unless it is in the run's folder: it is new, or somebody removed the folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self) -> Result<(), CheckpointError> {
        match read(&self.path) {
            Ok(Some(key)) if key == self.key => Ok(()),
            _ => write_private(&self.path, &self.key),
        }
    }

    /// How often the run went back to an earlier state.
    pub fn rollbacks(&self) -> u64 {
        self.rollbacks.load(Ordering::SeqCst)
    }

    /// The run went back for the `number`-th time: the MACs of what was committed before are those of void states.
    pub fn rolled_back(&self, number: u64) {
        self.rollbacks.store(number, Ordering::SeqCst);
    }

    /// The MAC of a committed state: keyed BLAKE3 over the run, the rollbacks so far, the state's step and its digest.
    pub fn mac(&self, state: &State) -> [u8; 32] {
        *self.hash(state, self.rollbacks()).as_bytes()
    }

    /// Whether `mac` is that of `state` after so many rollbacks; takes the same time wherever they differ.
    pub fn holds(&self, state: &State, rollbacks: u64, mac: &[u8]) -> bool {
        let mac: Result<[u8; 32], _> = mac.try_into();
        mac.is_ok_and(|mac| self.hash(state, rollbacks) == blake3::Hash::from_bytes(mac))
    }

    fn hash(&self, state: &State, rollbacks: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.run);
        hasher.update(&rollbacks.to_le_bytes());
        hasher.update(&state.step().to_le_bytes());
        hasher.update(&state.digest().0);
        hasher.finalize()
    }
}

fn random() -> Result<[u8; KEY_LEN], CoordinatorError> {
    let mut key = [0; KEY_LEN];
    match getrandom(&mut key, GetRandomFlags::empty()) {
        Ok(KEY_LEN) => Ok(key),
        _ => Err(CoordinatorError::Server("the kernel gives no random numbers for the run's key".to_owned())),
    }
}

/// The key in a file; none where there is no such file, or one that was cut off.
fn read(path: &Path) -> Result<Option<[u8; KEY_LEN]>, CoordinatorError> {
    let failed = |source| CoordinatorError::Checkpoint(CheckpointError::Read { path: path.to_owned(), source });
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut bytes = Vec::new();
    file.take(KEY_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes.try_into().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn state(seed: u64) -> State {
        State::initial(2, seed)
    }

    fn config(run_id: &str, lr: &str) -> Config {
        Config::with(&[("run_id", run_id), ("lr", lr)]).unwrap()
    }

    fn open(folder: &Path) -> StateKey {
        StateKey::open(folder, &config("run", "0.1")).unwrap()
    }

    #[test]
    fn a_mac_holds_for_this_run_and_state_alone() {
        let folder = tempfile::tempdir().unwrap();
        let key = open(folder.path());
        let mac = key.mac(&state(1));
        assert!(key.holds(&state(1), 0, &mac));
        assert!(!key.holds(&state(2), 0, &mac), "another state");
        for other in [config("other", "0.1"), config("run", "0.2")] {
            let other = StateKey::open(folder.path(), &other).unwrap();
            assert!(other.key == key.key && !other.holds(&state(1), 0, &mac));
        }
        for bit in 0..256 {
            let mut changed = mac;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.holds(&state(1), 0, &changed));
        }
        for short in [&mac[..31], &[]] {
            assert!(!key.holds(&state(1), 0, short));
        }
        assert!(!open(tempfile::tempdir().unwrap().path()).holds(&state(1), 0, &mac), "another key");
    }

    #[test]
    fn what_was_committed_before_a_rollback_has_another_mac() {
        let folder = tempfile::tempdir().unwrap();
        let (key, void) = (open(folder.path()), open(folder.path()).mac(&state(1)));
        let theirs = key.clone();
        key.rolled_back(1);
        assert!(theirs.rollbacks() == 1 && theirs.holds(&state(1), 0, &void) && !theirs.holds(&state(1), 1, &void));
        assert!(theirs.holds(&state(1), 1, &key.mac(&state(1))));
    }

    #[test]
    fn the_key_outlives_the_coordinator_until_it_is_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let first = open(folder.path());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(folder.path()).key, first.key);
        let second = first.renewed().unwrap();
        assert_ne!(second.key, first.key);
        assert_eq!(open(folder.path()).key, first.key, "nothing has changed yet");
        second.keep().unwrap();
        assert_eq!(open(folder.path()).key, second.key);
        std::fs::write(&path, "cut off").unwrap();
        assert_ne!(open(folder.path()).key, second.key);
    }

    #[test]
    fn a_key_that_was_removed_is_stored_again() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let key = open(&run);
        std::fs::remove_dir_all(&run).unwrap();
        key.keep().unwrap();
        assert_eq!(open(&run).key, key.key);
        assert_eq!(std::fs::metadata(run.join(FILE_NAME)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_key_is_never_read_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, [7; KEY_LEN]).unwrap();
        std::os::unix::fs::symlink(&elsewhere, folder.path().join(FILE_NAME)).unwrap();
        assert!(StateKey::open(folder.path(), &config("run", "0.1")).is_err());
    }
}
