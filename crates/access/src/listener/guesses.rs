//! Wrong tokens on one connection: after a few of them each further call waits, one after the other. How many connections
//! may wait is bounded by the table of unauthenticated ones.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

/// Wrong tokens without a delay.
const FREE: u32 = 3;

/// The first delay; each one is twice as long as the one before …
const SHORTEST: Duration = Duration::from_millis(50);
/// … up to this.
const LONGEST: Duration = Duration::from_secs(1);

/// How often a wrong token came on a connection.
#[derive(Debug, Default)]
pub struct Guesses {
    wrong: AtomicU32,
    turn: Mutex<()>,
}

impl Guesses {
    /// One more was wrong.
    pub fn count(&self) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the next call has to wait.
    pub fn are_slowed(&self) -> bool {
        !delay(self.wrong.load(Ordering::Relaxed)).is_zero()
    }

    /// Waits as long as the next call has to; calls that come at the same time wait in turn.
    pub async fn wait(&self) {
        let _turn = self.turn.lock().await;
        tokio::time::sleep(delay(self.wrong.load(Ordering::Relaxed))).await;
    }
}

/// The delay after so many wrong tokens.
fn delay(wrong: u32) -> Duration {
    match wrong.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(more) => SHORTEST.saturating_mul(2u32.saturating_pow(more)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_a_second() {
        let delays: Vec<u128> = (0..10).map(|wrong| delay(wrong).as_millis()).collect();
        assert_eq!(delays, [0, 0, 0, 50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(delay(u32::MAX), LONGEST);
    }
}
