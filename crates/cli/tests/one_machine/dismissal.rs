//! Workers that cannot load, come too early, or send rows that are no numbers or not theirs.

use super::*;

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
