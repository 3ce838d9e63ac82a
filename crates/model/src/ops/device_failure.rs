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

/// A failed compilation tells the kernel's whole source: the first lines hold the reason.
const MOST_LINES: usize = 6;
const MOST_CHARACTERS: usize = 600;

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

/// The first lines of a failure's text.
pub fn shortened(reason: &str) -> String {
    let lines: Vec<&str> = reason.lines().filter(|line| !line.trim().is_empty()).take(MOST_LINES + 1).collect();
    let cut = lines.len() > MOST_LINES;
    let text = lines[..lines.len().min(MOST_LINES)].join("\n");
    let mut short: String = text.chars().take(MOST_CHARACTERS).collect();
    if cut || short.len() < text.len() {
        short.push_str(" …");
    }
    short
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
    fn a_kernels_source_is_cut_from_the_reason() {
        let source = "[Compilation Error]\n    kernel(3): error: x is undefined\n[Source]\n".to_owned()
            + &"line\n".repeat(9_000);
        let short = shortened(&source);
        assert!(short.starts_with("[Compilation Error]\n    kernel(3): error: x is undefined"), "{short}");
        assert!(short.ends_with(" …") && short.lines().count() <= MOST_LINES, "{short}");
        assert_eq!(shortened("out of memory"), "out of memory");
        assert!(shortened(&"ä".repeat(5_000)).chars().count() <= MOST_CHARACTERS + 2);
    }
}
