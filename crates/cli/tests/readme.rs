//! How the binary is started and read: the README's first command is `cargo run` without a package, so the workspace has
//! to leave cargo no choice of binaries; and what it prints may go to a pipe that closes.

use std::process::{Command, Stdio};

#[test]
fn cargo_run_finds_one_binary() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path", manifest])
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let defaults = said["workspace_default_members"].as_array().expect("a list");
    let mut binaries = Vec::new();
    for package in said["packages"].as_array().expect("a list").iter().filter(|p| defaults.contains(&p["id"])) {
        for target in package["targets"].as_array().expect("a list") {
            if target["kind"][0] == "bin" {
                binaries.push(target["name"].clone());
            }
        }
    }
    assert_eq!(binaries, ["numalign"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_panic() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/quickstart.yaml");
    for args in [vec!["generate", "nn", "--count", "200000", "--out", "-"], vec!["config", "show", config]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_numalign"))
            .args(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        assert!(args[0] != "generate" || (output.status.success() && said.is_empty()), "{args:?}: {output:?}");
    }
}

/// Autotuning chooses kernels by the clock, and fusion by what stands beside an operation: with either, two machines, or two
/// runs on one, could compute other bits. Neither is in the build, and it has to stay so.
#[test]
fn burns_cuda_backend_is_built_without_autotuning_and_fusion() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let output = Command::new(cargo)
        .args([
            "tree",
            "--offline",
            "--package",
            "numalign",
            "--features",
            "cuda",
            "--prefix",
            "none",
            "--format",
            "{p} | {f}",
        ])
        .args(["--manifest-path", manifest])
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["burn-cuda v", "burn-cubecl v"] {
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with(name)).collect();
        assert!(!lines.is_empty(), "{name} is not in the tree");
        for line in lines {
            let features = line.split('|').nth(1).unwrap_or_default();
            assert!(!features.contains("autotune") && !features.contains("fusion"), "{line}");
        }
    }
    assert!(!said.contains("burn-fusion v"), "fusion is in the tree");
}
