//! Signals and limits: what would end a process without a word is an error in words, or a checkpoint.

use std::os::unix::process::CommandExt;

use rustix::process::{Pid, Signal, kill_process_group};

use super::*;
use crate::common::check;
use crate::common::run::{kill, newest_step};

const LONG: &str = "--workers 2 --num-epochs 100000 --num-batches 20 --checkpoint-every 1000000";

#[test]
fn a_hangup_stops_with_a_checkpoint() {
    for whole_group in [false, true] {
        let folder = Folder::new();
        let mut child = folder.spawn_shell("exec \"$0\" \"$@\"", &arguments("nn", LONG, ""));
        child.wait_for_stderr("epoch    2/");
        match whole_group {
            true => kill_process_group(Pid::from_raw(child.id() as i32).expect("a group"), Signal::HUP).expect("ours"),
            false => kill(child.id() as i32, Signal::HUP),
        }
        check("a hangup", &child.wait(), 130, &["stopped at step", "--resume auto"]);
        assert!(newest_step(&folder.path().join("chk/nn")) > 0);
    }
}

#[test]
fn a_hangup_that_is_ignored_from_the_start_stays_ignored() {
    let folder = Folder::new();
    let script = "trap '' HUP; exec \"$0\" \"$@\"";
    let mut child = folder.spawn_shell(script, &launch());
    child.wait_for_stderr("epoch    2/");
    kill_process_group(Pid::from_raw(child.id() as i32).expect("a group"), Signal::HUP).expect("ours");
    let output = child.wait();
    assert!(output.status.success(), "{output}");
    assert_eq!(bytes(&folder, "nn"), reference());
}

#[test]
fn files_that_may_not_grow_cost_checkpoints_and_end_in_words() {
    let folder = Folder::new();
    let output = folder.spawn_shell("ulimit -f 1; exec \"$0\" \"$@\"", &launch()).wait();
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("File too large"), "{output}");
    assert!(!output.stderr.contains("panicked") && !output.stderr.contains("was killed"), "{output}");
}

#[test]
fn threads_that_are_refused_are_an_error_in_words() {
    // Root has no such limit.
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: to become a user without processes needs root");
        return;
    }
    let folder = Folder::new();
    let program = folder.open_to_every_user();
    for processes in [1, 2, 3] {
        let output = Command::new("sh")
            .args([
                "-c",
                &format!(
                    "(ulimit -u 9) 2>/dev/null && ulimit -u {processes} || ulimit -p {processes}; exec \"$0\" \"$@\""
                ),
            ])
            .arg(&program)
            .args(["worker", "--coordinator", "http://127.0.0.1:9"])
            .env("NUMALIGN_COORDINATOR_WAIT", "1")
            .env_remove("RUST_BACKTRACE")
            .uid(54_321)
            .gid(54_321)
            .current_dir(folder.path())
            .output()
            .expect("a shell");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{processes}: {stderr}");
        assert!(!stderr.contains("panicked"), "{processes}: {stderr}");
        if processes == 1 {
            assert!(stderr.contains("refuses another thread") && stderr.contains("ulimit -u"), "{stderr}");
        }
    }
}

#[test]
fn variables_of_a_cluster_and_addresses_as_people_write_them() {
    let folder = Folder::new();
    let services = [
        ("NUMALIGN_PORT", "tcp://10.0.0.1:7400"),
        ("NUMALIGN_SERVICE_HOST", "10.0.0.1"),
        ("NUMALIGN_WORKERS_PORT_7400_TCP_ADDR", "10.0.0.1"),
    ];
    let output = folder.run_env(&launch(), &services);
    assert!(output.status.success(), "{output}");
    assert_eq!(bytes(&folder, "nn"), reference());
    let mut coordinator =
        folder.spawn(&["coordinator", "--listen", ":0", "--insecure", "--stage", "nn", "--run-id", "six"]);
    let address = crate::common::run::listening_address(&mut coordinator);
    let port = address.rsplit(':').next().expect("a port").to_owned();
    for host in ["127.0.0.1", "::1"] {
        // A host without IPv6 listens on the other one alone.
        if host == "127.0.0.1" || address.starts_with("[::]") {
            let output = folder.run(&["status", "--coordinator", &format!("http://{host}:{port}")]);
            assert!(output.status.success(), "{host}: {output}");
        }
    }
    kill(coordinator.id() as i32, Signal::TERM);
    assert_eq!(coordinator.wait().status.code(), Some(130));
}
