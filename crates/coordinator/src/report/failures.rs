//! What went wrong in a run and how long each recovery took: figures for `status`, the closing line and
//! `metrics.jsonl`. Pure, and bounded however long a run lasts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Failures that are remembered with their text; older ones are only counted.
pub const MAX_REMEMBERED: usize = 1000;

/// An unplanned end of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What happened.
    pub text: String,
    /// Committed updates when it was noticed.
    pub step: u64,
    /// When it was noticed.
    pub noticed: Instant,
    /// From the moment it was noticed until the next commit; `None` while the run has not recovered.
    pub recovery: Option<Duration>,
}

/// The newest failures, and figures of all.
#[derive(Debug, Clone, Default)]
pub struct FailureLog {
    newest: VecDeque<Failure>,
    total: u64,
    recoveries: u64,
    worst: Duration,
}

impl FailureLog {
    /// Something failed after `step` committed updates.
    pub fn record(&mut self, noticed: Instant, step: u64, text: String) {
        if self.newest.len() == MAX_REMEMBERED {
            self.newest.pop_front();
        }
        self.newest.push_back(Failure { text, step, noticed, recovery: None });
        self.total += 1;
    }

    /// A step was committed: every failure before it is over. Answers with those that were not until now.
    pub fn committed(&mut self, now: Instant) -> Vec<Failure> {
        let mut over = Vec::new();
        for failure in self.newest.iter_mut().rev() {
            if failure.recovery.is_some() {
                break;
            }
            let recovery = now.saturating_duration_since(failure.noticed);
            failure.recovery = Some(recovery);
            self.worst = self.worst.max(recovery);
            self.recoveries += 1;
            over.push(failure.clone());
        }
        over.reverse();
        over
    }

    /// The newest failures, oldest first.
    pub fn newest(&self) -> impl Iterator<Item = &Failure> {
        self.newest.iter()
    }

    /// All failures so far, remembered or not.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Failures that the run has recovered from.
    pub fn recoveries(&self) -> u64 {
        self.recoveries
    }

    /// Median recovery time of the failures that are remembered; zero if there is none.
    pub fn median(&self) -> Duration {
        let mut times: Vec<Duration> = self.newest.iter().filter_map(|failure| failure.recovery).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }

    /// Longest recovery of all; zero if there is none.
    pub fn worst(&self) -> Duration {
        self.worst
    }

    /// The closing line of a run that had failures.
    pub fn summary(&self) -> Option<String> {
        if self.total == 0 {
            return None;
        }
        let (failures, recoveries) = (counted(self.total, "failure", "failures"), self.recoveries);
        let recovered = counted(recoveries, "recovery", "recoveries");
        if recoveries == 0 {
            return Some(format!("{failures}, {recovered}"));
        }
        let (median, worst) = (self.median().as_secs_f64(), self.worst.as_secs_f64());
        Some(format!("{failures}, {recovered}: median {median:.2} s, worst {worst:.2} s"))
    }
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_commit_ends_every_failure_before_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut log = FailureLog::default();
        assert_eq!(log.summary(), None);
        assert!(log.committed(at(0)).is_empty());
        log.record(at(100), 3, "a left".to_owned());
        log.record(at(200), 3, "b left".to_owned());
        assert_eq!(log.summary().as_deref(), Some("2 failures, 0 recoveries"));
        let over = log.committed(at(600));
        assert_eq!(over.iter().map(|failure| failure.text.as_str()).collect::<Vec<_>>(), ["a left", "b left"]);
        assert_eq!(over[0].recovery, Some(Duration::from_millis(500)));
        assert!(log.committed(at(700)).is_empty(), "each recovers once");
        log.record(at(800), 9, "c left".to_owned());
        log.committed(at(900));
        assert_eq!((log.median(), log.worst()), (Duration::from_millis(400), Duration::from_millis(500)));
        assert_eq!(log.summary().as_deref(), Some("3 failures, 3 recoveries: median 0.40 s, worst 0.50 s"));
    }

    #[test]
    fn memory_is_bounded_and_the_count_is_not() {
        let start = Instant::now();
        let mut log = FailureLog::default();
        for step in 0..2 * MAX_REMEMBERED as u64 {
            log.record(start, step, "again".to_owned());
            log.committed(start + Duration::from_millis(step));
        }
        assert_eq!(log.newest().count(), MAX_REMEMBERED);
        assert_eq!((log.total(), log.recoveries()), (2000, 2000));
        assert_eq!(log.newest().next().map(|failure| failure.step), Some(1000));
        assert_eq!(log.worst(), Duration::from_millis(1999));
    }
}
