//! Rows over NCCL, with a fake driver and a fake NCCL under real processes: the same bytes as over gRPC, whichever process was killed
//! and whatever NCCL did. What this proves is numalign's protocol, not NVIDIA's code.

mod common;

use std::path::Path;

use common::fake_cuda::FakeCuda;
use common::run::{arguments, bytes, children, hit_at_steps, kill, newest_step, wait_for};
use common::{Child, Folder, Output, check};
use rustix::process::Signal;

const SHORT: &str = "--num-epochs 3 --num-batches 10 --batch-size 20 --micro-batch-size 4 --mixed-max-numbers 4 \
                     --checkpoint-every 7 --lr 0.01";

/// Long enough that something can be killed in the middle.
const LONG: &str = "--num-epochs 30 --num-batches 20 --checkpoint-every 10 --batch-size 20 --micro-batch-size 4";

/// One worker waits between micro-batches: what is on disk is not far behind what is computed, whatever the machine.
const PACED: &str = "--chaos slow=6";

/// A folder with fakes.
struct Fakes {
    folder: Folder,
    libraries: String,
    temporary: String,
    log: String,
}

impl Fakes {
    fn new() -> Self {
        let folder = Folder::new();
        let temporary = folder.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        Self {
            libraries: FakeCuda::get().path().display().to_string(),
            temporary: temporary.display().to_string(),
            log: folder.path().join("nccl.log").display().to_string(),
            folder,
        }
    }

    fn environment<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut all = vec![
            ("LD_LIBRARY_PATH", self.libraries.as_str()),
            ("TMPDIR", self.temporary.as_str()),
            ("FAKE_NCCL_LOG", self.log.as_str()),
            ("FAKE_CUDA_GPUS", "4"),
        ];
        all.extend(more);
        all
    }

    fn start(&self, stage: &str, settings: &str, more: &str, environment: &[(&str, &str)]) -> Child {
        self.folder.spawn_env(&arguments(stage, settings, more), &self.environment(environment))
    }

    fn succeed(&self, stage: &str, settings: &str, more: &str, environment: &[(&str, &str)]) -> Output {
        let output = self.start(stage, settings, more, environment).wait();
        assert!(output.status.success(), "{stage} {more}: {output}");
        output
    }

    fn bytes(&self, run: &str) -> Vec<u8> {
        bytes(&self.folder, run)
    }

    /// Lines of the fake's log that hold `word`.
    fn logged(&self, word: &str) -> usize {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter(|line| line.contains(word)).count()
    }
}

