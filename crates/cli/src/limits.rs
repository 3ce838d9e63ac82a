//! The limit on open files: a coordinator has a socket per worker.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::CliError;

/// Files that are open besides one socket per worker.
const SPARE: u64 = 64;

/// Raises this process's limit on open files as far as it may go; children inherit it. `sockets` is how many are
/// wanted at least.
///
/// # Errors
/// The hard limit is below what is wanted.
pub fn open_files(sockets: u64) -> Result<(), CliError> {
    let limit = getrlimit(Resource::Nofile);
    // Without a hard limit the kernel's own bound holds, which no request may name: the soft one stays where it is enough.
    if let Some(hard) = limit.maximum
        && limit.current.is_some_and(|soft| soft < hard)
    {
        setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) })
            .map_err(std::io::Error::from)?;
    }
    let wanted = sockets.saturating_add(SPARE);
    match getrlimit(Resource::Nofile).current {
        Some(open) if open < wanted => {
            Err(CliError::new(format!("{wanted} files have to be open at once, and only {open} may be"))
                .with_hint("raise the limit (ulimit -Hn), or use fewer workers"))
        }
        _ => Ok(()),
    }
}
