//! Several GPUs in one worker, and GPUs of different kinds in one run.

use super::*;

#[test]
fn a_model_over_two_gpus_gives_the_bytes_of_one() {
    let Some(gpu) = Gpu::get() else { return };
    let mut gpu = gpu.with("FAKE_CUDA_GPUS", "2");
    gpu.launched("nn", SHORT, "--workers 1 --run-id one");
    let with_nccl = FakeCuda::get().path();
    // The same libraries, and NCCL under the name that Burn's backend would look for.
    let named = gpu.folder.path().join("named");
    std::fs::create_dir(&named).unwrap();
    for entry in std::fs::read_dir(&with_nccl).unwrap().flatten() {
        std::fs::copy(entry.path(), named.join(entry.file_name())).unwrap();
    }
    std::fs::copy(with_nccl.join("libnccl.so.2"), named.join("libnccl.so")).unwrap();
    for (run, libraries) in [("without", with_nccl), ("with", named)] {
        gpu.set("LD_LIBRARY_PATH", &libraries.display().to_string());
        let output = gpu.launched("nn", SHORT, &format!("--workers 1 --devices-per-worker 2 --run-id {run}"));
        assert!(output.stderr.contains("cuda:0–1"), "{output}");
        assert!(gpu.bytes(run) == gpu.bytes("one"), "{run}: {output}");
    }
}

/// Turing multiplies f32 exactly, Ampere and later ones in TF32.
#[test]
fn gpus_with_other_arithmetic_are_not_in_one_run() {
    let Some(gpu) = Gpu::get() else { return };
    let gpu = gpu.with("FAKE_CUDA_GPUS", "2").with("FAKE_CUDA_CAPABILITY", "75,90");
    // Whether or not other bits are admitted.
    for deterministic in ["true", "false"] {
        let more = format!("--workers 2 --deterministic {deterministic} --run-id mixed-{deterministic}");
        let output = gpu.launch("nn", SHORT, &more).wait_at_most(TIMEOUT);
        assert!(output.stderr.contains("it would multiply in "), "{output}");
        assert!(output.stderr.contains("exact_f32: true"), "{output}");
    }
    let output = gpu.launched("nn", SHORT, "--workers 2 --exact-f32 true --run-id exact");
    assert!(!output.stderr.contains("it would multiply in "), "{output}");
}

#[test]
fn rounded_products_bind_training_and_nothing_else() {
    let Some(mut gpu) = Gpu::get() else { return };
    let half = SHORT.replace("--num-epochs 2", "--num-epochs 1");
    for (dtype, arithmetic) in [("f32", "tf32"), ("bf16", "bf16"), ("f16", "f16")] {
        gpu.set("FAKE_CUDA_CAPABILITY", "90");
        let output = gpu.launched("nn", &half, &format!("--workers 1 --dtype {dtype} --run-id {dtype}"));
        assert!(output.stderr.contains(&format!("products in {arithmetic}")), "{output}");
        let file = format!("chk/{dtype}.safetensors");
        let inspected = gpu.succeed(&["inspect", &file]);
        assert!(inspected.stdout.contains(arithmetic), "{inspected}");
        // The exact GPU, and the CPU, go on with no such run; both evaluate it.
        let more = format!("--workers 1 --dtype {dtype} --run-id {dtype} --resume {file}");
        for (device, more) in [("cuda", format!("{more} --exact-f32 true")), ("cpu", more.clone())] {
            let output = gpu.start(&arguments("nn", SHORT, &format!("--device {device} {more}"))).wait_at_most(TIMEOUT);
            assert_eq!(output.status.code(), Some(1), "{dtype} on {device}: {output}");
            let said = format!("it would multiply in f32 on {device}");
            assert!(
                output.stderr.contains(&said) && output.stderr.contains(arithmetic),
                "{dtype} on {device}: {output}"
            );
            gpu.succeed(&["eval", "--checkpoint", &file, "--count", "8", "--device", device]);
        }
        gpu.launched("nn", SHORT, &more);
        gpu.launched("nn", SHORT, &format!("--workers 1 --dtype {dtype} --run-id {dtype}-whole"));
        assert!(gpu.bytes(dtype) == gpu.bytes(&format!("{dtype}-whole")), "{dtype}");
    }
}
