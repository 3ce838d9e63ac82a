//! How far a run with a solver is: the part of the state that `adam` does not have.

use super::least_squares::Fit;

/// Rounds in progress and done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SolveState {
    /// The round in progress; none between rounds.
    pub round: Option<Round>,
    /// The latest solution; none before the first.
    pub solved: Option<Solved>,
}

/// A round in progress. Its sums are the coordinator's; every rank knows by the digest that they come from the same
/// features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Chunks gathered.
    pub chunks: u64,
    /// `BLAKE3(digest before ‖ digest of the chunk's features)`, from zeros.
    pub digest: [u8; 32],
}

/// What is known of a solution besides its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Solved {
    /// Rounds solved so far.
    pub rounds: u64,
    /// Coefficient λ of the squared norm of the weights.
    pub ridge: f64,
    /// Mean absolute error in encoded units on samples that were held out while λ was chosen.
    pub held_out_error: f64,
}

impl Round {
    /// A round without chunks.
    pub fn start() -> Self {
        Self { chunks: 0, digest: [0; 32] }
    }

    /// The round after one more chunk with this digest of its features.
    pub fn with_chunk(&self, features_digest: [u8; 32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 solver round");
        hasher.update(&self.digest);
        hasher.update(&features_digest);
        Self { chunks: self.chunks + 1, digest: *hasher.finalize().as_bytes() }
    }
}

impl SolveState {
    /// Bytes of [`SolveState::to_bytes`].
    pub(crate) const BYTES: usize = 8 + 8 + 32 + 8 + 8 + 8;

    /// Whether a round is in progress (1 or 0), its chunks and digest; rounds solved, ridge and error of the latest.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let round = self.round.unwrap_or(Round::start());
        let solved = self.solved.unwrap_or(Solved { rounds: 0, ridge: 0.0, held_out_error: 0.0 });
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend_from_slice(&u64::from(self.round.is_some()).to_le_bytes());
        bytes.extend_from_slice(&round.chunks.to_le_bytes());
        bytes.extend_from_slice(&round.digest);
        bytes.extend_from_slice(&solved.rounds.to_le_bytes());
        bytes.extend_from_slice(&solved.ridge.to_le_bytes());
        bytes.extend_from_slice(&solved.held_out_error.to_le_bytes());
        bytes
    }

    /// Inverse of [`SolveState::to_bytes`]: none for bytes that it does not write, so that a state has one form and one
    /// digest.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| -> Option<[u8; 8]> { bytes.get(at..at + 8)?.try_into().ok() };
        let whole = |at: usize| word(at).map(u64::from_le_bytes);
        let float = |at: usize| word(at).map(f64::from_le_bytes);
        let round = Round { chunks: whole(8)?, digest: bytes.get(16..48)?.try_into().ok()? };
        let solved = Solved { rounds: whole(48)?, ridge: float(56)?, held_out_error: float(64)? };
        let state = Self { round: (whole(0)? == 1).then_some(round), solved: (solved.rounds > 0).then_some(solved) };
        (state.to_bytes() == bytes[..Self::BYTES]).then_some(state)
    }

    /// After the round in progress was solved.
    pub(crate) fn after(&self, fit: &Fit) -> Self {
        let rounds = self.solved.map_or(0, |solved| solved.rounds) + 1;
        let solved = Solved { rounds, ridge: fit.ridge, held_out_error: fit.held_out_error };
        Self { round: None, solved: Some(solved) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let solved = Solved { rounds: 3, ridge: 1e-9, held_out_error: 0.1 };
        for round in [None, Some(Round::start()), Some(Round::start().with_chunk([7; 32]))] {
            for solved in [None, Some(solved)] {
                let state = SolveState { round, solved };
                let bytes = state.to_bytes();
                assert_eq!(bytes.len(), SolveState::BYTES);
                assert_eq!(SolveState::from_bytes(&bytes), Some(state));
                assert_eq!(SolveState::from_bytes(&bytes[1..]), None);
            }
        }
    }

    /// Found by fuzzing: each of these was read as a state without round or solution.
    #[test]
    fn bytes_that_are_never_written_are_refused() {
        let empty = SolveState { round: None, solved: None }.to_bytes();
        assert!(SolveState::from_bytes(&empty).is_some());
        for place in [0, 8, 16, 56, 64] {
            let mut bytes = empty.clone();
            bytes[place] = 2;
            assert_eq!(SolveState::from_bytes(&bytes), None, "byte {place}");
        }
    }

    #[test]
    fn a_rounds_digest_depends_on_the_order_of_its_chunks() {
        let (one, two) = ([1; 32], [2; 32]);
        let round = |first, second| Round::start().with_chunk(first).with_chunk(second);
        assert_eq!(round(one, two), round(one, two));
        assert_ne!(round(one, two), round(two, one));
        assert_eq!(round(one, two).chunks, 2);
    }
}
