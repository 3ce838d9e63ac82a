//! What NVIDIA ships and what works without a GPU: its run-time compilers take every kernel that cubecl writes, and its headers
//! say what numalign assumes. `NUMALIGN_TEST_NVIDIA` names the folder that `tools/nvidia/fetch.sh` filled; skipped in words
//! without it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// Folders of the fetched packages whose names begin with `kind`.
#[allow(clippy::print_stderr, reason = "there is nobody else to tell")]
fn packages(kind: &str) -> Vec<PathBuf> {
    let Ok(folder) = std::env::var("NUMALIGN_TEST_NVIDIA") else {
        eprintln!("skipped: NUMALIGN_TEST_NVIDIA names no folder with NVIDIA's packages (tools/nvidia/fetch.sh)");
        return Vec::new();
    };
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}")).flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(kind)));
    found.sort();
    assert!(!found.is_empty(), "{folder} holds no {kind}…");
    found
}

/// The folders below `root` that hold `name`.
fn holding(root: &Path, name: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        if folder.join(name).is_file() {
            found.push(folder.clone());
        }
        let inside = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(inside.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulated_gpu/nvidia")
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{stdout}{stderr}");
    stdout.into_owned()
}

#[test]
fn nvidias_headers_say_what_numalign_assumes() {
    for nccl in packages("nccl") {
        for cuda in packages("cuda") {
            let mut command = Command::new("cc");
            command.args(["-fsyntax-only", "-Wall", "-Werror", "-I"]).arg(sources().join("stubs"));
            for folder in holding(&nccl, "nccl.h").into_iter().chain(holding(&cuda, "cuda.h")) {
                command.arg("-I").arg(folder);
            }
            succeed(command.arg(sources().join("abi.c")));
        }
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "how many kernels of which compiler")]
fn nvidias_compilers_take_every_kernel() {
    let compilers = packages("cuda");
    if compilers.is_empty() {
        return;
    }
    let Some(mut gpu) = Gpu::get() else { return };
    let program = gpu.path("compile");
    succeed(Command::new("cc").args(["-O1", "-Wall", "-o", &program]).arg(sources().join("compile.c")).arg("-ldl"));
    for (capability, architecture) in [("80", "sm_80"), ("90", "sm_90a"), ("100", "sm_100a")] {
        let dump = gpu.path(&format!("dump-{capability}"));
        gpu.set("FAKE_CUDA_CAPABILITY", capability);
        gpu.set("FAKE_CUDA_DUMP", &dump);
        // Every kernel is compiled anew in each process, so that it is dumped.
        gpu.set("XDG_CACHE_HOME", "");
        gpu.set("HOME", "");
        for dtype in ["f32", "bf16", "f16"] {
            for positions in ["1", "16"] {
                let step = ["bench", "step", "--model", "demo", "--batch", "8", "--steps", "1", "--device", "cuda"];
                gpu.succeed(&[&step[..], &["--positions", positions, "--dtype", dtype]].concat());
            }
        }
        for name in ["llama-grouped", "qwen3-head-norms", "mistral-window", "small-f32"] {
            let model = crate::common::fixtures().join(name).display().to_string();
            gpu.succeed(&["bench", "step", "--model", &model, "--steps", "1", "--positions", "5", "--device", "cuda"]);
        }
        gpu.launched("mixed", SHORT, &format!("--workers 1 --run-id mixed-{capability}"));
        let kernels: Vec<PathBuf> = std::fs::read_dir(&dump).unwrap().flatten().map(|entry| entry.path()).collect();
        for compiler in &compilers {
            let library = holding(compiler, "libnvrtc.so.12").into_iter().map(|folder| folder.join("libnvrtc.so.12"));
            let newer = holding(compiler, "libnvrtc.so.13").into_iter().map(|folder| folder.join("libnvrtc.so.13"));
            let library = library.chain(newer).next().expect("a compiler");
            let mut command = Command::new(&program);
            command.arg(library).arg(architecture);
            for header in ["cuda_runtime.h", "crt/mma.h"] {
                command.args(holding(compiler, header));
            }
            let said = succeed(command.arg("--").args(&kernels));
            assert!(kernels.len() > 50, "{said}");
            println!("{}", said.trim());
        }
    }
}
