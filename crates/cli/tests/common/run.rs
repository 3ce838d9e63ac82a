//! Training runs of the real binary: starting them, finding and hitting their processes, reading their results.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use serde_json::Value;

use super::{Child, Folder, Output};

/// The command line of a launch without evaluation; settings are separated by blanks.
pub fn arguments<'a>(stage: &'a str, settings: &'a str, more: &'a str) -> Vec<&'a str> {
    let mut list = vec!["launch", stage, "--no-eval"];
    list.extend(settings.split_whitespace());
    list.extend(more.split_whitespace());
    list
}

/// A launch that has to succeed.
pub fn succeed(folder: &Folder, stage: &str, settings: &str, more: &str) -> Output {
    let output = folder.run(&arguments(stage, settings, more));
    assert!(output.status.success(), "{stage} {more}: {}", output.stderr);
    output
}

/// The final bytes of an `nn` run with these settings that nothing disturbs, computed once for all tests of a program;
/// they all have the same settings.
pub fn undisturbed(settings: &'static str) -> &'static [u8] {
    static COMPUTED: OnceLock<(&str, Vec<u8>)> = OnceLock::new();
    let (of, result) = COMPUTED.get_or_init(|| {
        let folder = Folder::new();
        succeed(&folder, "nn", settings, "--run-id reference");
        (settings, bytes(&folder, "reference"))
    });
    assert_eq!(*of, settings, "one recipe per program");
    result
}

/// Runs a command line, its arguments separated by blanks.
pub fn run_line(folder: &Folder, line: &str) -> Output {
    folder.run(&line.split_whitespace().collect::<Vec<_>>())
}

/// As [`run_line`]; it has to succeed.
pub fn succeed_line(folder: &Folder, line: &str) -> Output {
    let output = run_line(folder, line);
    assert!(output.status.success(), "{line}: {output}");
    output
}

/// What a successful process printed with `--json`.
pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output}");
    parsed(output)
}

/// What a process printed with `--json`, however it ended.
pub fn parsed(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// Where a coordinator that listens on a port of the system's choice can be reached.
pub fn listening_address(coordinator: &mut Child) -> String {
    coordinator.wait_for_stderr("start workers with");
    let stderr = coordinator.stderr();
    let after = stderr.split("listening on ").nth(1).expect("the address");
    after.split(';').next().expect("the address").to_owned()
}

/// The final checkpoint of a run.
pub fn bytes(folder: &Folder, run: &str) -> Vec<u8> {
    let path = folder.path().join(format!("chk/{run}.safetensors"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Processes whose parent is `parent` and whose command line, arguments joined by blanks, holds `word`.
pub fn children(parent: u32, word: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ppid = after_name.split_whitespace().nth(1).and_then(|field| field.parse::<u32>().ok());
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
        if ppid == Some(parent) && line.contains(word) {
            found.push(pid);
        }
    }
    found
}

pub fn kill(pid: i32, signal: Signal) {
    // It may have ended in the meantime.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// The step of the newest checkpoint in a run's folder; 0 without one.
pub fn newest_step(folder: &Path) -> u64 {
    let mut newest = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".safetensors")) {
            newest = newest.max(step.parse().unwrap_or(0));
        }
    }
    newest
}

/// Each time a checkpoint of one of `steps` or a later one lies in `checkpoints`, the first of the launcher's children
/// whose command line holds `victim` gets `signal`.
pub fn hit_at_steps(
    launcher: u32,
    victim: &str,
    signal: Signal,
    checkpoints: &Path,
    steps: impl IntoIterator<Item = u64>,
) {
    for step in steps {
        wait_for("a checkpoint", || newest_step(checkpoints) >= step);
        let mut pids = Vec::new();
        wait_for("a victim", || {
            pids = children(launcher, victim);
            !pids.is_empty()
        });
        kill(pids[0], signal);
    }
}
