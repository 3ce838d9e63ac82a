//! A state as bytes and back, and the digest by which ranks compare states.

use std::fmt;

use super::{State, StateError};
use crate::bytes::{floats_from_le, le_bytes};
use crate::evaluations::Evaluations;
use crate::layout::Layout;
use crate::solver::progress::SolveState;

/// Step, layout word and both powers.
const HEADER: usize = 8 + 8 + 8 + 8;

/// BLAKE3 of a state's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateDigest(pub [u8; 32]);

impl StateDigest {
    /// Digest in a message; none when it is not 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex()[..16])
    }
}

impl fmt::Debug for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl State {
    /// Little-endian bytes: step, layout word, both powers, parameters, first and second moments; with a solver, where
    /// it stands; evaluations, where some were made.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 12 * self.layout.len());
        bytes.extend_from_slice(&self.step.to_le_bytes());
        bytes.extend_from_slice(&self.layout.to_word().to_le_bytes());
        bytes.extend_from_slice(&self.beta_1_power.to_le_bytes());
        bytes.extend_from_slice(&self.beta_2_power.to_le_bytes());
        for values in [&self.parameters, &self.exp_avg, &self.exp_avg_sq] {
            bytes.extend_from_slice(le_bytes(values));
        }
        if let Some(solve) = &self.solve {
            bytes.extend(solve.to_bytes());
        }
        bytes.extend(self.evaluations.to_bytes());
        bytes
    }

    /// Inverse of [`State::to_bytes`].
    ///
    /// # Errors
    /// Bytes whose number does not fit the layout that they name.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let word = |i: usize| -> Option<[u8; 8]> { bytes.get(8 * i..8 * i + 8)?.try_into().ok() };
        let (Some(step), Some(shape), Some(first), Some(second)) = (word(0), word(1), word(2), word(3)) else {
            return Err(StateError::TooShort { got: bytes.len() });
        };
        let layout = Layout::from_word(u64::from_le_bytes(shape));
        // A layout word holds less than 2^41 numbers: nothing here overflows.
        let want = HEADER + 12 * layout.len();
        let (solve, evaluations) = match bytes.get(want..).and_then(|rest| after_moments(rest, layout)) {
            Some(rest) if !layout.is_empty() => rest,
            _ => return Err(StateError::WrongSize { got: bytes.len(), want, hidden: layout.hidden() }),
        };
        let mut vectors = bytes[HEADER..want].chunks_exact(4 * layout.len()).map(floats_from_le);
        let mut next = || vectors.next().unwrap_or_default();
        let (parameters, exp_avg, exp_avg_sq) = (next(), next(), next());
        Ok(Self {
            layout,
            step: u64::from_le_bytes(step),
            parameters,
            exp_avg,
            exp_avg_sq,
            beta_1_power: f64::from_le_bytes(first),
            beta_2_power: f64::from_le_bytes(second),
            solve,
            evaluations,
        })
    }

    /// BLAKE3 of [`State::to_bytes`].
    pub fn digest(&self) -> StateDigest {
        StateDigest(*blake3::hash(&self.to_bytes()).as_bytes())
    }
}

/// What follows the moments in a state's bytes: nothing, where the solver stands, evaluations, or both in this order.
/// Neither can be taken for the other: the first word of the solver's part is 0 or 1.
fn after_moments(bytes: &[u8], layout: Layout) -> Option<(Option<SolveState>, Evaluations)> {
    if let Some(evaluations) = Evaluations::from_bytes(bytes, layout) {
        return Some((None, evaluations));
    }
    let solve = SolveState::from_bytes(bytes)?;
    let evaluations = Evaluations::from_bytes(bytes.get(SolveState::BYTES..)?, layout)?;
    Some((Some(solve), evaluations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_digest() {
        let mut state = State::initial(5, 7);
        state.step = 3;
        let back = State::from_bytes(&state.to_bytes()).unwrap();
        assert_eq!(back, state);
        assert_eq!(back.digest(), state.digest());
        assert!(matches!(State::from_bytes(&state.to_bytes()[..40]), Err(StateError::WrongSize { .. })));
        assert!(matches!(State::from_bytes(&[1, 2]), Err(StateError::TooShort { .. })));
        let mut absurd = state.to_bytes();
        absurd[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(State::from_bytes(&absurd).is_err());
    }

    #[test]
    fn evaluations_travel_with_and_without_a_solver() {
        let flags = [("solver", "alternate"), ("solve_every", "1")];
        let recipe = numalign_config::Config::with(&flags).unwrap().recipe;
        for state in [State::initial(5, 7), State::initial(5, 7).prepared(&recipe)] {
            let bare = state.digest();
            let mut sums = vec![0.0; state.layout().row_len()];
            (sums[0], sums[1]) = (0.5, 0.25);
            let evaluated = state.evaluated(&recipe, &sums, 10).unwrap();
            assert!(evaluated.position().evaluated && !state.position().evaluated);
            assert_ne!(evaluated.digest(), bare);
            let back = State::from_bytes(&evaluated.to_bytes()).unwrap();
            assert_eq!(back, evaluated);
            assert_eq!(back.at_best().unwrap().parameters(), state.parameters());
            let bytes = evaluated.to_bytes();
            assert!(State::from_bytes(&bytes[..bytes.len() - 4]).is_err());
            sums[1] = f32::NAN;
            assert!(matches!(state.evaluated(&recipe, &sums, 10), Err(StateError::NotMeasurable { step: 0 })));
        }
        assert_eq!(State::initial(5, 7).at_best(), None);
    }

    #[test]
    fn wide_inputs_and_layer_norms_travel_too() {
        let mut state = State::initial(Layout::new(4).with_input_width(3), 7);
        state.set_layer_norms(&[1.5, 0.25]);
        assert_eq!(state.layer_norms(), [1.5, 0.25]);
        assert_eq!(state.parameters().len(), 12 + 4 + 4 + 1 + 2);
        let back = State::from_bytes(&state.to_bytes()).unwrap();
        assert_eq!(back, state);
        assert_eq!(back.layout().input_width(), 3);
    }
}
