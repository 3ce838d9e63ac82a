//! What a process that this program started knows of its parent, and does when it ends.

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::signals::Interrupt;
use super::spawn::RESTARTS_VARIABLE;
use crate::error::CliError;
use crate::process::PARENT_VARIABLE;

/// The parent's process id, when this program started this process.
fn parent() -> Option<i32> {
    std::env::var(PARENT_VARIABLE).ok()?.parse().ok()
}

/// Whether this program started this process.
pub fn is_launched() -> bool {
    parent().is_some()
}

/// How often `launch` has started a worker in this one's place before.
pub fn restarts() -> u32 {
    std::env::var(RESTARTS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A launched coordinator or worker leaves the terminal's SIGINT to `launch`, which ends its children itself.
pub fn interrupt() -> Interrupt {
    if is_launched() { Interrupt::Ignore } else { Interrupt::Stop }
}

/// Asks the kernel to kill this process when its parent ends, whatever ends it.
pub fn die_with_parent() -> Result<(), CliError> {
    let Some(parent) = parent() else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from)?;
    // The parent may have ended before the line above.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Err(CliError::new("the launcher ended before this process began"));
    }
    Ok(())
}
