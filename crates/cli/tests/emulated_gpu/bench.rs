//! The script for GPU hosts runs whole: on hardware nothing but the GPU can fail.

use std::path::Path;
use std::process::Command;

use super::*;

#[test]
fn the_script_for_gpu_hosts_runs_whole() {
    let Some(gpu) = Gpu::get() else { return };
    let results = gpu.folder.path().join("results");
    let mut command = Command::new("bash");
    let output = common::without_foreign_variables(&mut command)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/gpu.sh"))
        .arg(&results)
        .envs(gpu.environment())
        .env("NUMALIGN", gpu.folder.program())
        .env("REHEARSAL", "1")
        .env("PYTHON", std::env::var("NUMALIGN_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned()))
        .output()
        .expect("bash");
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let summary = std::fs::read_to_string(results.join("summary.md")).expect("a summary");
    for part in ["| small 2×1 | f32 |", "| small 2×5 | bf16 |", " 0 failed"] {
        assert!(summary.contains(part), "{part} is missing in\n{summary}\n{said}");
    }
    for step in [
        "same-f32-f32-again",
        "same-bf16-bf16-again",
        "same-f32-nccl",
        "same-f32-two",
        "same-f32-killed",
        "same-mixed-mixed-two",
    ] {
        assert!(said.contains(&format!("== {step}: ok")), "{said}");
    }
}
