//! Compiled kernels are kept: what one process compiled, the next one finds.

use super::*;

/// How many kernels were compiled or looked up, by the emulator's log.
fn asked_for(gpu: &Gpu) -> usize {
    gpu.log("compiled").lines().count()
}

#[test]
fn a_second_start_of_a_worker_compiles_nothing() {
    let Some(gpu) = Gpu::get() else { return };
    let log = gpu.path("compiled");
    let gpu = gpu.with("FAKE_CUDA_COMPILED", &log);
    for stage in ["nn", "mixed"] {
        let before = asked_for(&gpu);
        gpu.launched(stage, SHORT, &format!("--workers 1 --run-id {stage}"));
        let first = asked_for(&gpu) - before;
        assert!(first > 10, "{stage}: {first} kernels");
        gpu.launched(stage, SHORT, &format!("--workers 1 --run-id {stage}-again"));
        assert_eq!(asked_for(&gpu) - before - first, 0, "{stage}: the second start compiled kernels");
        assert!(gpu.bytes(stage) == gpu.bytes(&format!("{stage}-again")), "{stage}");
    }
}

/// Whatever happens to the file, kernels are compiled again and the bytes are the same.
#[test]
fn a_damaged_cache_costs_time_only() {
    let Some(gpu) = Gpu::get() else { return };
    let log = gpu.path("compiled");
    let gpu = gpu.with("FAKE_CUDA_COMPILED", &log);
    gpu.launched("nn", SHORT, "--workers 2 --run-id reference");
    let folder = gpu.folder.path().join("cache/numalign/kernels");
    let entries = || std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    let file = entries().find(|path| path.extension().is_some_and(|end| end == "kernels")).expect("a cache");
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    for (name, damaged) in [("cut", &whole[..whole.len() / 2]), ("flipped", &flipped[..]), ("empty", b"")] {
        std::fs::write(&file, damaged).unwrap();
        let before = asked_for(&gpu);
        gpu.launched("nn", SHORT, &format!("--workers 1 --run-id {name}"));
        assert!(asked_for(&gpu) > before, "{name}: nothing was compiled again");
        assert!(gpu.bytes(name) == gpu.bytes("reference"), "{name}");
    }
    let abandoned = entries().filter(|path| path.is_dir()).count();
    assert!(abandoned <= 2, "{abandoned} folders of processes that ended");
}
