//! `doctor` and `selftest`: what a machine has, and that it computes what it should. Without a GPU, and with a fake driver.

mod common;

#[cfg(feature = "cuda")]
use common::check;
use common::fake_cuda::FakeCuda;
use common::run::parsed;
use common::{Folder, Output};
use serde_json::Value;

/// The checks of one name.
fn named<'a>(report: &'a Value, name: &str) -> Vec<&'a Value> {
    report["checks"].as_array().unwrap().iter().filter(|check| check["name"] == name).collect()
}

fn doctor(environment: &[(&str, &str)]) -> Output {
    Folder::new().run_env(&["doctor", "--json"], environment)
}

#[test]
fn a_machine_without_a_gpu_is_well() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let output = doctor(&[]);
    let report = parsed(&output);
    assert!(output.status.success() && report["ok"] == true, "{output}");
    for name in ["build", "cpu", "memory", "hub cache", "checkpoints"] {
        assert_eq!(named(&report, name)[0]["status"], "ok", "{name}: {output}");
    }
    for (name, library) in [("driver", "libcuda.so.1"), ("nccl", "libnccl.so.2")] {
        let check = named(&report, name)[0];
        assert_eq!(check["status"], "warning", "{output}");
        assert!(check["detail"].as_str().unwrap().contains(library), "{check}");
        assert!(check["hint"].as_str().unwrap().contains("LD_LIBRARY_PATH"), "{check}");
    }
    let page = Folder::new().run(&["doctor"]);
    assert!(page.status.success() && page.stdout.contains("warning  driver "), "{page}");
}

#[test]
fn gpus_and_nccl_are_listed() {
    let path = FakeCuda::get().path().display().to_string();
    let environment = [("LD_LIBRARY_PATH", path.as_str()), ("FAKE_CUDA_GPUS", "3"), ("CUDA_VISIBLE_DEVICES", "2,1")];
    let report = parsed(&doctor(&environment));
    let gpus = named(&report, "gpu");
    let details: Vec<&str> = gpus.iter().map(|gpu| gpu["detail"].as_str().unwrap()).collect();
    let uuid = "GPU-00000000-0000-0000-0000-000000000002";
    let first = format!("cuda:0 Fake GPU 2, 2.0 GiB, compute capability 9.0, {uuid}, 1.0 GiB free");
    assert_eq!(details[0], first, "{report}");
    assert!(details.len() == 2 && details[1].starts_with("cuda:1 Fake GPU 1"), "{report}");
    assert_eq!(named(&report, "peers")[0]["status"], "ok");
    let nccl = named(&report, "nccl")[0]["detail"].as_str().unwrap().to_owned();
    assert!(nccl.contains("NCCL 2.30.7") && nccl.contains(&path), "{nccl}");
    assert!(named(&report, "driver")[0]["detail"].as_str().unwrap().contains("CUDA up to 12.4"), "{report}");
}

#[test]
fn a_driver_that_does_not_start_is_a_failure() {
    let path = FakeCuda::get().path().display().to_string();
    let broken = doctor(&[("LD_LIBRARY_PATH", path.as_str()), ("FAKE_CUDA_INIT", "999")]);
    assert_eq!(broken.status.code(), Some(1), "{broken}");
    let report = parsed(&broken);
    assert_eq!((&report["ok"], &named(&report, "driver")[0]["status"]), (&Value::from(false), &Value::from("failure")));
    // What containers on CPU machines often have.
    let absent = doctor(&[("LD_LIBRARY_PATH", path.as_str()), ("FAKE_CUDA_INIT", "100")]);
    assert!(absent.status.success(), "{absent}");
}

#[test]
fn a_folder_that_cannot_be_written_to_is_a_failure() {
    let folder = Folder::new();
    folder.write("chk", b"a file in its place");
    let output = folder.run(&["doctor", "--json"]);
    let report = parsed(&output);
    let check = named(&report, "checkpoints")[0];
    assert_eq!((output.status.code(), &check["status"]), (Some(1), &Value::from("failure")), "{output}");
    assert!(check["detail"].as_str().is_some_and(|detail| detail.contains("it is a file")), "{output}");
}

