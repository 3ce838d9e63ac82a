//! Memory of a process as the operating system counts it, and how the allocator treats freed memory.

use std::time::{Duration, Instant};

/// Peak resident memory of this process in MiB; 0 if `/proc` does not tell.
pub fn peak_rss_mib() -> u64 {
    status_kib("self", "VmHWM").map_or(0, |kib| kib / 1024)
}

/// How long a figure of [`PeakMemory`] is taken for the present one.
const RECENT: Duration = Duration::from_secs(1);

/// Peak resident memory of this process, looked up once a second at most: the kernel takes longer to tell than a small
/// step takes.
#[derive(Debug, Default)]
pub struct PeakMemory(Option<(Instant, u64)>);

impl PeakMemory {
    /// In MiB, as [`peak_rss_mib`].
    pub fn mib(&mut self) -> u64 {
        match self.0 {
            Some((since, mib)) if since.elapsed() < RECENT => mib,
            _ => self.0.insert((Instant::now(), peak_rss_mib())).1,
        }
    }
}

/// A line of `/proc/<process>/status` in KiB, such as `VmRSS`; `process` is a process id or `self`.
pub fn status_kib(process: &str, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let figure = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    figure.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Tells glibc's allocator to keep freed memory: a step frees and takes the same few hundred MB of activations again,
/// and giving them back in between costs a page fault per 4 KiB. Called once the model is loaded.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_of_a_process_is_found_by_its_whole_name() {
        let own = std::process::id().to_string();
        assert!(status_kib(&own, "VmHWM").is_some_and(|kib| kib > 0));
        assert_eq!(status_kib(&own, "Vm"), None);
        assert!(peak_rss_mib() > 0);
    }
}
