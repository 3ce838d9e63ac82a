//! A fake driver, a fake NCCL and a fake compiler for real processes: compiled from `tests/fake_cuda/` with the C compiler, found through
//! `LD_LIBRARY_PATH`. They show that numalign's protocol holds; of NVIDIA's code they show nothing.

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
            fake.compile("cuda.c", "both/libcuda.so.1", &[]);
            fake.compile("nccl.c", "both/libnccl.so.2", &["-L", "both", "-l:libcuda.so.1"]);
            fake.compile("nvrtc.c", "both/libnvrtc.so.12", &[]);
            fake.compile("cuda.c", "driver/libcuda.so.1", &[]);
            fake
        })
    }

    fn compile(&self, source: &str, library: &str, more: &[&str]) {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda");
        let target = self.folder.path().join(library);
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("it can be made");
        let name = target.file_name().expect("a name").to_string_lossy().into_owned();
        let output = Command::new("cc")
            .current_dir(self.folder.path())
            .args(["-O1", "-Wall", "-shared", "-fPIC", "-o"])
            .arg(&target)
            .arg(sources.join(source))
            .args(more)
            .args(["-pthread", &format!("-Wl,-soname,{name}")])
            .output()
            .expect("a C compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
