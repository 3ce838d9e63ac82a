//! How long the coordinator has answered nothing, and when that is too long. Decides only.

use std::time::{Duration, Instant};

/// A coordinator that does not answer for this long is killed and started again.
const LIMIT: Duration = Duration::from_secs(30);

/// Before its first answer a coordinator reads its data file and its checkpoint: it gets this many times as long.
const FIRST_ANSWER: u32 = 10;

/// One look counts for no more: when the launcher itself was stopped, the coordinator mostly was too.
const MOST_PER_LOOK: Duration = Duration::from_secs(2);

/// Milliseconds instead of [`LIMIT`], for tests that would wait for it.
const LIMIT_VARIABLE: &str = "NUMALIGN_INTERNAL_COORDINATOR_SILENCE_MS";

/// What is known of the present coordinator's answers.
#[derive(Debug)]
pub struct Silence {
    limit: Duration,
    has_answered: bool,
    lasted: Duration,
    looked: Instant,
}

impl Silence {
    /// A coordinator starts.
    pub fn new(now: Instant) -> Self {
        let limit = std::env::var(LIMIT_VARIABLE).ok().and_then(|text| text.parse().ok());
        Self::with_limit(now, limit.map_or(LIMIT, Duration::from_millis))
    }

    fn with_limit(now: Instant, limit: Duration) -> Self {
        Self { limit, has_answered: false, lasted: Duration::ZERO, looked: now }
    }

    /// Another coordinator starts.
    pub fn restarted(&mut self, now: Instant) {
        *self = Self::with_limit(now, self.limit);
    }

    /// It answered.
    pub fn answered(&mut self, now: Instant) {
        (self.has_answered, self.lasted, self.looked) = (true, Duration::ZERO, now);
    }

    /// It was asked and did not answer; the time that this look adds.
    pub fn unanswered(&mut self, now: Instant) -> Duration {
        let more = now.saturating_duration_since(self.looked).min(MOST_PER_LOOK);
        (self.lasted, self.looked) = (self.lasted + more, now);
        more
    }

    /// How long it has not answered, once that is too long.
    pub fn too_long(&self) -> Option<Duration> {
        let limit = if self.has_answered { self.limit } else { self.limit * FIRST_ANSWER };
        (self.lasted > limit).then_some(self.lasted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every second, `count` times, without an answer.
    fn look(silence: &mut Silence, now: &mut Instant, count: u32) {
        for _ in 0..count {
            *now += Duration::from_secs(1);
            silence.unanswered(*now);
        }
    }

    #[test]
    fn half_a_minute_without_an_answer_is_too_long() {
        let mut now = Instant::now();
        let mut silence = Silence::with_limit(now, LIMIT);
        silence.answered(now);
        look(&mut silence, &mut now, 30);
        assert_eq!(silence.too_long(), None);
        look(&mut silence, &mut now, 1);
        assert_eq!(silence.too_long(), Some(Duration::from_secs(31)));
        silence.answered(now);
        assert_eq!(silence.too_long(), None);
    }

    #[test]
    fn a_coordinator_that_starts_gets_ten_times_as_long() {
        let mut now = Instant::now();
        let mut silence = Silence::with_limit(now, LIMIT);
        look(&mut silence, &mut now, 300);
        assert_eq!(silence.too_long(), None);
        look(&mut silence, &mut now, 1);
        assert!(silence.too_long().is_some());
        silence.restarted(now);
        assert_eq!(silence.too_long(), None);
    }

    #[test]
    fn the_time_in_which_the_launcher_was_stopped_does_not_count() {
        let mut now = Instant::now();
        let mut silence = Silence::with_limit(now, LIMIT);
        silence.answered(now);
        now += Duration::from_secs(3600);
        assert_eq!(silence.unanswered(now), MOST_PER_LOOK);
        assert_eq!(silence.too_long(), None);
    }
}
