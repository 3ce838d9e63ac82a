//! Limits of the system: on open files, since a coordinator has a socket per worker, and on threads.

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

/// What to do where no more threads may start.
pub const THREADS_HINT: &str =
    "raise the limit on processes (ulimit -u, or pids.max of the cgroup), or use fewer workers";

/// Why the system refuses a thread, if that is what the message of a panic in a library says.
pub fn refused_thread(panic: &str) -> Option<&str> {
    let beginnings = ["OS can't spawn worker thread: ", "failed to spawn thread: "];
    if let Some(why) = beginnings.iter().find_map(|beginning| panic.strip_prefix(beginning)) {
        return Some(why);
    }
    let pool = panic.starts_with("The global thread pool has not been initialized") && panic.contains("IOError");
    pool.then(|| panic.split_once("ThreadPoolBuildError").map_or(panic, |(_, why)| why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_thread_is_told_from_other_panics() {
        let tokio = "OS can't spawn worker thread: Resource temporarily unavailable (os error 11)";
        assert_eq!(refused_thread(tokio), Some("Resource temporarily unavailable (os error 11)"));
        let rayon =
            "The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(Os { code: 11 }) }";
        assert!(refused_thread(rayon).is_some_and(|why| why.contains("code: 11")));
        assert_eq!(refused_thread("index out of bounds"), None);
    }
}
