//! A clock that stands before 1970 is an error in words at the start, and changes nothing during a run.

use std::path::PathBuf;

use super::*;
use crate::common::check;

const SAID: &[&str] = &["clock stands before 1970", "hint: set the clock"];
/// To about 1963.
const BACK: &str = "-2000000000";

/// A library that shifts a process's clock when it is preloaded.
fn shim(folder: &Folder) -> PathBuf {
    let (source, library) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/clock.c"), folder.path().join("clock.so"));
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
    let output = cc.output().expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

#[test]
fn a_clock_before_1970_is_said_and_does_not_hang() {
    let folder = Folder::new();
    let shim = shim(&folder);
    let shifted = [("LD_PRELOAD", shim.to_str().expect("a path")), ("CLOCK_SHIFT", BACK)];
    for line in ["launch nn", "coordinator nn --listen 127.0.0.1:0", "worker --coordinator http://127.0.0.1:9", "watch"]
    {
        let args: Vec<&str> = line.split_whitespace().collect();
        let output = folder.run_env(&args, &shifted);
        check(line, &output, 1, SAID);
        assert!(!output.stderr.contains("panicked"), "{line}: {output}");
    }
    assert!(!folder.path().join("chk").exists(), "nothing was begun");
    // What asks nobody for the time needs no clock.
    assert!(folder.run_env(&["hidden", "--model", "demo", "--ids", "1"], &shifted).status.success());
}

#[test]
fn a_clock_that_is_set_back_before_1970_during_a_run_changes_no_byte() {
    const LONGER: &str = "--workers 2 --num-epochs 400 --num-batches 2 --micro-batch-size 4 --checkpoint-every 100";
    let (folder, undisturbed) = (Folder::new(), Folder::new());
    let shim = shim(&folder);
    let shifted = [("LD_PRELOAD", shim.to_str().expect("a path")), ("CLOCK_SHIFT", BACK), ("CLOCK_DELAY", "2")];
    let output = folder.run_env(&arguments("nn", LONGER, ""), &shifted);
    assert!(output.status.success() && !output.stderr.contains("panicked"), "{output}");
    succeed(&undisturbed, "nn", LONGER, "");
    assert_eq!(bytes(&folder, "nn"), bytes(&undisturbed, "nn"));
}
