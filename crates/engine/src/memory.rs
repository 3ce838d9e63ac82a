//! Memory of this process: its peak as the operating system counts it, and how the allocator treats freed memory.

/// Peak resident memory in MiB; 0 where `/proc` does not tell.
pub fn peak_rss_mib() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return 0;
    };
    for line in status.lines() {
        if let Some(rest) = line.strip_prefix("VmHWM:") {
            let kib: u64 = rest.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
            return kib / 1024;
        }
    }
    0
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
