//! What a machine does to a run from outside: logs and results that cannot be written, files that are not what they
//! should be, signals and limits. Real processes; a run ends in the bytes of an undisturbed one.

// Says what it skips.
#![allow(clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod clock;
mod files;
mod network;
mod output;
mod signals;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use common::Folder;
use common::run::{arguments, bytes, succeed};

/// A run that says much: an epoch has few steps.
const SETTINGS: &str = "--workers 2 --num-epochs 60 --num-batches 2 --checkpoint-every 10";

/// Arguments of the run that every test compares with.
fn launch() -> Vec<&'static str> {
    arguments("nn", SETTINGS, "")
}

/// The final bytes of the undisturbed run.
fn reference() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = Folder::new();
        succeed(&folder, "nn", SETTINGS, "");
        bytes(&folder, "nn")
    })
}

/// A file system of so many KiB at `path`, until dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    /// `None`, with the reason on stderr, where this process may not mount one.
    fn mount(path: &'a Path, kib: u64) -> Option<Self> {
        std::fs::create_dir_all(path).expect("a folder to mount on");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]).arg(path).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(path)),
            other => {
                eprintln!("skipped: a tmpfs cannot be mounted here, which needs root: {other:?}");
                None
            }
        }
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut size = 1 << 16;
        let mut file = std::fs::File::create(self.0.join("ballast")).expect("a file");
        while size > 0 {
            if std::io::Write::write_all(&mut file, &vec![0; size]).is_err() {
                size /= 2;
            }
        }
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}
