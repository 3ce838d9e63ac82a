//! What goes wrong on a GPU: the process ends in words, nothing that was computed after it is used, and a run with another
//! worker recovers to the same bytes.

use super::*;
use crate::common::run::newest_step;

/// Kind and number of the call that fails, and what is said then: while the model is loaded or before the first step is made,
/// however many kernels a step has.
const FAULTS: [(&str, &str); 6] = [
    ("memory-once:2", "allocate"),
    ("launch:60", "LAUNCH_FAILED"),
    ("kernel:60", "LAUNCH_FAILED"),
    ("sync:2", "LAUNCH_FAILED"),
    // cubecl 0.10 keeps the driver's word for a copy to itself.
    ("copy:20", "error happened during execution"),
    ("compile:5", "of_the_fake"),
];

/// At most so many lines tell of a fault.
const MOST_LINES: usize = 20;

fn told_in_words(what: &str, output: &Output, said: &str) {
    assert_eq!(output.status.code(), Some(1), "{what}: {output}");
    assert!(!output.stderr.contains("panicked"), "{what}: {output}");
    for word in ["error: ", "hint: ", said] {
        assert!(output.stderr.contains(word), "{what} does not say `{word}`: {output}");
    }
    assert!(output.stderr.lines().count() <= MOST_LINES, "{what} says too much: {output}");
}

#[test]
fn a_fault_ends_a_command_in_words() {
    let Some(mut gpu) = Gpu::get() else { return };
    for memory in ["nan", "zero"] {
        gpu.set("FAKE_CUDA_NEW_MEMORY", memory);
        for (fault, said) in [
            ("memory:1", "allocate"),
            ("memory-once:2", "allocate"),
            ("launch:9", "LAUNCH_FAILED"),
            ("kernel:9", "LAUNCH_FAILED"),
            ("sync:1", "LAUNCH_FAILED"),
            ("compile:4", "of_the_fake"),
        ] {
            set_fault(&mut gpu, fault, &format!("{memory}-{}", fault.replace(':', "-")));
            let output = gpu.run(&["hidden", "--model", "demo", "--text", "12", "--device", "cuda"]);
            told_in_words(fault, &output, said);
            assert!(output.stdout.is_empty(), "{fault}: {output}");
        }
    }
}

/// The reason is told once for each worker, in its own words and at the end of what is said.
fn ends_in_words(what: &str, output: &Output, said: &str) {
    assert_eq!(output.status.code(), Some(1), "{what}: {output}");
    assert!(!output.stderr.contains("panicked"), "{what}: {output}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    let last = lines[lines.len().saturating_sub(MOST_LINES)..].join("\n");
    for word in ["error: ", "hint: ", said] {
        assert!(last.contains(word), "{what} does not say `{word}` at the end: {output}");
    }
}

/// A kernel that was compiled once is not compiled again: each run has a cache of its own.
fn set_fault(gpu: &mut Gpu, fault: &str, run: &str) {
    let cache = gpu.path(&format!("cache-{run}"));
    gpu.set("XDG_CACHE_HOME", &cache);
    gpu.set("FAKE_CUDA_FAULT", fault);
}

/// As new memory of a GPU often is: numbers computed on it look like numbers.
const ZEROS: (&str, &str) = ("FAKE_CUDA_NEW_MEMORY", "zero");

#[test]
fn a_fault_of_every_worker_ends_the_run_without_a_step() {
    let Some(gpu) = Gpu::get() else { return };
    let mut gpu = gpu.with(ZEROS.0, ZEROS.1);
    for (fault, said) in FAULTS {
        let run = fault.replace(':', "-");
        set_fault(&mut gpu, fault, &run);
        let output = gpu.launch("nn", SHORT, &format!("--workers 1 --run-id {run}")).wait_at_most(TIMEOUT);
        ends_in_words(&run, &output, said);
        assert!(!gpu.folder.path().join(format!("chk/{run}.safetensors")).exists(), "{run} has a final file");
        assert_eq!(newest_step(&gpu.folder.path().join("chk").join(&run)), 0, "{run}: {output}");
    }
}

/// Every process fails once it has made some steps: what was committed before holds, and nothing that came after.
#[test]
fn a_fault_in_the_middle_costs_no_byte() {
    let Some(gpu) = Gpu::get() else { return };
    let mut gpu = gpu.with(ZEROS.0, ZEROS.1);
    gpu.launched("nn", SHORT, "--workers 1 --run-id reference");
    let checkpoint = |gpu: &Gpu, run: &str, step: u64| {
        std::fs::read(gpu.folder.path().join(format!("chk/{run}/step-{step:08}.safetensors"))).expect("a checkpoint")
    };
    // A wait for the device ends each forward and each backward pass: four micro-batches are done before the twelfth.
    set_fault(&mut gpu, "sync:12", "middle");
    let output = gpu.launched("nn", SHORT, "--workers 1 --run-id middle");
    assert!(output.stderr.contains("LAUNCH_FAILED"), "{output}");
    assert!(gpu.bytes("middle") == gpu.bytes("reference"), "{output}");
    for step in 1..=8 {
        assert!(checkpoint(&gpu, "middle", step) == checkpoint(&gpu, "reference", step), "step {step}: {output}");
    }
}

#[test]
fn a_fault_in_one_of_two_workers_is_recovered_from() {
    let Some(mut gpu) = Gpu::get() else { return };
    gpu.launched("nn", SHORT, "--workers 1 --run-id reference");
    for (fault, said) in FAULTS {
        let run = fault.replace(':', "-");
        let marker = gpu.path(&format!("{run}-happened"));
        set_fault(&mut gpu, fault, &run);
        gpu.set("FAKE_CUDA_FAULT_ONCE", &marker);
        let output = gpu.launched("nn", SHORT, &format!("--workers 2 --run-id {run}"));
        assert!(std::path::Path::new(&marker).exists(), "{fault} never happened: {output}");
        assert!(output.stderr.contains(said), "{fault} is not told: {output}");
        assert!(gpu.bytes(&run) == gpu.bytes("reference"), "{fault}: {output}");
        assert_eq!(newest_step(&gpu.folder.path().join("chk").join(&run)), 8, "{fault}: {output}");
    }
}

#[test]
fn missing_libraries_are_named_before_a_weight_is_read() {
    let Some(gpu) = Gpu::get() else { return };
    // A machine that has the real ones cannot show their absence.
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let hidden = ["hidden", "--model", "demo", "--text", "12", "--device", "cuda"];
    let driver = FakeCuda::get().driver_path().display().to_string();
    let gpu = gpu.with("LD_LIBRARY_PATH", "");
    told_in_words("no driver", &gpu.run(&hidden), "libcuda.so.1");
    let gpu = gpu.with("LD_LIBRARY_PATH", &driver);
    told_in_words("no compiler", &gpu.run(&hidden), "libnvrtc.so");
    let both = FakeCuda::get().path().display().to_string();
    let gpu = gpu.with("LD_LIBRARY_PATH", &both).with("CUDA_PATH", "/nowhere");
    told_in_words("no headers", &gpu.run(&hidden), "cuda_runtime.h");
}