#[test]
fn any_world_over_nccl_gives_the_bytes_of_grpc() {
    let fakes = Fakes::new();
    let solved = format!("{SHORT} --solver alternate --solve-samples 60 --solve-every 15");
    for (name, stage, settings) in [("nn", "nn", SHORT), ("mixed", "mixed", SHORT), ("solved", "nn", solved.as_str())] {
        let run = format!("{name}-grpc");
        fakes.succeed(stage, settings, &format!("--workers 2 --collective grpc --run-id {run}"), &[]);
        let reference = fakes.bytes(&run);
        for workers in [1, 2, 3] {
            let run = format!("{name}-nccl-{workers}");
            let more = format!("--workers {workers} --collective nccl --run-id {run}");
            let output = fakes.succeed(stage, settings, &more, &[]);
            assert!(fakes.bytes(&run) == reference, "{name} with {workers} workers");
            let said = match workers {
                1 => "collective NCCL 2.30.7 on one GPU".to_owned(),
                _ => format!("collective NCCL 2.30.7 between {workers} ranks"),
            };
            assert!(output.stderr.contains(&said), "{output}");
        }
    }
    assert!(fakes.logged("formed") >= 3 * 6, "every rank of every run formed a communicator");
    let left: Vec<_> = std::fs::read_dir(&fakes.temporary).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Kills a worker in the middle of a run that reduces over NCCL; the others hang in their sum, or see an error.
fn killed(remote_errors: &str) {
    let fakes = Fakes::new();
    fakes.succeed("nn", LONG, "--workers 2 --collective grpc --run-id reference", &[]);
    let environment = [("FAKE_NCCL_REMOTE_ERRORS", remote_errors)];
    // The second worker is slow and lives: the run cannot end before the others have come back.
    let more = format!("--workers 3 --collective nccl --run-id cut {PACED}");
    let mut launcher = fakes.start("nn", LONG, &more, &environment);
    let chk = fakes.folder.path().join("chk/cut");
    let of_three = || fakes.logged("formed rank 0 of 3");
    wait_for("a communicator of three ranks", || of_three() > 0);
    for time in 0..2 {
        wait_for("a checkpoint", || newest_step(&chk) >= 50 + 100 * time);
        let mut pids = Vec::new();
        wait_for("a victim", || {
            pids = children(launcher.id(), "worker --coordinator");
            pids.len() == 3
        });
        let before = of_three();
        kill(pids[time as usize], Signal::KILL);
        wait_for("three ranks again", || of_three() > before);
    }
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    assert!(fakes.bytes("cut") == fakes.bytes("reference"), "{output}");
    // Three at first; after each kill the two that are left, and three again when another has joined.
    let (formed, aborted) = (fakes.logged("formed"), fakes.logged("aborted"));
    assert!(formed >= 3 + 2 * (2 + 3), "{formed} formed, {aborted} aborted: {output}");
    assert!(aborted >= formed - 2 - 3, "all but the killed ones abort: {formed} formed, {aborted} aborted: {output}");
}

#[test]
fn a_killed_rank_leaves_hanging_sums_that_are_aborted() {
    killed("0");
}

#[test]
fn a_killed_rank_that_nccl_reports_is_no_failure_of_nccl() {
    killed("1");
}

#[test]
fn a_killed_coordinator_ends_the_communicator_and_the_run_goes_on() {
    let fakes = Fakes::new();
    fakes.succeed("nn", LONG, "--workers 2 --collective grpc --run-id reference", &[]);
    let more = format!("--workers 2 --collective nccl --run-id cut {PACED}");
    let mut launcher = fakes.start("nn", LONG, &more, &[]);
    hit_at_steps(launcher.id(), "coordinator --listen", Signal::KILL, &fakes.folder.path().join("chk/cut"), [100]);
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    assert!(fakes.bytes("cut") == fakes.bytes("reference"), "{output}");
    assert!(fakes.logged("formed") >= 4);
}

#[test]
fn what_nccl_does_wrong_once_is_recovered_from() {
    let fakes = Fakes::new();
    fakes.succeed("nn", SHORT, "--workers 2 --collective grpc --run-id reference", &[]);
    for (fault, said) in [
        ("async-error:5", "a fake link is down"),
        ("init-fails", "no fake socket found"),
        ("bit-flips:5", "received other rows of unit 4 over NCCL than the ranks computed"),
        ("init-hangs", "NCCL formed no communicator of 2 ranks within 5 s"),
    ] {
        let run = fault.replace(':', "-");
        let marker = fakes.folder.path().join(&run).display().to_string();
        let environment = [("FAKE_NCCL_FAULT", fault), ("FAKE_NCCL_FAULT_ONCE", marker.as_str())];
        let more = format!("--workers 2 --collective nccl --coordinator-wait 5s --run-id {run}");
        let output = fakes.succeed("nn", SHORT, &more, &environment);
        assert!(Path::new(&marker).exists(), "{fault} never happened: {output}");
        assert!(output.stderr.contains(said), "{fault}: {output}");
        assert!(fakes.bytes(&run) == fakes.bytes("reference"), "{fault}: {output}");
    }
}

#[test]
fn what_nccl_does_wrong_always_ends_the_run_in_words() {
    let fakes = Fakes::new();
    for (fault, said) in [
        ("init-fails", "no fake socket found"),
        ("bit-flips", "received other rows of unit 0 over NCCL"),
        ("init-hangs", "NCCL formed no communicator of 2 ranks within 3 s"),
    ] {
        let more = format!("--workers 2 --collective nccl --coordinator-wait 3s --run-id {fault}");
        let output = fakes.start("nn", SHORT, &more, &[("FAKE_NCCL_FAULT", fault)]).wait();
        let words = ["collective: nccl cannot be used", "failed 2 times", said, "hint:"];
        check(fault, &output, 1, &words);
    }
}

#[test]
fn a_gpu_that_an_aborted_communicator_holds_is_given_back_by_the_process() {
    let fakes = Fakes::new();
    fakes.succeed("nn", LONG, "--workers 2 --collective grpc --run-id reference", &[]);
    // The first abort is the remaining rank's: a killed process makes none.
    let marker = fakes.folder.path().join("stuck-once").display().to_string();
    let environment = [("FAKE_NCCL_FAULT", "abort-stuck"), ("FAKE_NCCL_FAULT_ONCE", marker.as_str())];
    let more = format!("--workers 2 --collective nccl --run-id stuck {PACED}");
    let mut launcher = fakes.start("nn", LONG, &more, &environment);
    hit_at_steps(launcher.id(), "worker --coordinator", Signal::KILL, &fakes.folder.path().join("chk/stuck"), [100]);
    let output = launcher.wait();
    assert!(output.status.success(), "{output}");
    assert!(output.stderr.contains("did not let go of the GPU within 5 s"), "{output}");
    assert!(fakes.bytes("stuck") == fakes.bytes("reference"), "{output}");
}

#[test]
fn two_ranks_share_a_gpu_only_where_nccl_is_told_so() {
    let fakes = Fakes::new();
    fakes.succeed("nn", SHORT, "--workers 2 --collective grpc --run-id reference", &[]);
    let one = ("FAKE_CUDA_GPUS", "1");
    let more = "--workers 2 --collective nccl --coordinator-wait 3s --run-id shared";
    let output = fakes.start("nn", SHORT, more, &[one]).wait();
    assert!(output.stderr.contains("share a GPU (GPU-00000000-0000-0000-0000-000000000000)"), "{output}");
    let allowed = [one, ("NCCL_MULTI_RANK_GPU_ENABLE", "1")];
    fakes.succeed("nn", SHORT, "--workers 2 --collective nccl --run-id allowed", &allowed);
    assert!(fakes.bytes("allowed") == fakes.bytes("reference"));
    // Before 2.30 NCCL does not know that setting.
    let older = [one, ("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("FAKE_NCCL_VERSION", "22903")];
    let output = fakes.start("nn", SHORT, &more.replace("shared", "older"), &older).wait();
    assert!(output.stderr.contains("share a GPU"), "{output}");
}

#[test]
fn a_worker_with_another_nccl_is_refused_with_both_versions() {
    let fakes = Fakes::new();
    let listen = ["coordinator", "nn", "--listen", "127.0.0.1:0", "--collective", "nccl", "--workers", "2"];
    let mut coordinator = fakes.folder.spawn_env(&listen, &fakes.environment(&[]));
    coordinator.wait_for_stderr("listening on ");
    let said = coordinator.stderr();
    let address = said.split("listening on ").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let url = format!("http://{address}");
    let worker = |version: &str, rank: &str| {
        let environment = [("FAKE_NCCL_VERSION", version), ("LOCAL_RANK", rank)];
        fakes.folder.spawn_env(&["worker", "--coordinator", &url], &fakes.environment(&environment))
    };
    let _first = worker("23007", "0");
    coordinator.wait_for_stderr("1 of 2 workers are ready");
    let output = worker("22703", "1").wait();
    check("the other", &output, 1, &["collective: nccl cannot be used", "2.30.7", "2.27.3"]);
}

#[test]
fn missing_libraries_are_named_with_what_to_set() {
    let fakes = Fakes::new();
    let driver = FakeCuda::get().driver_path().display().to_string();
    let run = |path: &str, more: &[(&str, &str)]| {
        let mut environment = fakes.environment(more);
        environment.retain(|(name, _)| *name != "LD_LIBRARY_PATH");
        environment.push(("LD_LIBRARY_PATH", path));
        fakes.folder.run_env(&arguments("nn", SHORT, "--collective nccl"), &environment)
    };
    // A machine that has the real ones cannot show their absence.
    if !Path::new("/dev/nvidiactl").exists() {
        check(
            "no driver",
            &run("", &[]),
            1,
            &["libcuda.so.1", "tried", "LD_LIBRARY_PATH", "hint:", "collective: nccl"],
        );
        check("no NCCL", &run(&driver, &[]), 1, &["libnccl.so.2", "tried", "LD_LIBRARY_PATH", "nvidia-nccl-cu12"]);
    }
    let both = fakes.libraries.clone();
    let old = run(&both, &[("FAKE_NCCL_VERSION", "21805")]);
    check("old NCCL", &old, 1, &["NCCL 2.18.5 is too old", "2.19 or later"]);
    check("no GPU", &run(&both, &[("FAKE_CUDA_GPUS", "0")]), 1, &["shows no GPU", "CUDA_VISIBLE_DEVICES"]);
    check("broken driver", &run(&both, &[("FAKE_CUDA_INIT", "999")]), 1, &["cuInit failed", "code 999", "hint:"]);
}

#[test]
fn auto_starts_a_worker_for_each_visible_gpu() {
    let fakes = Fakes::new();
    let more = "--workers auto --collective nccl --run-id three";
    let output = fakes.succeed("nn", SHORT, more, &[("FAKE_CUDA_GPUS", "4"), ("CUDA_VISIBLE_DEVICES", "2,0,3")]);
    assert!(output.stderr.contains("workers: auto is 3, one for each visible GPU"), "{output}");
    assert!(output.stderr.contains("NCCL 2.30.7 between 3 ranks"), "{output}");
    let none = fakes.succeed("nn", SHORT, "--workers auto --run-id none", &[("FAKE_CUDA_GPUS", "0")]);
    assert!(none.stderr.contains("workers: auto is 1: no GPU is visible"), "{none}");
    assert!(fakes.bytes("none") == fakes.bytes("three"));
    let why = "gRPC through the coordinator (worker 1 ";
    assert!(none.stderr.contains(why) && none.stderr.contains("its replica is not on a GPU)"), "{none}");
}

#[test]
fn status_tells_the_collective_and_why() {
    let fakes = Fakes::new();
    let mut launcher = fakes.start("nn", LONG, &format!("--workers 2 --collective nccl --run-id seen {PACED}"), &[]);
    launcher.wait_for_stderr("NCCL 2.30.7 between 2 ranks");
    let said = launcher.stderr();
    let url = said.split("coordinator on ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let output = fakes.folder.run(&["status", "--coordinator", &url, "--json"]);
    let status: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}"));
    assert_eq!(status["collective"], "nccl");
    assert_eq!(status["collective_reason"], "NCCL 2.30.7 between 2 ranks");
    kill(launcher.id() as i32, Signal::TERM);
    launcher.wait();
}
