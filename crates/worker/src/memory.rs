//! Peak memory of this process, as the operating system counts it. Used by step reports and by `bench`.

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
