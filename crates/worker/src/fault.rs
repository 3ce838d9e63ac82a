//! Injected faults, for `launch --chaos` and the tests: a worker that computes wrong numbers, or slowly, or whose
//! device hangs. They come from one
//! environment variable that only the launcher sets.

use std::time::Duration;

use numalign_collective::DigestedRows;
use numalign_projector::{MicroBatchGradients, State, digest_of};

/// Where a worker finds its faults: `wrong=UNIT`, `update=UNIT`, `nan=UNIT`, `altered=UNIT`, `lie=UNIT`, `foreign=UNIT`,
/// `slow=MILLISECONDS` and `freeze=UNIT`, separated by commas.
pub const VARIABLE: &str = "NUMALIGN_INTERNAL_FAULTS";

/// The faults of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Faults {
    /// From this unit on, the lowest bit of every row's first number is flipped.
    wrong_from: Option<u64>,
    /// From this unit on, a bit of the state is flipped after each update.
    misupdates_from: Option<u64>,
    /// From this unit on, every row's first number is NaN.
    nan_from: Option<u64>,
    /// From this unit on, a bit of every row changes after its digest was made.
    altered_from: Option<u64>,
    /// From this unit on, the rows that are sent, and their digests, are not those that are reported.
    lies_from: Option<u64>,
    /// From this unit on, a row of the micro-batch that follows this rank's own is sent along.
    foreign_from: Option<u64>,
    /// Extra time for every micro-batch.
    slow: Duration,
    /// From this unit on the device thread stops for ever.
    freeze_from: Option<u64>,
}

impl Faults {
    /// What [`VARIABLE`] says; no faults if it is not set or says something else.
    pub fn from_env() -> Self {
        std::env::var(VARIABLE).map_or_else(|_| Self::default(), |text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut faults = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("wrong", unit)) => faults.wrong_from = unit.parse().ok(),
                Some(("update", unit)) => faults.misupdates_from = unit.parse().ok(),
                Some(("nan", unit)) => faults.nan_from = unit.parse().ok(),
                Some(("altered", unit)) => faults.altered_from = unit.parse().ok(),
                Some(("lie", unit)) => faults.lies_from = unit.parse().ok(),
                Some(("foreign", unit)) => faults.foreign_from = unit.parse().ok(),
                Some(("freeze", unit)) => faults.freeze_from = unit.parse().ok(),
                Some(("slow", milliseconds)) => {
                    faults.slow = Duration::from_millis(milliseconds.parse().unwrap_or(0));
                }
                _ => {}
            }
        }
        faults
    }

    /// The pause that computing this many micro-batches takes longer.
    pub fn delay(&self, micro_batches: usize) -> Duration {
        self.slow * micro_batches as u32
    }

    /// Whether the device hangs at `unit`.
    pub fn freezes(&self, unit: u64) -> bool {
        self.freeze_from.is_some_and(|from| unit >= from)
    }

    /// Changes every row of `unit`, once the faults say so: by a bit, or to NaN.
    pub fn corrupt(&self, unit: u64, rows: &mut MicroBatchGradients) {
        let due = |from: Option<u64>| from.is_some_and(|from| unit >= from);
        for value in rows.iter_mut().filter_map(|(_, row)| row.first_mut()) {
            if due(self.wrong_from) {
                *value = f32::from_bits(value.to_bits() ^ 1);
            }
            if due(self.nan_from) {
                *value = f32::NAN;
            }
        }
    }

    /// The state after `unit`, with a flipped bit once the faults say so.
    pub fn misupdated(&self, unit: u64, state: State) -> State {
        if self.misupdates_from.is_none_or(|from| unit < from) {
            return state;
        }
        let mut bytes = state.to_bytes();
        if let Some(byte) = bytes.get_mut(32) {
            *byte ^= 1;
        }
        State::from_bytes(&bytes).unwrap_or(state)
    }

    /// Changes every row of `unit` that is about to be sent by a bit, once the faults say so: its digest stays, or is made
    /// anew.
    pub fn alter(&self, unit: u64, rows: &mut DigestedRows) {
        let due = |from: Option<u64>| from.is_some_and(|from| unit >= from);
        for (_, row, digest) in rows {
            if (due(self.altered_from) || due(self.lies_from))
                && let Some(value) = row.first_mut()
            {
                *value = f32::from_bits(value.to_bits() ^ 1);
            }
            if due(self.lies_from) {
                *digest = digest_of(row);
            }
        }
    }

    /// Adds a row of another rank's micro-batch to a rank's own of `unit`, once the faults say so.
    pub fn add_foreign(&self, unit: u64, micro_batches: usize, rows: &mut DigestedRows) {
        if self.foreign_from.is_none_or(|from| unit < from) {
            return;
        }
        if let Some((last, row, digest)) = rows.last() {
            let foreign = ((last + 1) % micro_batches, row.clone(), *digest);
            rows.push(foreign);
        }
    }
}

/// Holds the calling thread for ever.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use numalign_collective::digested;

    use super::*;

    #[test]
    fn one_bit_is_flipped_from_the_unit_on() {
        let faults = Faults::parse("wrong=3,slow=20");
        assert_eq!(faults.delay(4), Duration::from_millis(80));
        let right = vec![(0, vec![1.5f32, 2.0]), (4, vec![])];
        let mut rows = right.clone();
        faults.corrupt(2, &mut rows);
        assert_eq!(rows, right);
        faults.corrupt(3, &mut rows);
        assert_eq!(rows[0].1[0].to_bits(), 1.5f32.to_bits() ^ 1);
        assert_eq!(rows[0].1[1], 2.0);
        let frozen = Faults::parse("freeze=7");
        assert!(frozen.freezes(7) && frozen.freezes(8) && !frozen.freezes(6) && !faults.freezes(0));
        assert_eq!(Faults::parse("anything"), Faults::default());
    }

    #[test]
    fn a_state_is_changed_from_the_unit_on() {
        let (faults, state) = (Faults::parse("update=3"), State::initial(2, 0));
        assert_eq!(faults.misupdated(2, state.clone()), state);
        assert_ne!(faults.misupdated(3, state.clone()).digest(), state.digest());
    }

    #[test]
    fn rows_turn_to_nan_and_foreign_ones_join_from_the_unit_on() {
        let faults = Faults::parse("nan=3,foreign=5");
        let right = vec![(3, vec![1.5f32, 2.0]), (4, vec![2.5])];
        let mut rows = right.clone();
        faults.corrupt(2, &mut rows);
        assert_eq!(rows, right);
        let mut sent = digested(rows.clone());
        faults.add_foreign(4, 5, &mut sent);
        assert_eq!(sent.len(), 2);
        faults.add_foreign(5, 5, &mut sent);
        assert_eq!(sent[2], (0, vec![2.5], digest_of(&[2.5])));
        faults.corrupt(3, &mut rows);
        assert!(rows.iter().all(|(_, row)| row[0].is_nan()));
    }

    #[test]
    fn rows_change_after_their_digest_or_with_it() {
        let right = digested(vec![(3, vec![1.5f32, 2.0])]);
        for (fault, digest_fits) in [("altered=3", false), ("lie=3", true)] {
            let mut rows = right.clone();
            Faults::parse(fault).alter(2, &mut rows);
            assert_eq!(rows, right, "{fault}");
            Faults::parse(fault).alter(3, &mut rows);
            let (_, row, digest) = &rows[0];
            assert_ne!(*row, right[0].1);
            assert_eq!(*digest == digest_of(row), digest_fits, "{fault}");
        }
    }
}
