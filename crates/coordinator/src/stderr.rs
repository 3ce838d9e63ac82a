//! Lines for the user on stderr. The processes of a run share it, so a line is one write.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether [`note`] says nothing from here on, in the whole process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether only errors are said.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A line about the course of things, unless this process is quiet.
pub fn note(line: &str) {
    if !is_quiet() {
        write_line(line);
    }
}

/// A line in any case.
pub fn write_line(line: &str) {
    write_bytes(format!("{line}\n").as_bytes());
}

/// Bytes as they are, in one write where the system takes them so. A full disk or a closed pipe costs the line, never the
/// run.
pub fn write_bytes(bytes: &[u8]) {
    let _ = std::io::stderr().write_all(bytes);
}
