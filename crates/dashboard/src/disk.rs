//! How full the disk is on which a run's folder lies.

use std::path::Path;

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Free for this user.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Of the file system that holds `folder`; none where it does not say.
pub fn space(folder: &Path) -> Option<DiskSpace> {
    let figures = rustix::fs::statvfs(folder).ok()?;
    Some(DiskSpace {
        free: figures.f_bavail.saturating_mul(figures.f_frsize),
        total: figures.f_blocks.saturating_mul(figures.f_frsize),
    })
}
