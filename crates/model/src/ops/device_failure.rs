//! Failures on the GPU's own thread. cubecl runs every operation as a task of a thread per device, catches the panic of a
//! task that fails (a refused allocation, say) and goes on: the operations after it then compute on memory that nobody
//! has written, and the last one hands out a result without an error. So the first failure of a process is kept here,
//! and no result is used after it.

use std::sync::{Once, OnceLock};

use crate::error::ModelError;

/// What failed first, shortened.
static FIRST: OnceLock<String> = OnceLock::new();

/// How cubecl names a device's threads, before the kind and number of the device: `DSD-0-1`
/// (cubecl-common 0.10, device/handle/channel.rs).
const THREADS: [&str; 2] = ["DSU", "DSD"];

/// Of a failure's text so much is told.
const MOST_LINES: usize = 4;
const MOST_CHARACTERS: usize = 600;

/// Lines of the backend's texts that say nothing.
const NOISE: [&str; 5] = [
    "Caused by:",
    "Backtrace",
    "No backtrace available",
    "An error happened during execution",
    "The server is in an invalid state",
];

/// Takes note of panics on device threads from now on; panics elsewhere go on to the hook that was there before.
pub fn watch() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !std::thread::current().name().is_some_and(owns_a_device) {
                before(panic);
                return;
            }
            let payload = panic.payload();
            let said = payload.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
            record(said);
        }));
    });
}

/// Keeps a failure, if it is the first.
pub fn record(reason: &str) {
    let _ = FIRST.set(shortened(reason));
}

/// # Errors
/// A task failed on a device thread of this process: nothing that was computed since can be trusted.
pub fn check() -> Result<(), ModelError> {
    match FIRST.get() {
        None => Ok(()),
        Some(reason) => Err(ModelError::DeviceTask { reason: reason.clone() }),
    }
}

fn owns_a_device(thread: &str) -> bool {
    let Some((head, device)) = thread.split_once('-') else {
        return false;
    };
    THREADS.contains(&head) && device.split('-').all(|part| part.parse::<u32>().is_ok())
}

/// What a failure's text says, on one line: without its backtraces, without what it repeats, and without the source of a kernel that
/// did not compile.
pub fn shortened(reason: &str) -> String {
    let mut told: Vec<&str> = Vec::new();
    for line in reason.lines().map(str::trim) {
        if line.starts_with("[Source]") || told.len() == MOST_LINES {
            break;
        }
        let line = line.trim_start_matches("called `Result::unwrap()` on an `Err` value: ");
        if !line.is_empty()
            && !NOISE.iter().any(|noise| line.starts_with(noise))
            && !is_frame(line)
            && !told.contains(&line)
        {
            told.push(line);
        }
    }
    let text = told.join("; ");
    let short: String = text.chars().take(MOST_CHARACTERS).collect();
    if short.len() < text.len() { short + " …" } else { short }
}

/// A line of a backtrace: `12: function` or `at file:line`.
fn is_frame(line: &str) -> bool {
    let number = line.split(':').next().unwrap_or_default();
    line.starts_with("at ") || (number.len() < line.len() && number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_threads_are_known_by_their_name() {
        for name in ["DSD-0-0", "DSU-0-11"] {
            assert!(owns_a_device(name), "{name}");
        }
        for name in ["main", "device", "DSD", "tokio-runtime-worker", "DSD-a-b", "rayon-0"] {
            assert!(!owns_a_device(name), "{name}");
        }
    }

    #[test]
    fn the_cause_is_told_without_source_backtrace_and_repetition() {
        let source = "[Compilation Error]\n    kernel(3): error: x is undefined\n[Source]\n".to_owned()
            + &"line\n".repeat(9_000);
        let unhealthy = format!(
            "An error happened during execution\nCaused by:\n  The server is in an invalid state\nCaused by:\n  \
             [Launch(A compilation error happened during launch\nCaused by:\n {source}"
        );
        assert_eq!(
            shortened(&unhealthy),
            "[Launch(A compilation error happened during launch; [Compilation Error]; kernel(3): error: x is undefined"
        );
        let traced = "DriverError(CUDA_ERROR_LAUNCH_FAILED)\nBacktrace\n   0: cubecl::launch\n             at /a/b.rs:12:3\n\
                      DriverError(CUDA_ERROR_LAUNCH_FAILED)";
        assert_eq!(shortened(traced), "DriverError(CUDA_ERROR_LAUNCH_FAILED)");
        let refused =
            "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 8\nNo backtrace available";
        assert_eq!(shortened(refused), "can't allocate buffer of size: 8");
        assert!(shortened(&"ä".repeat(5_000)).chars().count() <= MOST_CHARACTERS + 2);
    }
}
