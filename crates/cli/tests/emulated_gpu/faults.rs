//! What goes wrong on a GPU: the process ends in words, nothing that was computed after it is used, and a run with another
//! worker recovers to the same bytes.

use super::*;
use crate::common::run::newest_step;

/// Kind and number of the call that fails, and what is said then. The numbers are far enough on that the model is loaded.
const FAULTS: [(&str, &str); 6] = [
    ("memory:12", "memory"),
    ("memory-once:12", "memory"),
    ("launch:900", "launch"),
    ("kernel:900", "launch failure"),
    ("sync:12", "launch failure"),
    ("compile:20", "of_the_fake"),
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
            ("memory:3", "memory"),
            ("memory-once:3", "memory"),
            ("launch:9", "launch"),
            ("kernel:9", "launch"),
            ("sync:1", "launch"),
            ("compile:4", "of_the_fake"),
        ] {
            gpu.set("FAKE_CUDA_FAULT", fault);
            let output = gpu.run(&["hidden", "--model", "demo", "--text", "12", "--device", "cuda"]);
            told_in_words(fault, &output, said);
            assert!(output.stdout.is_empty(), "{fault}: {output}");
        }
    }
}

/// A lone worker that fails again and again: the run ends, and holds nothing that came after the fault.
#[test]
fn a_fault_of_every_worker_ends_the_run_and_nothing_after_it_is_committed() {
    let Some(mut gpu) = Gpu::get() else { return };
    gpu.launched("nn", SHORT, "--workers 1 --run-id reference");
    let step = |name: &str| gpu_checkpoint(&gpu, name);
    let before: Vec<Option<Vec<u8>>> = (0..=8).map(|n| step(&format!("reference/step-{n}"))).collect();
    for memory in ["nan", "zero"] {
        gpu.set("FAKE_CUDA_NEW_MEMORY", memory);
        for (fault, said) in FAULTS {
            let run = format!("{}-{memory}", fault.replace(':', "-"));
            gpu.set("FAKE_CUDA_FAULT", fault);
            let output = gpu.launch("nn", SHORT, &format!("--workers 1 --run-id {run}")).wait_at_most(TIMEOUT);
            assert_eq!(output.status.code(), Some(1), "{run}: {output}");
            for word in ["error: ", "hint: ", said] {
                assert!(output.stderr.contains(word), "{run} does not say `{word}`: {output}");
            }
            assert!(!gpu.folder.path().join(format!("chk/{run}.safetensors")).exists(), "{run} has a final file");
            for (n, wanted) in before.iter().enumerate() {
                let found = gpu_checkpoint(&gpu, &format!("{run}/step-{n}"));
                assert!(found.is_none() || found == *wanted, "step {n} of {run} has other bytes: {output}");
            }
        }
    }
}

fn gpu_checkpoint(gpu: &Gpu, name: &str) -> Option<Vec<u8>> {
    std::fs::read(gpu.folder.path().join(format!("chk/{name}.safetensors"))).ok()
}

#[test]
fn a_fault_in_one_of_two_workers_is_recovered_from() {
    let Some(mut gpu) = Gpu::get() else { return };
    gpu.launched("nn", SHORT, "--workers 1 --run-id reference");
    for (fault, said) in FAULTS {
        let run = fault.replace(':', "-");
        let marker = gpu.path(&format!("{run}-happened"));
        gpu.set("FAKE_CUDA_FAULT", fault);
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
