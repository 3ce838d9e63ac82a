//! The replica on CUDA over an emulated GPU: the real binary, built with `cuda`, whose kernels are compiled with the host's C++
//! compiler and run on the CPU (`tests/fake_cuda`). It shows that the kernels compute what they should, that the promise
//! holds on a GPU, and what happens when a GPU fails; it shows nothing of NVIDIA's hardware and compilers.
//!
//! `NUMALIGN_TEST_CUDA` names the binary; without it everything here is skipped in words. `NUMALIGN_TEST_EVERYTHING=1` runs
//! each combination instead of each pair of factors.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod devices;
mod faults;
mod identity;
mod kernel_cache;
mod launches;
mod numbers;
mod nvidia;
mod selftest;

use std::path::PathBuf;
use std::time::Duration;

use common::fake_cuda::FakeCuda;
use common::run::arguments;
use common::{Child, Folder, Output};

/// For one process: it may have to compile a hundred kernels with the host's compiler.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A short run, whose checkpoints come often enough to hit it in the middle.
const SHORT: &str = "--num-epochs 2 --num-batches 4 --batch-size 12 --micro-batch-size 4 --mixed-max-numbers 3 \
                     --checkpoint-every 1 --keep-checkpoints 100 --lr 0.01";

/// A folder with an emulated GPU.
struct Gpu {
    folder: Folder,
    /// Above what [`Gpu::environment`] sets.
    settings: Vec<(String, String)>,
}

impl Gpu {
    /// None without a binary to test, which is said.
    #[allow(clippy::print_stderr, reason = "there is nobody else to tell")]
    fn get() -> Option<Self> {
        let Ok(program) = std::env::var("NUMALIGN_TEST_CUDA") else {
            eprintln!("skipped: NUMALIGN_TEST_CUDA names no binary that was built with --features cuda");
            return None;
        };
        let program = std::path::absolute(PathBuf::from(program)).expect("a path");
        assert!(program.is_file(), "NUMALIGN_TEST_CUDA: there is no {}", program.display());
        Some(Self { folder: Folder::of_program(program), settings: Vec::new() })
    }

    /// With one more setting of the emulator, in the place of an earlier one.
    fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    fn environment(&self) -> Vec<(String, String)> {
        let cache = self.folder.path().join("cache").display().to_string();
        let mut all = vec![
            ("LD_LIBRARY_PATH".to_owned(), FakeCuda::get().path().display().to_string()),
            ("CUDA_PATH".to_owned(), FakeCuda::toolkit().display().to_string()),
            ("FAKE_CUDA_GPUS".to_owned(), "1".to_owned()),
            ("FAKE_CUDA_FREE_MIB".to_owned(), "4096".to_owned()),
            ("NCCL_MULTI_RANK_GPU_ENABLE".to_owned(), "1".to_owned()),
            ("XDG_CACHE_HOME".to_owned(), cache),
        ];
        all.retain(|(name, _)| self.settings.iter().all(|(known, _)| known != name));
        all.extend(self.settings.iter().cloned());
        all
    }

    fn start(&self, args: &[&str]) -> Child {
        let environment = self.environment();
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
        self.folder.spawn_env(args, &environment)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.start(args).wait_at_most(TIMEOUT)
    }

    fn succeed(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output}");
        output
    }

    /// A run on the GPU.
    fn launch(&self, stage: &str, settings: &str, more: &str) -> Child {
        self.start(&arguments(stage, settings, &format!("--device cuda {more}")))
    }

    fn launched(&self, stage: &str, settings: &str, more: &str) -> Output {
        let output = self.launch(stage, settings, more).wait_at_most(TIMEOUT);
        assert!(output.status.success(), "{stage} {more}: {output}");
        output
    }

    fn bytes(&self, run: &str) -> Vec<u8> {
        common::run::bytes(&self.folder, run)
    }

    /// A file of the emulator, as text; empty where it is not there.
    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// The path of such a file.
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}
