//! Real runs of this binary in a temporary folder: the same bytes for any number of workers, for either collective, and
//! after a kill.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use numalign_collective::nccl::Nccl;
use numalign_config::{DeviceChoice, RUNS_FOLDER};
use numalign_gpu::driver::visible_gpus;
use tokio::runtime::Runtime;

use super::Table;
use crate::error::CliError;
use crate::process::{self, ChildGuard, last_lines, this_program};

const SETTINGS: &str =
    "--num-batches 20 --batch-size 16 --micro-batch-size 4 --mixed-max-numbers 4 --lr 0.01 --seed 5 --no-eval";

/// Epochs of a stage: a worker is to be killed in the middle of `nn`; a step of `mixed` takes many times as long.
const EPOCHS: [(&str, &str); 2] = [("nn", "3"), ("mixed", "1")];

/// One worker takes its time, so that the kill comes in the middle on every machine.
const CHAOS: &str = "seed=1,kill=400ms,kills=1,slow=5";

/// A run that hangs is killed and told.
const TIMEOUT: Duration = Duration::from_secs(300);

/// From here on several ranks may share a GPU.
const SHARED_GPU: u32 = 23_000;

pub fn check(table: &mut Table, device: DeviceChoice) -> Result<(), CliError> {
    let folder = tempfile::Builder::new().prefix("numalign-selftest").tempdir()?;
    let runner = Runner { folder: folder.path(), device, runtime: process::runtime()? };
    for (stage, epochs) in EPOCHS {
        let mut first: Option<Vec<u8>> = None;
        table.run(format!("{stage}, one worker"), || {
            let bytes =
                runner.launch(stage, "reference", &format!("--num-epochs {epochs} --workers 1 --collective grpc"))?.0;
            let digest = format!("{} bytes", bytes.len());
            first = Some(bytes);
            Ok(digest)
        });
        let Some(first) = first else {
            continue;
        };
        let same = |run: &str, more: &str| -> Result<String, String> {
            let (bytes, said) = runner.launch(stage, run, &format!("--num-epochs {epochs} {more}"))?;
            if bytes == first { Ok(said) } else { Err("the final checkpoint has other bytes".to_owned()) }
        };
        let seen = |_: String| "the same bytes".to_owned();
        table.run(format!("{stage}, two workers, grpc"), || same("two", "--workers 2 --collective grpc").map(seen));
        table.run(format!("{stage}, the same again"), || same("again", "--workers 1 --collective grpc").map(seen));
        for (workers, word) in [(1, "one worker"), (2, "two workers")] {
            let name = format!("{stage}, {word}, nccl");
            match nccl_obstacle(workers) {
                Some(why) => table.skip(name, why),
                None => {
                    let more = format!("--workers {workers} --collective nccl");
                    table.run(name, || same(&format!("nccl-{workers}"), &more).map(seen));
                }
            }
        }
        if stage == "nn" {
            kills(table, &same);
        }
    }
    Ok(())
}

/// A worker is killed in the middle; another takes its place.
fn kills(table: &mut Table, same: &dyn Fn(&str, &str) -> Result<String, String>) {
    let recovered = |said: String| match said.lines().find(|line| line.starts_with("chaos:")) {
        Some(line) => Ok(format!("the same bytes; {}", line.trim_start_matches("chaos: "))),
        None => Err("no worker was killed".to_owned()),
    };
    table.run("nn, a worker killed, grpc", || {
        same("killed", &format!("--workers 2 --collective grpc --chaos {CHAOS}")).and_then(recovered)
    });
    match nccl_obstacle(2) {
        Some(why) => table.skip("nn, a worker killed, nccl", why),
        None => table.run("nn, a worker killed, nccl", || {
            same("killed-nccl", &format!("--workers 2 --collective nccl --chaos {CHAOS}")).and_then(recovered)
        }),
    }
}

/// Why so many ranks cannot share a communicator on this machine.
fn nccl_obstacle(workers: usize) -> Option<String> {
    if let Err(error) = numalign_worker::nccl::ability_on(0, false) {
        return Some(error.to_string());
    }
    let gpus = visible_gpus();
    match Nccl::get() {
        Ok(nccl) if gpus < workers && nccl.version.0 < SHARED_GPU => {
            Some(format!("{gpus} GPU, and NCCL {} wants one for each rank", nccl.version))
        }
        _ => None,
    }
}

struct Runner<'a> {
    folder: &'a Path,
    device: DeviceChoice,
    runtime: Runtime,
}

impl Runner<'_> {
    /// The final checkpoint of a run, and what it said on stderr.
    fn launch(&self, stage: &str, run: &str, more: &str) -> Result<(Vec<u8>, String), String> {
        let run = format!("{stage}-{run}");
        let mut command = this_program().map_err(|error| error.to_string())?;
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("NUMALIGN_") || text == "MASTER_ADDR" {
                command.env_remove(&name);
            }
        }
        // Two ranks on one GPU are allowed where NCCL can do it; `cuda:0` would put every worker there.
        let device = match self.device {
            DeviceChoice::Cuda(_) => "cuda".to_owned(),
            other => other.to_string(),
        };
        let log = self.folder.join(format!("{run}.log"));
        let file = std::fs::File::create(&log).map_err(|error| error.to_string())?;
        command
            .current_dir(self.folder)
            .env("NCCL_MULTI_RANK_GPU_ENABLE", "1")
            .args(["launch", stage, "--run-id", &run, "--device", &device])
            .args(SETTINGS.split_whitespace())
            .args(more.split_whitespace())
            .stdout(Stdio::null())
            .stderr(file);
        let status = self.runtime.block_on(async {
            // Its children die with it.
            let mut child = ChildGuard::spawn(command).map_err(|error| error.to_string())?;
            child.wait_at_most(TIMEOUT).await.map_err(|error| error.to_string())
        })?;
        let Some(status) = status else {
            let seconds = TIMEOUT.as_secs();
            return Err(format!("it did not end within {seconds} s; its log ends with: {}", last_lines(&log, 4)));
        };
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        if !status.success() {
            return Err(format!("it ended with {status}: {}", last_lines(&log, 4)));
        }
        let path = self.folder.join(RUNS_FOLDER).join(format!("{run}.safetensors"));
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((bytes, said))
    }
}
