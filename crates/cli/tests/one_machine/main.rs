//! One machine's trouble is its own: whatever a worker sends, cannot do or brings along, the result has the bytes of an
//! undisturbed run. Real processes.

#[path = "../common/mod.rs"]
mod common;

mod dismissal;
mod messages;
mod python;
mod returning;
mod rollback;

use std::time::Duration;

use common::run::{arguments, bytes, kill, listening_address, succeed, undisturbed, wait_for};
use common::{Child, Folder, check, words};
use rustix::process::Signal;

/// 600 short steps in five micro-batches.
const SETTINGS: &str =
    "--num-epochs 12 --num-batches 50 --checkpoint-every 50 --batch-size 20 --micro-batch-size 4 --lr 0.01";

/// The result of the same recipe undisturbed.
fn reference() -> &'static [u8] {
    undisturbed(SETTINGS)
}

/// A coordinator in a folder, and where workers find it.
struct Cluster {
    folder: Folder,
    coordinator: Child,
    url: String,
}

impl Cluster {
    fn start(more: &str) -> Self {
        let folder = Folder::new();
        let mut arguments = vec!["coordinator", "nn", "--listen", "127.0.0.1:0", "--run-id", "run"];
        arguments.extend(SETTINGS.split_whitespace().chain(more.split_whitespace()));
        let mut coordinator = folder.spawn(&arguments);
        let url = format!("http://{}", listening_address(&mut coordinator));
        Self { folder, coordinator, url }
    }

    /// A worker with faults, which may be none.
    fn worker(&self, faults: &str, more: &[&str]) -> Child {
        let mut arguments = vec!["worker", "--coordinator", &self.url];
        arguments.extend(more);
        self.folder.spawn_env(&arguments, &[("NUMALIGN_INTERNAL_FAULTS", faults)])
    }

    /// The run ends well, with the right bytes.
    fn finish(mut self) -> String {
        let output = self.coordinator.wait();
        assert!(output.status.success(), "{output}");
        assert!(bytes(&self.folder, "run") == reference(), "{output}");
        output.stderr
    }
}
