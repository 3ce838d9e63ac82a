//! Files in a run's folder that are not what they should be, and disks that are full.

use std::time::Duration;

use rustix::process::Signal;

use super::*;
use crate::common::check;
use crate::common::run::{children, kill, newest_step, wait_for};

#[test]
fn temporary_files_of_the_dead_are_removed_and_those_of_the_living_stay() {
    let folder = Folder::new();
    for name in ["chk/nn/.numalign-aaaaaa.tmp", "chk/.numalign-bbbbbb.tmp"] {
        folder.write(name, "half a checkpoint");
    }
    let held = std::fs::File::open(folder.write("chk/.numalign-cccccc.tmp", "of another run")).expect("a file");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
    succeed(&folder, "nn", SETTINGS, "");
    let left: Vec<String> = folder.contents().into_iter().map(|(path, _)| path.display().to_string()).collect();
    let left: Vec<&String> = left.iter().filter(|path| path.ends_with(".tmp")).collect();
    assert!(left.len() == 1 && left[0].ends_with("cccccc.tmp"), "{left:?}");
}

#[test]
fn a_lock_that_is_no_file_is_refused_and_no_link_is_followed() {
    let folder = Folder::new();
    let run = folder.path().join("chk/nn");
    std::fs::create_dir_all(&run).expect("a folder");
    let lock = run.join("lock");
    let mkfifo = Command::new("mkfifo").arg(&lock).status().expect("mkfifo");
    assert!(mkfifo.success());
    check("a pipe", &folder.run(&launch()), 1, &["error:", "lock is a named pipe, not a file", "hint:"]);
    std::fs::remove_file(&lock).expect("it is there");
    let outside = folder.write("outside", "mine");
    for name in ["lock", "metrics.jsonl", "address"] {
        std::os::unix::fs::symlink(&outside, run.join(name)).expect("a link");
    }
    check("a link", &folder.run(&launch()), 1, &["error:", "lock is a symbolic link, not a file", "hint:"]);
    std::fs::remove_file(&lock).expect("it is there");
    // The other two are not needed for the result.
    succeed(&folder, "nn", SETTINGS, "");
    assert_eq!(folder.read("outside"), b"mine");
    assert_eq!(bytes(&folder, "nn"), reference());
}

#[test]
fn the_final_file_waits_for_room() {
    let folder = Folder::new();
    let full = folder.path().join("full");
    let Some(tmpfs) = Tmpfs::mount(&full, 256) else { return };
    let settings = format!("{SETTINGS} --model-path-save full/nn.safetensors");
    let args = arguments("nn", &settings, "");
    let mut child = folder.spawn(&args);
    child.wait_for_stderr("steps");
    tmpfs.fill();
    child.wait_for_stderr("tries again until there is room");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(child.stderr().matches("tries again").count(), 1, "it is told once");
    std::fs::remove_file(full.join("ballast")).expect("it is there");
    let output = child.wait();
    assert!(output.status.success(), "{output}");
    assert_eq!(folder.read("full/nn.safetensors"), reference());
    // Again, and the user has enough of it: the run is whole in its folder.
    tmpfs.fill();
    let mut child = folder.spawn(&[&args[..], &["--run-id", "again"]].concat());
    child.wait_for_stderr("tries again until there is room");
    kill(child.id() as i32, Signal::INT);
    check("stopped", &child.wait(), 130, &["stopped at step 120 of 120", "--resume auto"]);
    assert_eq!(newest_step(&folder.path().join("chk/again")), 120);
}

#[test]
fn a_coordinator_that_was_killed_leaves_a_record_without_gaps_and_repeats() {
    let folder = Folder::new();
    let long = "--workers 2 --num-epochs 400 --num-batches 5 --checkpoint-every 300";
    let child = folder.spawn(&arguments("nn", long, ""));
    let run = folder.path().join("chk/nn");
    wait_for("a checkpoint", || newest_step(&run) >= 300);
    std::thread::sleep(Duration::from_millis(150));
    let coordinator = children(child.id(), "coordinator")[0];
    kill(child.id() as i32, Signal::STOP);
    kill(coordinator, Signal::KILL);
    let record = run.join("metrics.jsonl");
    let mut torn = std::fs::read(&record).expect("the record");
    torn.extend_from_slice(b"{\"kind\":\"epoch\",\"st");
    std::fs::write(&record, torn).expect("it can be written");
    drop(child);
    wait_for("the workers' end", || {
        std::fs::File::open(run.join("lock"))
            .is_ok_and(|file| rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok())
    });
    succeed(&folder, "nn", long, "--resume auto");
    let text = String::from_utf8(std::fs::read(&record).expect("the record")).expect("text");
    let mut steps = Vec::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if line["kind"] == "epoch" {
            steps.push(line["step"].as_u64().expect("a step"));
        }
    }
    assert_eq!(steps, (1..=400).map(|epoch| 5 * epoch).collect::<Vec<u64>>());
}

#[test]
fn a_pipe_is_no_data_file() {
    let folder = Folder::new();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let args = arguments("nn", SETTINGS, "--dataset.file pipe");
    check("a pipe", &folder.run(&args), 1, &["error:", "it is a pipe", "write them to a file"]);
    let args = arguments("nn", SETTINGS, "--dataset.file /dev/stdin");
    let output = folder.spawn_shell("printf '{\"input\":1,\"output\":2}\\n' | \"$0\" \"$@\"", &args).wait();
    check("stdin", &output, 1, &["error:", "a run may have to read them again"]);
}
