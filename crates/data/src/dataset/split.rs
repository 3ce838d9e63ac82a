//! Which rows are held out: a pure function of the seed and of the row's content.
//!
//! Equal rows fall on one side, and no row's side depends on the rows beside it, but for the smallest files: where the share
//! would leave one side without a row, it gets the nearest one.

/// Separates these hashes from every other use of BLAKE3's key derivation. A change changes every split.
const CONTEXT: &str = "numalign 2026-11 held-out rows";

/// A side of the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Rows that are trained on.
    Train,
    /// Rows that are evaluated on.
    HeldOut,
}

/// The rule of a split.
#[derive(Debug, Clone)]
pub struct Split {
    hasher: blake3::Hasher,
    /// Marks below it are held out.
    threshold: u64,
}

impl Split {
    /// Holds out about `share` (between 0 and 1) of the rows.
    pub fn new(seed: u64, share: f64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&seed.to_le_bytes());
        // The conversion saturates.
        Self { hasher, threshold: (share * 2f64.powi(64)) as u64 }
    }

    /// Where a row lies, uniform over all `u64`: the first 8 bytes of `BLAKE3(seed (u64 LE) ‖ content)`, little-endian.
    /// `content` is [`crate::Sample::content_bytes`].
    pub fn mark(&self, content: &[u8]) -> u64 {
        let mut hasher = self.hasher.clone();
        hasher.update(content);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(bytes)
    }

    /// Whether each row is held out, from the rows' marks. `None` if all of them are one and the same.
    pub fn held_out(&self, marks: &[u64]) -> Option<Vec<bool>> {
        let (least, most) = (marks.iter().min()?, marks.iter().max()?);
        if least == most {
            return None;
        }
        // At least the rows of the lowest mark are held out, and those of the highest never.
        let threshold = self.threshold.clamp(least + 1, *most);
        Some(marks.iter().map(|mark| *mark < threshold).collect())
    }
}