/// Every question before Burn's backend is touched, which panics where something is missing.
#[cfg(feature = "cuda")]
#[test]
fn device_cuda_says_what_is_missing() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let folder = Folder::new();
    let fake = FakeCuda::get();
    let (all, driver) = (fake.path().display().to_string(), fake.driver_path().display().to_string());
    for header in ["cuda_runtime.h", "mma.h", "crt/mma.h"] {
        folder.write(&format!("toolkit/include/{header}"), b"");
    }
    let toolkit = folder.path().join("toolkit").display().to_string();
    let run = |device: &str, environment: &[(&str, &str)]| {
        folder.run_env(&["hidden", "--model", "synthetic:small", "--ids", "1", "--device", device], environment)
    };
    check("no driver", &run("cuda", &[("LD_LIBRARY_PATH", "")]), 1, &["device `cuda`", "libcuda.so.1", "hint:"]);
    let none = [("LD_LIBRARY_PATH", all.as_str()), ("FAKE_CUDA_GPUS", "0")];
    check("no GPU", &run("cuda", &none), 1, &["shows no GPU", "CUDA_VISIBLE_DEVICES"]);
    let one = run("cuda:3", &[("LD_LIBRARY_PATH", all.as_str())]);
    check("another GPU", &one, 1, &["device `cuda:3`", "GPU 3 is not there", "shows 1"]);
    let alone = run("cuda", &[("LD_LIBRARY_PATH", driver.as_str())]);
    check("no compiler", &alone, 1, &["libnvrtc.so", "tried", "LD_LIBRARY_PATH"]);
    let nowhere = [("LD_LIBRARY_PATH", all.as_str()), ("CUDA_PATH", "/nowhere")];
    check("no headers", &run("cuda", &nowhere), 1, &["/nowhere/include/cuda_runtime.h", "CUDA_PATH"]);
    let little = [("LD_LIBRARY_PATH", all.as_str()), ("CUDA_PATH", toolkit.as_str()), ("FAKE_CUDA_FREE_MIB", "100")];
    check(
        "little memory",
        &run("cuda", &little),
        1,
        &["`synthetic:small` needs 0.", "0.1 GiB are free (cuda:0)", "hint:"],
    );
    // `auto` goes on without it, and says why.
    let auto = run("auto", &[("LD_LIBRARY_PATH", driver.as_str())]);
    assert!(auto.status.success(), "{auto}");
}

#[test]
fn selftest_passes_on_the_cpu_and_says_what_it_cannot_show() {
    let folder = Folder::new();
    let output = folder.run(&["selftest", "--device", "cpu", "--quick", "--json"]);
    let report = parsed(&output);
    assert!(output.status.success() && report["ok"] == true, "{output}");
    let status = |name: &str| named(&report, name)[0]["status"].clone();
    for name in
        ["hidden states, transformers", "gradients, transformers", "nn, two workers, grpc", "nn, a worker killed, grpc"]
    {
        assert_eq!(status(name), "passed", "{output}");
    }
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        assert_eq!(status("NCCL against the host's sum"), "skipped", "{output}");
    }
}

#[test]
fn selftest_reduces_over_the_nccl_there_is() {
    let path = FakeCuda::get().path().display().to_string();
    let folder = Folder::new();
    let temporary = folder.path().display().to_string();
    let environment = [("LD_LIBRARY_PATH", path.as_str()), ("TMPDIR", temporary.as_str()), ("FAKE_CUDA_GPUS", "2")];
    let output = folder.run_env(&["selftest", "--device", "cpu", "--quick", "--json"], &environment);
    let report = parsed(&output);
    assert!(output.status.success(), "{output}");
    for name in ["NCCL against the host's sum", "nn, two workers, nccl", "nn, a worker killed, nccl"] {
        assert_eq!(named(&report, name)[0]["status"], "passed", "{output}");
    }
}
