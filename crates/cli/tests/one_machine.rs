//! One machine's trouble is its own: workers that cannot load, come too early, or send rows that are no numbers or not
//! theirs are dismissed, and the result has the bytes of an undisturbed run. Real processes.

mod common;

use std::sync::OnceLock;
use std::time::Duration;

use common::run::{arguments, bytes, kill, listening_address, succeed, wait_for};
use common::{Child, Folder};
use rustix::process::Signal;

/// 600 short steps in five micro-batches.
const SETTINGS: &str =
    "--num-epochs 12 --num-batches 50 --checkpoint-every 50 --batch-size 20 --micro-batch-size 4 --lr 0.01";

/// The result of the same recipe undisturbed, computed once for all tests.
fn reference() -> &'static [u8] {
    static REFERENCE: OnceLock<Vec<u8>> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let folder = Folder::new();
        succeed(&folder, "nn", SETTINGS, "--run-id reference");
        bytes(&folder, "reference")
    })
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

#[test]
fn a_worker_that_cannot_load_is_dismissed_and_the_others_go_on() {
    let mut cluster = Cluster::start("--workers 2");
    let _workers = [cluster.worker("slow=3", &[]), cluster.worker("slow=3", &[])];
    cluster.coordinator.wait_for_stderr("with 2 ranks");
    let newcomer = cluster.worker("", &["--device", "cuda:7"]).wait();
    assert_eq!(newcomer.status.code(), Some(1), "{newcomer}");
    assert!(newcomer.stderr.contains("cuda"), "{newcomer}");
    let said = cluster.finish();
    assert!(said.contains("is dismissed") && said.contains("cuda"), "{said}");
}

#[test]
fn workers_of_which_none_can_load_end_the_run_with_their_reasons() {
    let mut cluster = Cluster::start("--workers 2");
    let workers = [cluster.worker("", &["--device", "cuda:7"]), cluster.worker("", &["--device", "cuda:8"])];
    for mut worker in workers {
        assert_eq!(worker.wait().status.code(), Some(1));
    }
    let output = cluster.coordinator.wait();
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("two workers cannot load the model"), "{output}");
    assert!(output.stderr.contains("cuda:7") && output.stderr.contains("cuda:8"), "{output}");
}

#[test]
fn a_replacement_that_comes_before_the_dead_worker_is_noticed_gets_its_place() {
    // Killed while the coordinator is stopped: the replacement's Hello is there before the end of the other's stream.
    let mut cluster = Cluster::start("--workers 2 --max-workers 2");
    let slow = "slow=3";
    let (_first, mut second) = (cluster.worker(slow, &[]), cluster.worker(slow, &[]));
    cluster.coordinator.wait_for_stderr("with 2 ranks");
    let pid = cluster.coordinator.id() as i32;
    kill(pid, Signal::STOP);
    kill(second.id() as i32, Signal::KILL);
    second.wait();
    let replacement = cluster.worker(slow, &[]);
    std::thread::sleep(Duration::from_millis(500));
    kill(pid, Signal::CONT);
    wait_for("two ranks again", || cluster.coordinator.stderr().matches("with 2 ranks").count() >= 2);
    drop(cluster.finish());
    drop(replacement);
}

#[test]
fn a_full_run_lets_a_worker_wait_for_a_place() {
    // Stopped, a worker keeps its place until `dead_after`; nothing of its connection ends.
    let mut cluster = Cluster::start("--workers 2 --max-workers 2 --dead-after 2 --heartbeat 0.2");
    let slow = "slow=3";
    let (_first, second) = (cluster.worker(slow, &[]), cluster.worker(slow, &[]));
    cluster.coordinator.wait_for_stderr("with 2 ranks");
    kill(second.id() as i32, Signal::STOP);
    let mut replacement = cluster.worker(slow, &[]);
    replacement.wait_for_stderr("waiting for a place in the run: max_workers is 2");
    wait_for("two ranks again", || cluster.coordinator.stderr().matches("with 2 ranks").count() >= 2);
    let said = cluster.finish();
    assert!(said.contains("is turned away") && said.contains("declared dead"), "{said}");
    assert_eq!(replacement.wait().status.code(), Some(0), "it worked to the end");
}

#[test]
fn a_machine_whose_rows_are_no_numbers_is_excluded() {
    let cluster = Cluster::start("--workers 3");
    let _workers = [cluster.worker("", &[]), cluster.worker("nan=50", &[]), cluster.worker("", &[])];
    let said = cluster.finish();
    assert!(said.contains("of step 50 that is not finite; another rank computes it again"), "{said}");
    assert!(said.contains("was not finite, another rank's is"), "{said}");
    assert!(said.contains("(samples 1"), "{said}");
}

#[test]
fn rows_that_nobody_can_compute_end_the_run_as_diverged() {
    let mut cluster = Cluster::start("--workers 2");
    let _workers = [cluster.worker("nan=50", &[]), cluster.worker("nan=50", &[])];
    let output = cluster.coordinator.wait();
    assert_eq!(output.status.code(), Some(1), "{output}");
    for word in ["the training diverged", "micro-batch", "samples", "of step 50", "and again by worker", "lower lr"] {
        assert!(output.stderr.contains(word), "{word}: {output}");
    }
}

#[test]
fn a_rank_that_sends_rows_of_others_is_dismissed_and_no_honest_one() {
    let cluster = Cluster::start("--workers 3");
    let _honest = [cluster.worker("", &[]), cluster.worker("", &[])];
    let mut rogue = cluster.worker("foreign=50", &[]);
    let said = cluster.finish();
    assert!(said.contains("it sent a row of micro-batch"), "{said}");
    assert_eq!(said.matches("is dismissed").count(), 1, "{said}");
    let output = rogue.wait();
    assert_eq!(output.status.code(), Some(1), "{output}");
}

#[test]
fn a_launch_goes_on_without_the_worker_whose_rows_are_no_numbers() {
    let folder = Folder::new();
    let chaos = "--run-id odd --workers 3 --chaos nan=50";
    let output = folder.run(&arguments("nn", SETTINGS, chaos));
    assert!(output.status.success(), "{output}");
    assert!(output.stderr.contains("told not to come back"), "{output}");
    assert!(bytes(&folder, "odd") == reference(), "{output}");
}
