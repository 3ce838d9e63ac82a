//! Refusals in the log, few enough that a stranger cannot fill it. Used by the gate and the guard.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// In each stretch of this length …
const STRETCH: Duration = Duration::from_secs(10);
/// … so many lines are written; the others are counted.
const MOST: u32 = 10;

/// Writes a bounded number of warnings.
#[derive(Default)]
pub struct Complaints {
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Ledger {
    /// Whether to write a line at `now`, and how many were not written since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= STRETCH) {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told >= MOST {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

impl Complaints {
    /// Writes `what`, unless too much was written lately.
    pub fn tell(&self, what: &str) {
        let untold = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        match untold {
            None => {}
            Some(0) => tracing::warn!("{what}"),
            Some(untold) => tracing::warn!("{what} (and {untold} more refusals that were not shown)"),
        }
    }
}

/// A stranger's words as they may be shown: no control characters, no more than `most` characters.
pub fn clipped(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_shown() {
        let mut ledger = Ledger::default();
        let now = Instant::now();
        let shown = (0..1000).filter(|_| ledger.take(now).is_some()).count();
        assert_eq!(shown, 10);
        assert_eq!(ledger.take(now + STRETCH), Some(990));
        assert_eq!(ledger.take(now + STRETCH), Some(0));
    }

    #[test]
    fn a_strangers_words_cannot_steer_a_terminal() {
        assert_eq!(clipped("a\x1b[31mb\n", 100), "a\u{fffd}[31mb\u{fffd}");
        assert_eq!(clipped("äöü", 2), "äö");
    }
}
