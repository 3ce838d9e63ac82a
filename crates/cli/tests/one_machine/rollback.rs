//! A machine that computes wrong numbers for a while before anybody notices: the run goes back to before it did, and its
//! bytes are those of an undisturbed run.

use std::path::Path;

use super::*;

/// Audits come often, checkpoints too.
const OFTEN: &str = "--num-epochs 12 --num-batches 50 --checkpoint-every 5 --batch-size 20 --micro-batch-size 4 --lr 0.01 \
                     --audit-every 5";

/// A coordinator of the run at `address`.
fn coordinator(folder: &Folder, address: &str, more: &str) -> Child {
    let mut arguments = vec!["coordinator", "nn", "--listen", address, "--run-id", "run"];
    arguments.extend(OFTEN.split_whitespace().chain(more.split_whitespace()));
    folder.spawn(&arguments)
}

fn cluster(more: &str) -> Cluster {
    let folder = Folder::new();
    let mut coordinator = coordinator(&folder, "127.0.0.1:0", more);
    let url = format!("http://{}", listening_address(&mut coordinator));
    Cluster { folder, coordinator, url }
}

/// Checkpoints that are marked as void.
fn void(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("rolled-back-1-step-")).collect()
}

#[test]
fn wrong_rows_that_nobody_saw_at_first_are_not_in_the_result() {
    let cluster = cluster("--workers 3");
    let _honest = [cluster.worker("slow=1", &[]), cluster.worker("slow=1", &[])];
    let mut faulty = cluster.worker("wrong=20", &[]);
    let said = cluster.finish();
    assert!(said.contains("excluded: the audit of step 24"), "{said}");
    assert!(said.contains("going back from step 24 to step"), "{said}");
    assert_eq!(said.matches("is dismissed").count(), 1, "{said}");
    assert_eq!(faulty.wait().status.code(), Some(1));
}

#[test]
fn checkpoints_since_then_are_void_for_every_resume() {
    let mut cluster = cluster("--workers 3 --keep-checkpoints 1000");
    let chk = cluster.folder.path().join("chk/run");
    let workers = [cluster.worker("slow=2", &[]), cluster.worker("slow=2", &[]), cluster.worker("wrong=20", &[])];
    cluster.coordinator.wait_for_stderr("going back from step 24");
    wait_for("void checkpoints", || !void(&chk).is_empty());
    kill(cluster.coordinator.id() as i32, Signal::KILL);
    cluster.coordinator.wait();
    let names = void(&chk);
    assert!(names.iter().any(|name| name.ends_with("step-00000020.safetensors")), "{names:?}");
    // Neither by name …
    let path = format!("chk/run/{}", names[0]);
    let arguments =
        words(&[&["coordinator", "nn", "--listen", "127.0.0.1:0", "--run-id", "run"], &["--resume", &path]]);
    let output = cluster.folder.run(&arguments.into_iter().chain(OFTEN.split_whitespace()).collect::<Vec<_>>());
    check("a void checkpoint", &output, 1, &["is void", "hint:"]);
    // … nor because a worker brings a later state along.
    let address = cluster.url.trim_start_matches("http://").to_owned();
    let mut second = coordinator(&cluster.folder, &address, "--workers 2 --resume auto");
    let output = second.wait();
    assert!(output.status.success(), "{output}");
    assert!(bytes(&cluster.folder, "run") == reference(), "{output}");
    drop(workers);
}

#[test]
fn a_coordinator_killed_in_the_middle_of_going_back_is_replaced() {
    let mut cluster = cluster("--workers 3");
    let record = cluster.folder.path().join("chk/run/rollbacks.json");
    let _honest = [cluster.worker("slow=2", &[]), cluster.worker("slow=2", &[])];
    let _faulty = cluster.worker("wrong=20", &[]);
    let began = std::time::Instant::now();
    while !record.exists() {
        assert!(began.elapsed() < common::TIMEOUT, "{}", cluster.coordinator.stderr());
        std::thread::sleep(Duration::from_micros(200));
    }
    kill(cluster.coordinator.id() as i32, Signal::KILL);
    cluster.coordinator.wait();
    let address = cluster.url.trim_start_matches("http://").to_owned();
    let mut second = coordinator(&cluster.folder, &address, "--workers 2 --resume auto");
    let output = second.wait();
    assert!(output.status.success(), "{output}");
    assert!(!output.stderr.contains("the state that it brought along"), "nobody honest is refused: {output}");
    assert!(bytes(&cluster.folder, "run") == reference(), "{output}");
    let verified = cluster.folder.run(&["verify", "chk/run.safetensors"]);
    assert!(verified.status.success(), "{verified}");
}

#[test]
fn a_third_worker_tells_which_of_two_is_right() {
    let mut cluster = cluster("--workers 2");
    let _honest = cluster.worker("slow=1", &[]);
    let mut faulty = cluster.worker("wrong=20", &[]);
    cluster.coordinator.wait_for_stderr("one worker more, which can tell who is right");
    let _third = cluster.worker("", &[]);
    let said = cluster.finish();
    assert!(said.contains("excluded: the audit of step 24"), "{said}");
    assert_eq!(faulty.wait().status.code(), Some(1));
}

#[test]
fn of_two_states_the_coordinator_tells_which_is_right() {
    for faulty_first in [true, false] {
        let cluster = cluster("--workers 2");
        let faults = if faulty_first { ["update=20", "slow=1"] } else { ["slow=1", "update=20"] };
        let _workers = faults.map(|faults| cluster.worker(faults, &[]));
        let said = cluster.finish();
        assert!(said.contains("excluded: after step 20 its state is"), "{said}");
        assert!(said.contains("where the coordinator has"), "{said}");
    }
}
