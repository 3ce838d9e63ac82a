//! Whether and when a process that ended is started again. Decides only.

use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Before a worker's restart that is not counted.
const WITHOUT_COORDINATOR: Duration = Duration::from_secs(1);

/// Restarts of one process.
#[derive(Debug, Default)]
pub struct Restarts {
    /// Since the run last made progress.
    pub count: u32,
    pub in_all: u32,
    /// Committed step at the last one.
    last_step: u64,
}

impl Restarts {
    /// Counts one more, given the committed step where it is known; false when more than `most` would bring no progress.
    pub fn allow(&mut self, step: Option<u64>, most: u32) -> bool {
        if step.is_some_and(|step| step > self.last_step) {
            self.count = 0;
        }
        self.last_step = step.unwrap_or(self.last_step);
        if self.count >= most {
            return false;
        }
        self.count += 1;
        self.in_all += 1;
        true
    }

    /// Time before the restart that was allowed last: twice as long after each one without progress.
    pub fn pause(&self) -> Duration {
        (FIRST_PAUSE * 2u32.saturating_pow(self.count.saturating_sub(1))).min(LONGEST_PAUSE)
    }
}

/// What follows the end of a worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterExit {
    Restart(Duration),
    /// The coordinator told it not to come back.
    Evicted,
    /// Restarts brought no progress.
    GiveUp,
}

/// Decides about a worker that failed at the committed step `step`, with at most `most` restarts without progress. A worker
/// that ended while no coordinator answered is not to blame for it.
pub fn after_exit(
    restarts: &mut Restarts,
    coordinator_answers: bool,
    evicted: bool,
    step: Option<u64>,
    most: u32,
) -> AfterExit {
    if evicted {
        return AfterExit::Evicted;
    }
    if !coordinator_answers {
        return AfterExit::Restart(WITHOUT_COORDINATOR);
    }
    match restarts.allow(step, most) {
        true => AfterExit::Restart(restarts.pause()),
        false => AfterExit::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_without_progress_are_bounded() {
        let mut restarts = Restarts::default();
        assert!(restarts.allow(Some(5), 2) && restarts.allow(Some(5), 2));
        assert!(!restarts.allow(Some(5), 2), "no step was committed in between");
        assert!(!restarts.allow(None, 2), "an unknown step is no progress");
        assert!(restarts.allow(Some(6), 2), "a committed step starts the count anew");
        assert_eq!((restarts.count, restarts.in_all), (1, 3));
        assert!(!Restarts::default().allow(None, 0));
    }

    #[test]
    fn pauses_double_up_to_five_seconds() {
        let mut restarts = Restarts::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(restarts.allow(None, 100));
            pauses.push(restarts.pause().as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        restarts.count = u32::MAX;
        assert_eq!(restarts.pause(), LONGEST_PAUSE);
    }

    #[test]
    fn an_evicted_worker_stays_away_and_a_failing_one_is_given_up() {
        let mut restarts = Restarts::default();
        assert_eq!(after_exit(&mut restarts, true, true, Some(1), 1), AfterExit::Evicted);
        assert_eq!(restarts.in_all, 0, "an eviction is no restart");
        for _ in 0..3 {
            let restart = AfterExit::Restart(WITHOUT_COORDINATOR);
            assert_eq!(after_exit(&mut restarts, false, false, Some(1), 1), restart, "it is not counted");
        }
        assert_eq!(after_exit(&mut restarts, true, false, Some(1), 1), AfterExit::Restart(FIRST_PAUSE));
        assert_eq!(after_exit(&mut restarts, true, false, Some(1), 1), AfterExit::GiveUp);
    }
}
