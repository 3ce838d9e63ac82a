//! A worker in another language, written from the proto alone: first an honest one, then one that does every wrong thing it
//! can think of. Needs a Python with grpcio (`NUMALIGN_TEST_PYTHON`, else `python3`); skipped in words without.

use std::path::Path;
use std::process::Command;

use super::*;

/// Runs the Python worker; none if its packages are not installed.
fn python(cluster: &Cluster, what: &str, hidden: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let interpreter = std::env::var("NUMALIGN_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(interpreter)
        .arg(root.join("tools/verify/python_worker.py"))
        .arg("--proto")
        .arg(root.join("proto/numalign.proto"))
        .args(["--address", cluster.url.trim_start_matches("http://"), what, "--hidden", hidden])
        .output();
    let Ok(output) = output else {
        return skipped("there is no Python");
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(77) {
        return skipped(&stderr);
    }
    assert!(output.status.success(), "{stdout}\n{stderr}\n{}", cluster.coordinator.stderr());
    Some(stdout.into_owned())
}

/// Says why nothing was tested; the harness shows it with `--nocapture`.
#[allow(clippy::print_stdout, reason = "there is nobody else to tell")]
fn skipped(why: &str) -> Option<String> {
    println!("skipped: {why}");
    None
}

/// The most memory that a process has had, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).unwrap()
}

#[test]
fn a_worker_in_python_trains_to_the_end() {
    let mut cluster = Cluster::start("--workers 1");
    let Some(said) = python(&cluster, "work", "8") else { return };
    assert!(said.contains("done: all 600 steps are committed"), "{said}");
    let output = cluster.coordinator.wait();
    assert!(output.status.success(), "{output}");
    // Its model is its own invention, so nobody else can go through its samples.
    let inspected = cluster.folder.run(&["inspect", "chk/run.safetensors"]);
    assert!(inspected.status.success() && inspected.stdout.contains("600"), "{inspected}");
}

#[test]
fn a_worker_that_does_everything_wrong_ends_no_run_and_changes_no_byte() {
    // Other bits are admitted, so that the Python worker becomes a rank; nothing that it computes is committed.
    let mut cluster = Cluster::start("--workers 2 --deterministic false --dead-after 2 --heartbeat 0.2");
    let _honest = [cluster.worker("slow=50", &[]), cluster.worker("slow=50", &[])];
    cluster.coordinator.wait_for_stderr("with 2 ranks");
    let before = peak_memory(cluster.coordinator.id());
    let Some(said) = python(&cluster, "misbehave", "192") else { return };
    let count = said.lines().last().and_then(|line| line.split_whitespace().next()?.parse().ok());
    assert!(count.is_some_and(|count: u32| count >= 20), "{said}");
    let grown = peak_memory(cluster.coordinator.id()) - before;
    assert!(grown < 64 << 10, "it grew by {grown} KiB");
    let output = cluster.coordinator.wait_at_most(Duration::from_secs(400));
    assert!(output.status.success(), "{output}\n{said}");
    assert!(bytes(&cluster.folder, "run") == reference(), "{output}\n{said}");
}
