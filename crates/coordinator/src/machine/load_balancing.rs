//! How many micro-batches each rank gets: more for the faster ones, in whole micro-batches. Pure.
//!
//! The split changes no byte of the result: rows are added in micro-batch order, no matter which rank computed them.

use std::ops::Range;
use std::time::Duration;

use numalign_data::assign_weighted;

/// A new split is worth a new generation if it promises steps shorter by this factor.
const REBALANCE_THRESHOLD: f64 = 0.85;

/// Weight of the newest step; about the last ten steps count.
const EMA_WEIGHT: f64 = 0.1;

/// A member's time per micro-batch: an exponential mean over its steps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTimeEma {
    seconds: Option<f64>,
}

impl StepTimeEma {
    /// Takes in one step: `compute` for `micro_batches` of them.
    pub fn observe(&mut self, compute: Duration, micro_batches: usize) {
        if micro_batches == 0 || compute.is_zero() {
            return;
        }
        let newest = compute.as_secs_f64() / micro_batches as f64;
        self.seconds = Some(self.seconds.map_or(newest, |known| known + EMA_WEIGHT * (newest - known)));
    }

    /// Seconds per micro-batch, once one was observed.
    pub fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// Micro-batches per second; NaN while unknown, which [`assign_weighted`] takes for the mean of the others.
    fn speed(&self) -> f64 {
        self.seconds.map_or(f64::NAN, |seconds| 1.0 / seconds)
    }
}

/// The split among ranks with these step times.
pub fn split(micro_batches: usize, step_times: &[StepTimeEma]) -> Vec<Range<usize>> {
    let speeds: Vec<f64> = step_times.iter().map(StepTimeEma::speed).collect();
    assign_weighted(micro_batches, &speeds)
}

/// Whether another split than `parts` would make steps enough shorter to be worth a new generation.
pub fn should_rebalance(parts: &[Range<usize>], step_times: &[StepTimeEma]) -> bool {
    let micro_batches = parts.iter().map(ExactSizeIterator::len).sum();
    match (slowest_rank_seconds(parts, step_times), slowest_rank_seconds(&split(micro_batches, step_times), step_times))
    {
        (Some(present), Some(possible)) => possible < REBALANCE_THRESHOLD * present,
        _ => false,
    }
}

/// Seconds per step of the slowest rank; `None` while some rank's step time is unknown.
fn slowest_rank_seconds(parts: &[Range<usize>], step_times: &[StepTimeEma]) -> Option<f64> {
    let mut slowest = 0.0f64;
    for (part, step_time) in parts.iter().zip(step_times) {
        slowest = slowest.max(part.len() as f64 * step_time.seconds()?);
    }
    Some(slowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step_time(milliseconds: u64) -> StepTimeEma {
        let mut step_time = StepTimeEma::default();
        step_time.observe(Duration::from_millis(2 * milliseconds), 2);
        step_time
    }

    fn sizes(parts: &[Range<usize>]) -> Vec<usize> {
        parts.iter().map(ExactSizeIterator::len).collect()
    }

    #[test]
    fn unknown_paces_split_evenly_and_a_slow_rank_gets_less() {
        assert_eq!(sizes(&split(8, &[StepTimeEma::default(); 3])), [3, 3, 2]);
        assert_eq!(sizes(&split(8, &[step_time(10), step_time(30)])), [6, 2]);
        assert_eq!(sizes(&split(8, &[step_time(10), StepTimeEma::default()])), [4, 4]);
    }

    #[test]
    fn a_pace_follows_slowly() {
        let mut known = step_time(10);
        known.observe(Duration::from_millis(110), 1);
        assert!((known.seconds().unwrap() - 0.02).abs() < 1e-12);
        known.observe(Duration::ZERO, 3);
        known.observe(Duration::from_secs(1), 0);
        assert!((known.seconds().unwrap() - 0.02).abs() < 1e-12, "nothing was bounded_duration");
    }

    #[test]
    fn only_a_clear_gain_is_worth_a_generation() {
        let even = [0..4, 4..8];
        assert!(should_rebalance(&even, &[step_time(10), step_time(30)]));
        assert!(!should_rebalance(&even, &[step_time(10), step_time(11)]));
        assert!(!should_rebalance(&even, &[step_time(10), StepTimeEma::default()]), "nothing is known of the other");
        // Two micro-batches for two ranks: there is no other split, however slow one of them is.
        assert!(!should_rebalance(&[0..1, 1..2], &[step_time(10), step_time(1000)]));
    }
}
