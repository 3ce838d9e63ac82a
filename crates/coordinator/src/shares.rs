//! How many micro-batches each rank gets: more for the faster ones, in whole micro-batches. Pure; called by the machine
//! when a generation begins, and now and then to see whether another split would be worth a new generation.
//!
//! The split changes no byte of the result, since rows are added in micro-batch order whoever computed them.

use std::ops::Range;
use std::time::Duration;

use numalign_data::assign_weighted;

/// A new split has to promise steps this much shorter.
const WORTH: f64 = 0.85;

/// Weight of the newest step in a pace; about the last ten steps count.
const NEWEST: f64 = 0.1;

/// A member's time per micro-batch: an exponential mean over its steps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pace {
    seconds: Option<f64>,
}

impl Pace {
    /// Takes in one step: `compute` for `micro_batches` of them.
    pub fn observe(&mut self, compute: Duration, micro_batches: usize) {
        if micro_batches == 0 || compute.is_zero() {
            return;
        }
        let newest = compute.as_secs_f64() / micro_batches as f64;
        self.seconds = Some(self.seconds.map_or(newest, |known| known + NEWEST * (newest - known)));
    }

    /// Seconds per micro-batch, once one was observed.
    pub fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// Micro-batches per second; not a number while unknown, which [`assign_weighted`] takes for the mean of the others.
    fn speed(&self) -> f64 {
        self.seconds.map_or(f64::NAN, |seconds| 1.0 / seconds)
    }
}

/// The split among ranks of these paces.
pub fn split(micro_batches: usize, paces: &[Pace]) -> Vec<Range<usize>> {
    let speeds: Vec<f64> = paces.iter().map(Pace::speed).collect();
    assign_weighted(micro_batches, &speeds)
}

/// Whether another split than `parts` would make steps enough shorter to be worth a new generation.
pub fn worth_another_split(parts: &[Range<usize>], paces: &[Pace]) -> bool {
    let micro_batches = parts.iter().map(ExactSizeIterator::len).sum();
    match (step_time(parts, paces), step_time(&split(micro_batches, paces), paces)) {
        (Some(present), Some(possible)) => possible < WORTH * present,
        _ => false,
    }
}

/// Seconds of the slowest rank; none while some rank's pace is unknown.
fn step_time(parts: &[Range<usize>], paces: &[Pace]) -> Option<f64> {
    let mut slowest = 0.0f64;
    for (part, pace) in parts.iter().zip(paces) {
        slowest = slowest.max(part.len() as f64 * pace.seconds()?);
    }
    Some(slowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(milliseconds: u64) -> Pace {
        let mut pace = Pace::default();
        pace.observe(Duration::from_millis(2 * milliseconds), 2);
        pace
    }

    fn sizes(parts: &[Range<usize>]) -> Vec<usize> {
        parts.iter().map(ExactSizeIterator::len).collect()
    }

    #[test]
    fn unknown_paces_split_evenly_and_a_slow_rank_gets_less() {
        assert_eq!(sizes(&split(8, &[Pace::default(); 3])), [3, 3, 2]);
        assert_eq!(sizes(&split(8, &[pace(10), pace(30)])), [6, 2]);
        assert_eq!(sizes(&split(8, &[pace(10), Pace::default()])), [4, 4]);
    }

    #[test]
    fn a_pace_follows_slowly() {
        let mut known = pace(10);
        known.observe(Duration::from_millis(110), 1);
        assert!((known.seconds().unwrap() - 0.02).abs() < 1e-12);
        known.observe(Duration::ZERO, 3);
        known.observe(Duration::from_secs(1), 0);
        assert!((known.seconds().unwrap() - 0.02).abs() < 1e-12, "nothing was measured");
    }

    #[test]
    fn only_a_clear_gain_is_worth_a_generation() {
        let even = [0..4, 4..8];
        assert!(worth_another_split(&even, &[pace(10), pace(30)]));
        assert!(!worth_another_split(&even, &[pace(10), pace(11)]));
        assert!(!worth_another_split(&even, &[pace(10), Pace::default()]), "nothing is known of the other");
        // Two micro-batches for two ranks: there is no other split, however slow one of them is.
        assert!(!worth_another_split(&[0..1, 1..2], &[pace(10), pace(1000)]));
    }
}
