//! Warnings about strangers, rate-limited so that a stranger cannot fill the log, and text of theirs made safe to show.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// In each stretch of this length …
const WINDOW: Duration = Duration::from_secs(10);
/// … so many lines are written; the others are counted.
const MAX_LINES: u32 = 10;

/// Writes a bounded number of warnings.
#[derive(Default)]
pub struct RateLimitedLog {
    budget: Mutex<Budget>,
}

#[derive(Default)]
struct Budget {
    since: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Budget {
    /// Whether to write a line at `now`, and how many were suppressed since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            (self.since, self.written) = (Some(now), 0);
        }
        if self.written >= MAX_LINES {
            self.suppressed += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl RateLimitedLog {
    /// Writes `what`, unless too much was written lately.
    pub fn warn(&self, what: &str) {
        let suppressed = self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        match suppressed {
            None => {}
            Some(0) => tracing::warn!("{what}"),
            Some(suppressed) => tracing::warn!("{what} (and {suppressed} more refusals that were not shown)"),
        }
    }
}

/// Text from a stranger that is safe to show: no characters that steer a terminal or the order of its text, at most
/// `max_chars` characters. Everything that another process says goes through here, once, where its message is decoded.
pub fn sanitize(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// Control characters (C0, DEL and C1), line and paragraph separators, and marks that change the direction of what
/// follows.
fn steers(c: char) -> bool {
    let is_direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_direction || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_instead_of_shown() {
        let mut budget = Budget::default();
        let now = Instant::now();
        let shown = (0..1000).filter(|_| budget.take(now).is_some()).count();
        assert_eq!(shown, 10);
        assert_eq!(budget.take(now + WINDOW), Some(990));
        assert_eq!(budget.take(now + WINDOW), Some(0));
    }

    #[test]
    fn a_strangers_words_cannot_steer_a_terminal() {
        assert_eq!(sanitize("a\x1b[31mb\n", 100), "a\u{fffd}[31mb\u{fffd}");
        assert_eq!(sanitize("äöü", 2), "äö");
        let mut steering: Vec<char> = ('\0'..' ').chain('\u{7f}'..='\u{9f}').collect();
        steering.extend(('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}'));
        for c in steering {
            assert_eq!(sanitize(&format!("a{c}b"), 9), "a\u{fffd}b", "{c:?}");
        }
    }
}
