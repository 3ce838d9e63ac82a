//! Results on standard output. What cannot be written is an error, except where the reader has seen enough, such as
//! `head`: that is no failure, and what follows goes nowhere.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::CliError;

static READER_GONE: AtomicBool = AtomicBool::new(false);

/// A line of the result.
macro_rules! outln {
    ($($text:tt)*) => { $crate::output::write(format!("{}\n", format_args!($($text)*)).as_bytes()) };
}
pub(crate) use outln;

/// Writes and flushes a piece of the result.
///
/// # Errors
/// Standard output does not take it, for another reason than a closed pipe.
pub fn write(bytes: &[u8]) -> Result<(), CliError> {
    if reader_gone() {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    checked(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Whether nobody reads standard output any more: what only prints may end.
pub fn reader_gone() -> bool {
    READER_GONE.load(Ordering::Relaxed)
}

/// The result of writing to standard output.
///
/// # Errors
/// As [`write`].
pub fn checked(written: std::io::Result<()>) -> Result<(), CliError> {
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            READER_GONE.store(true, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => Err(CliError::new(format!("cannot write the result to standard output: {error}"))
            .with_hint("free some space, or send it elsewhere")),
    }
}
