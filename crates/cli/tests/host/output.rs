//! Logs and results that cannot be written: a full disk or a closed pipe costs lines, not the run.

use rustix::process::{Pid, Signal, kill_process_group};

use super::*;
use crate::common::check;
use crate::common::run::{newest_step, wait_for};

/// The run's log goes through `script`; its exit code and bytes are those of a run that is read to the end.
fn unmoved(script: &str) {
    let folder = Folder::new();
    let output = folder.spawn_shell(&format!("{script} echo \"$status\" > code"), &launch()).wait();
    assert_eq!(folder.read("code"), b"0\n", "{script}: {output}");
    assert_eq!(bytes(&folder, "nn"), reference(), "{script}");
}

#[test]
fn a_full_disk_under_the_log_costs_lines_only() {
    unmoved("\"$0\" \"$@\" 2>/dev/full; status=$?;");
    unmoved("\"$0\" \"$@\" >/dev/full 2>&1; status=$?;");
}

#[test]
fn a_reader_that_leaves_costs_lines_only() {
    // The shell's own pipefail is not everywhere: the status comes through a file.
    unmoved(
        "{ \"$0\" \"$@\" 2>&1; echo $? > inner; } | head -5; while ! [ -s inner ]; do sleep 0.05; done; status=$(cat inner);",
    );
    unmoved(
        "{ \"$0\" \"$@\" 2>&1; echo $? > inner; } | true; while ! [ -s inner ]; do sleep 0.05; done; status=$(cat inner);",
    );
}

#[test]
fn streams_that_are_closed_cost_lines_only() {
    unmoved("\"$0\" \"$@\" <&- >&- 2>&-; status=$?;");
}

#[test]
fn a_log_on_a_full_tmpfs_costs_lines_only() {
    let folder = Folder::new();
    let logs = folder.path().join("logs");
    let Some(_tmpfs) = Tmpfs::mount(&logs, 8) else { return };
    let output = folder.spawn_shell("NUMALIGN_LOG=debug \"$0\" \"$@\" 2>logs/log", &launch()).wait();
    assert!(output.status.success(), "{output}");
    assert_eq!(bytes(&folder, "nn"), reference());
    assert_eq!(std::fs::metadata(logs.join("log")).expect("the log").len(), 8 << 10, "the log filled its disk");
}

#[test]
fn ctrl_c_through_tee_keeps_the_checkpoint() {
    let folder = Folder::new();
    let long = arguments("nn", "--workers 2 --num-epochs 1000 --num-batches 20 --checkpoint-every 1000000", "");
    let script = "{ \"$0\" \"$@\" 2>&1; echo $? > code; } | tee log";
    let mut child = folder.spawn_shell(script, &long);
    wait_for("some epochs", || {
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        log.contains("epoch    3/")
    });
    // The terminal's Ctrl-C reaches every process: `tee` dies of it, and the shells do.
    kill_process_group(Pid::from_raw(child.id() as i32).expect("a group"), Signal::INT).expect("the group is ours");
    let _ = child.wait();
    let run = folder.path().join("chk/nn");
    wait_for("the last checkpoint", || newest_step(&run) > 0);
}

#[test]
fn results_that_cannot_be_written_are_an_error_and_a_closed_pipe_is_not() {
    let folder = Folder::new();
    folder.write("run.yaml", "stage: nn\n");
    for line in [
        "config schema",
        "config show run.yaml",
        "--help",
        "--version",
        "hidden --model demo --ids 1",
        "completions bash",
        "generate nn --count 9 --out -",
    ] {
        let args: Vec<&str> = line.split_whitespace().collect();
        let output = folder.spawn_shell("exec \"$0\" \"$@\" >/dev/full", &args).wait();
        check(line, &output, 1, &["error:", "standard output", "No space left"]);
        let script = "{ \"$0\" \"$@\"; echo $? > code; } | true; while ! [ -s code ]; do sleep 0.05; done";
        let output = folder.spawn_shell(script, &args).wait();
        assert_eq!(folder.read("code"), b"0\n", "{line}: {output}");
        assert_eq!(output.stderr, "", "{line}");
        std::fs::remove_file(folder.path().join("code")).expect("it is there");
    }
}
