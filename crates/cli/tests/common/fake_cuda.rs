//! A fake driver, a fake NCCL and a fake compiler for real processes: compiled from `tests/fake_cuda/` with the C compiler, found through
//! `LD_LIBRARY_PATH`. Together they emulate a GPU on the CPU. They show that numalign's code and its kernels compute what they
//! should; of NVIDIA's code they show nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The compiled libraries of this test process.
pub struct FakeCuda {
    folder: tempfile::TempDir,
}

impl FakeCuda {
    /// Driver and NCCL; compiled at the first call.
    pub fn get() -> &'static FakeCuda {
        static FAKE: OnceLock<FakeCuda> = OnceLock::new();
        FAKE.get_or_init(|| {
            let fake = Self { folder: tempfile::tempdir().expect("a temporary folder") };
            const DRIVER: &[&str] = &["cuda.c", "memory.c", "launch.c"];
            fake.compile(DRIVER, "both/libcuda.so.1", &["-ldl"]);
            fake.compile(&["nccl.c"], "both/libnccl.so.2", &["-L", "both", "-l:libcuda.so.1"]);
            fake.compile(&["nvrtc.c"], "both/libnvrtc.so.12", &[]);
            fake.compile(DRIVER, "driver/libcuda.so.1", &["-ldl"]);
            fake
        })
    }

    fn compile(&self, sources: &[&str], library: &str, more: &[&str]) {
        let target = self.folder.path().join(library);
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("it can be made");
        let name = target.file_name().expect("a name").to_string_lossy().into_owned();
        let output = Command::new("cc")
            .current_dir(self.folder.path())
            .args(["-O2", "-Wall", "-shared", "-fPIC", "-o"])
            .arg(&target)
            .args(sources.iter().map(|source| folder_of_sources().join(source)))
            .args(more)
            .args(["-pthread", &format!("-Wl,-soname,{name}")])
            .output()
            .expect("a C compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What `CUDA_PATH` has to be for kernels to compile.
    pub fn toolkit() -> PathBuf {
        folder_of_sources().join("toolkit")
    }

    /// Where all are.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("both")
    }

    /// Where the driver is alone.
    pub fn driver_path(&self) -> PathBuf {
        self.folder.path().join("driver")
    }
}

fn folder_of_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda")
}
