//! The loss of every update, in the run's folder: so that the mean of an epoch is that of all its steps also where the run
//! was continued within it. No part of the result.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use numalign_checkpoint::open_regular;

/// Name of the file in the run's folder.
const NAME: &str = "losses";

/// The file: four bytes for each update, at four times its number from 0, of the loss's bits inverted and little-endian.
/// Inverted, because a gap in a file reads as zeros, and the inverse of zeros is no loss.
///
/// Errors are not told: the record is the only reader, and says over how many steps its mean is.
pub struct StepLosses {
    file: Option<File>,
}

impl StepLosses {
    /// Opens the file, or makes it.
    pub fn open(folder: &Path) -> Self {
        Self { file: open_regular(&folder.join(NAME), false).ok() }
    }

    /// Keeps the loss of update `index`, counted from 0.
    pub fn keep(&self, index: u64, loss: f32) {
        if let Some(file) = &self.file {
            let _ = file.write_all_at(&(!loss.to_bits()).to_le_bytes(), 4 * index);
        }
    }

    /// The losses of these updates that are known, in order.
    pub fn of(&self, updates: Range<u64>) -> Vec<f32> {
        let mut known = Vec::new();
        let Some(file) = &self.file else { return known };
        for index in updates {
            let mut bytes = [0; 4];
            if file.read_exact_at(&mut bytes, 4 * index).is_err() {
                break;
            }
            let bits = !u32::from_le_bytes(bytes);
            if bits != u32::MAX {
                known.push(f32::from_bits(bits));
            }
        }
        known
    }

    /// Forgets all of them: another run begins in the folder.
    pub fn clear(&self) {
        if let Some(file) = &self.file {
            let _ = file.set_len(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_survive_and_gaps_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let losses = StepLosses::open(folder.path());
        losses.keep(2, 0.0);
        losses.keep(3, 1.5);
        losses.keep(7, -0.0);
        let again = StepLosses::open(folder.path());
        assert_eq!(again.of(0..8), [0.0, 1.5, -0.0]);
        assert_eq!(again.of(3..20), [1.5, -0.0]);
        again.keep(3, 2.5);
        assert_eq!(again.of(3..4), [2.5]);
        again.clear();
        assert!(again.of(0..8).is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let losses = StepLosses::open(&folder.path().join("missing"));
        losses.keep(0, 1.0);
        assert!(losses.of(0..1).is_empty());
    }
}
