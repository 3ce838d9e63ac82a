//! Everything wrong that can be given to the program ends in one clear error: exit code 1 or 2, a message that names what is
//! wrong, no panic, no hang, nothing damaged on disk.

#[path = "../common/mod.rs"]
mod common;

mod files;
mod models;
mod network;
mod runs;
mod settings;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{Folder, Output, check, words};

const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// A run of two steps on the demo model.
const TINY: &[&str] = &["--no-eval", "--workers", "1", "--num-epochs", "1", "--num-batches", "2"];

/// Runs it, expects the refusal, and finds every file that was there as it was.
fn refuse(folder: &Folder, args: &[&str], code: i32, said: &[&str]) -> Output {
    refuse_env(folder, args, &[], code, said)
}

fn refuse_env(folder: &Folder, args: &[&str], envs: &[(&str, &str)], code: i32, said: &[&str]) -> Output {
    let before = folder.contents();
    let output = folder.run_env(args, envs);
    check(&args.join(" "), &output, code, said);
    unharmed(&args.join(" "), folder, &before);
    assert_eq!(output.stdout, "", "{}: results only on standard output", args.join(" "));
    let errors = output.stderr.lines().filter(|line| line.starts_with("error:")).count();
    assert!(errors <= 1, "{}: one error is enough: {output}", args.join(" "));
    output
}

/// Every file of `before` is there with the same bytes, and nothing temporary is left.
fn unharmed(what: &str, folder: &Folder, before: &[(PathBuf, Vec<u8>)]) {
    let after = folder.contents();
    for (path, bytes) in before {
        if path.ends_with("lock") || path.ends_with("metrics.jsonl") {
            continue;
        }
        let same = after.iter().any(|(other, now)| other == path && now == bytes);
        assert!(same, "{what}: {} changed", path.display());
    }
    for (path, _) in &after {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert!(!name.ends_with(".tmp") && !name.ends_with(".writable"), "{what} left {}", path.display());
    }
}

/// A checkpoint of a run of two steps of stage nn on the demo model.
fn checkpoint() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = Folder::new();
        let output = folder.run(&words(&[&["launch", "nn"], TINY]));
        assert!(output.status.success(), "{output}");
        folder.read("chk/nn.safetensors")
    })
}

/// As [`TINY`], for a coordinator alone.
const ONE: &[&str] = &["--workers", "1", "--num-epochs", "1", "--num-batches", "2"];

/// A coordinator that waits for one worker, and its address.
fn coordinator(folder: &Folder, args: &[&str]) -> (common::Child, String) {
    let mut child = folder.spawn(&words(&[&["coordinator", "nn", "--listen", "127.0.0.1:0"], args]));
    let address = common::run::listening_address(&mut child);
    (child, address)
}
