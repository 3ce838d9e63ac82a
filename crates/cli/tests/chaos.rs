//! The promise on bad days: faults on purpose from a seed, wrong numbers, slow machines, signals and broken disks change
//! no byte of the result, or are named. Real processes, real signals.

mod common;

use std::time::Duration;

use common::Folder;
use common::run::{arguments, bytes, children, kill, listening_address, newest_step, succeed, undisturbed, wait_for};
use rustix::process::Signal;

/// 3,000 short steps in five micro-batches.
const SETTINGS: &str =
    "--num-epochs 60 --num-batches 50 --checkpoint-every 50 --batch-size 20 --micro-batch-size 4 --lr 0.01";

/// The result of the same recipe undisturbed.
fn reference() -> &'static [u8] {
    undisturbed(SETTINGS)
}

/// How many faults of a kind the launcher says it recovered from.
fn recovered(stderr: &str, kind: &str) -> usize {
    let line = stderr.lines().find(|line| line.starts_with("chaos: ") && line.contains(&format!("{kind}s, all")));
    line.and_then(|line| line.split_whitespace().nth(1)).and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[test]
fn kills_hangs_and_lost_coordinators_change_no_byte() {
    let folder = Folder::new();
    let whole = reference();
    // One worker is slow, so that the run lasts long enough to be disturbed.
    let chaos = "seed=5,kill=900ms,kills=10,hang=3s/2s,hangs=3,coordinator=4s,coordinators=3,slow=3";
    let times = "--heartbeat 0.2 --dead-after 1";
    let output = succeed(&folder, "nn", SETTINGS, &format!("--run-id chaos --workers 3 {times} --chaos {chaos}"));
    assert!(bytes(&folder, "chaos") == whole, "{}", output.stderr);
    for (kind, least) in [("worker kill", 5), ("worker hang", 1), ("coordinator kill", 1)] {
        assert!(recovered(&output.stderr, kind) >= least, "{kind}: {}", output.stderr);
    }
}

#[test]
fn a_rank_that_computes_wrong_numbers_is_found_and_excluded() {
    let folder = Folder::new();
    let whole = reference();
    let output = succeed(&folder, "nn", SETTINGS, "--run-id odd --workers 3 --audit-every 1 --chaos wrong=500");
    assert!(output.stderr.contains("the audit of step 500"), "{}", output.stderr);
    assert!(output.stderr.contains("excluded"), "{}", output.stderr);
    assert!(output.stderr.contains("told not to come back"), "{}", output.stderr);
    assert!(bytes(&folder, "odd") == whole, "nothing that the wrong rank computed is in the result");
}

#[test]
fn two_ranks_that_compute_different_numbers_stop_the_run_and_are_both_named() {
    let folder = Folder::new();
    let chaos = "--run-id split --workers 2 --audit-every 1 --arbiter-wait 2s --chaos wrong=300";
    let output = folder.run(&arguments("nn", SETTINGS, chaos));
    assert_eq!(output.status.code(), Some(1), "{output}");
    for word in ["step 300", "rank 0", "rank 1", "pid", "hint:"] {
        assert!(output.stderr.contains(word), "{word}: {output}");
    }
    // What is saved is the state before the wrong step, and it continues to the right result.
    let whole = reference();
    assert!(newest_step(&folder.path().join("chk/split")) <= 300);
    succeed(&folder, "nn", SETTINGS, "--run-id split --resume auto");
    assert!(bytes(&folder, "split") == whole);
}

#[test]
fn a_slow_worker_gets_less_and_the_bytes_stay() {
    let folder = Folder::new();
    // Few steps and a long wait: a stall of the machine does not make up for it.
    let settings = SETTINGS.replace("--num-epochs 60", "--num-epochs 12");
    succeed(&folder, "nn", &settings, "--run-id reference");
    let output = succeed(&folder, "nn", &settings, "--run-id slow --workers 2 --chaos slow=40");
    assert!(output.stderr.contains("the faster get more"), "{}", output.stderr);
    let last = output.stderr.lines().rfind(|line| line.contains("rank 0 of 2, micro-batches")).unwrap_or("");
    let four_and_one = ["0..4", "0..1"].iter().any(|part| last.contains(part));
    assert!(four_and_one, "one of the two keeps one of five micro-batches: {}", output.stderr);
    assert!(bytes(&folder, "slow") == bytes(&folder, "reference"));
}

#[test]
fn a_warning_signal_writes_a_checkpoint_and_goes_on() {
    let folder = Folder::new();
    let whole = reference();
    let settings = SETTINGS.replace("--checkpoint-every 50", "--checkpoint-every 1000000");
    let mut launcher = folder.spawn(&arguments("nn", &settings, "--run-id warned --workers 2 --chaos slow=2"));
    let chk = folder.path().join("chk/warned");
    launcher.wait_for_stderr("epoch    2/60");
    assert_eq!(newest_step(&chk), 0);
    kill(launcher.id() as i32, Signal::USR1);
    wait_for("a checkpoint", || newest_step(&chk) > 0);
    // Sent to every process, as a scheduler may do it, the signal kills none of them.
    for pid in children(launcher.id(), "numalign") {
        kill(pid, Signal::USR1);
    }
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    assert!(bytes(&folder, "warned") == whole);
}

#[test]
fn a_run_folder_that_vanishes_is_told_and_costs_no_step() {
    let folder = Folder::new();
    let whole = reference();
    let mut launcher = folder.spawn(&arguments("nn", SETTINGS, "--run-id gone --workers 2 --chaos slow=2"));
    let chk = folder.path().join("chk/gone");
    wait_for("a checkpoint", || newest_step(&chk) >= 100);
    // In one move: between two a checkpoint would make the folder again.
    let in_the_way = folder.path().join("chk/in-the-way");
    std::fs::write(&in_the_way, "a file").unwrap();
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, &chk, rustix::fs::CWD, &in_the_way, exchange).unwrap();
    launcher.wait_for_stderr("training goes on");
    std::fs::remove_file(&chk).unwrap();
    wait_for("checkpoints again", || newest_step(&chk) > 100);
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    assert!(bytes(&folder, "gone") == whole);
}

#[test]
fn workers_come_and_go_in_worlds_of_one_to_eight() {
    let folder = Folder::new();
    let settings = SETTINGS.replace("--batch-size 20 --micro-batch-size 4", "--batch-size 24 --micro-batch-size 3");
    succeed(&folder, "nn", &settings, "--run-id reference");
    let whole = bytes(&folder, "reference");

    let mut arguments = vec!["coordinator", "nn", "--listen", "127.0.0.1:0", "--run-id", "elastic", "--workers", "1"];
    let settings = settings.replace("--num-epochs 60", "--num-epochs 60 --join-debounce 0.05");
    arguments.extend(settings.split_whitespace());
    let mut coordinator = folder.spawn(&arguments);
    let url = format!("http://{}", listening_address(&mut coordinator));
    let slow = [("NUMALIGN_INTERNAL_FAULTS", "slow=1")];
    let start = || folder.spawn_env(&["worker", "--coordinator", &url], &slow);
    let mut workers = Vec::new();
    for world in 1..=8 {
        workers.push(start());
        coordinator.wait_for_stderr(&format!("with {world} ranks"));
    }
    for world in (1..8).rev() {
        // Dropping kills.
        workers.remove(world / 2);
        std::thread::sleep(Duration::from_millis(100));
    }
    workers.push(start());
    let output = coordinator.wait();
    assert!(output.status.success(), "{output}");
    assert!(bytes(&folder, "elastic") == whole);
}
