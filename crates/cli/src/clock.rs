//! A clock that stands before 1970: libraries for HTTP and TLS cannot express such a time, and answer with a panic.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::CliError;

/// Called before a command serves or joins a run.
///
/// # Errors
/// The clock stands before 1970.
pub fn check() -> Result<(), CliError> {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(_) => Ok(()),
        Err(_) => Err(before_1970()),
    }
}

/// Whether the message of a panic in a library says that the clock stands before 1970: it was set back during the run.
pub fn is_to_blame(panic: &str) -> bool {
    panic.contains("SystemTimeError(")
}

/// What is told of such a clock.
pub fn before_1970() -> CliError {
    CliError::new("this machine's clock stands before 1970, which HTTP and TLS cannot express")
        .with_hint("set the clock (timedatectl, or date -s), then start it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_told_from_other_panics() {
        let error = UNIX_EPOCH.duration_since(SystemTime::now()).expect_err("now is later");
        // As `httpdate` and `rustls` say it.
        assert!(is_to_blame(&format!("all times should be after the epoch: {error:?}")));
        assert!(is_to_blame(&format!("called `Result::unwrap()` on an `Err` value: {error:?}")));
        assert!(!is_to_blame("index out of bounds"));
    }
}
