//! Runs: their folder, their destination, how they are continued, their device.

use super::*;

#[test]
fn a_destination_that_cannot_be_written_is_found_out_before_training() {
    let folder = Folder::new();
    folder.write("file", "");
    // A finished run, which the next ones would replace.
    let output = folder.run(&words(&[&["launch", "nn"], TINY]));
    assert!(output.status.success(), "{output}");
    assert!(folder.path().join("chk/nn/step-00000002.safetensors").exists());
    let to = |path: &str, code: i32, said: &[&str]| {
        let args = words(&[&["launch", "nn", "--model-path-save", path], TINY]);
        let output = refuse(&folder, &args, code, said);
        assert!(!output.stderr.contains("epoch"), "{output}");
    };
    to("file/x.safetensors", FAILED, &["error:", "file/x.safetensors", "hint:"]);
    to("/proc/x.safetensors", FAILED, &["error:", "/proc/x.safetensors", "hint:"]);
    to("chk/", USAGE, &["error:", "model_path_save", "folder", "hint:"]);
    to("chk", USAGE, &["error:", "model_path_save", "folder", "hint:"]);
    // The destination that nobody named may be a folder too.
    std::fs::create_dir(folder.path().join("chk/other.safetensors")).unwrap();
    let args = words(&[&["launch", "nn", "--run-id", "other"], TINY]);
    refuse(&folder, &args, FAILED, &["error:", "chk/other.safetensors", "hint:"]);
    // A run that cannot begin leaves the finished one alone.
    folder.copy_fixture("small-f32", "model");
    let args = words(&[&["launch", "nn", "--run-id", "own", "--model-name", "model"], TINY]);
    let output = folder.run(&args);
    assert!(output.status.success(), "{output}");
    std::fs::remove_file(folder.path().join("model/config.json")).unwrap();
    refuse(&folder, &args, FAILED, &["error:", "config.json", "hint:"]);
    assert!(folder.path().join("chk/own/step-00000002.safetensors").exists());
    // chk may not be a folder.
    let folder = Folder::new();
    folder.write("chk", "");
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &["error:", "chk", "hint:"]);
}

#[test]
fn a_run_folder_in_use_is_refused() {
    let folder = Folder::new();
    let (mut first, _) = coordinator(&folder, ONE);
    // By then it has its lock, and what it tried in the folder is gone.
    first.wait_for_stderr("waiting for 1 worker");
    let said = ["error:", "chk/nn", "in use", "hint:", "--run-id"];
    refuse(&folder, &words(&[&["coordinator", "nn", "--listen", "127.0.0.1:0"], ONE]), FAILED, &said);
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &said);
    refuse(&folder, &words(&[&["launch", "nn", "--resume", "auto"], TINY]), FAILED, &said);
    drop(first);
    // The lock ends with its holder.
    let output = folder.run(&words(&[&["launch", "nn"], TINY]));
    assert!(output.status.success(), "{output}");
}

#[test]
fn unfinished_changed_and_unreadable_runs_are_refused() {
    let folder = Folder::new();
    // Two steps of four: the first checkpoint of a run of twice the length.
    let output = folder.run(&words(&[&["launch", "nn", "--checkpoint-every", "1"], TINY]));
    assert!(output.status.success(), "{output}");
    let (half, end) = ("chk/nn/step-00000001.safetensors", "chk/nn/step-00000002.safetensors");
    std::fs::remove_file(folder.path().join(end)).unwrap();
    let said = ["error:", "unfinished", "step 1 of 2", "hint:", "--resume auto", "--run-id"];
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &said);
    // Every changed setting, with both values.
    let changed = ["launch", "nn", "--resume", "auto", "--lr", "0.5", "--seed", "7"];
    let said =
        ["error:", "lr: the checkpoint has 0.003", "0.5", "seed: the checkpoint has 0", "7", "hint:", "--run-id"];
    refuse(&folder, &words(&[&changed, TINY]), FAILED, &said);
    refuse(
        &folder,
        &words(&[&["launch", "text", "--run-id", "nn", "--resume", "auto"], TINY]),
        FAILED,
        &["stage", "nn", "text"],
    );
    let fewer = ["launch", "nn", "--run-id", "x", "--resume", half, "--no-eval", "--num-batches", "2", "--num-epochs"];
    let grown = folder.run(&words(&[&fewer, &["2", "--workers", "1"]]));
    assert!(grown.status.success(), "{grown}");
    let shrunk =
        ["launch", "nn", "--run-id", "x", "--resume", "auto", "--no-eval", "--num-batches", "2", "--num-epochs", "1"];
    refuse(&folder, &shrunk, FAILED, &["error:", "num_epochs: the checkpoint has 2", "hint:"]);
    folder.write("data.jsonl", "{\"input\": 1, \"output\": 1}\n");
    let data = ["launch", "nn", "--resume", "auto", "--dataset.file", "data.jsonl"];
    refuse(&folder, &words(&[&data, TINY]), FAILED, &["error:", "dataset.file", "hint:"]);
    // A damaged checkpoint is passed over with --resume auto, where an older one is whole.
    let whole = folder.read(half);
    folder.write(end, &whole[..whole.len() / 2]);
    let output = folder.run(&words(&[&["launch", "nn", "--resume", "auto"], TINY]));
    assert!(output.status.success() && output.stderr.contains("passed over"), "{output}");
    // Without --resume a folder with nothing readable is not wiped.
    for entry in std::fs::read_dir(folder.path().join("chk/nn")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            std::fs::write(path, "damaged").unwrap();
        }
    }
    let said = ["error:", "chk/nn", "damaged", "hint:", "--run-id"];
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &said);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn cuda_is_refused_by_a_build_without_it() {
    let folder = Folder::new();
    folder.write("nn.safetensors", checkpoint());
    for device in ["cuda", "cuda:1"] {
        let said = ["error:", device, "without CUDA", "hint:", "--device"];
        refuse(&folder, &["hidden", "--model", "demo", "--ids", "1", "--device", device], FAILED, &said);
        refuse(&folder, &["eval", "--checkpoint", "nn.safetensors", "--device", device], FAILED, &said);
        refuse(&folder, &["bench", "step", "--model", "demo", "--device", device], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "nn", "--device", device], TINY]), FAILED, &said);
    }
}

#[test]
fn a_run_that_diverges_ends_with_an_error() {
    let folder = Folder::new();
    let args =
        ["launch", "nn", "--no-eval", "--workers", "1", "--num-epochs", "1", "--num-batches", "20", "--lr", "1e38"];
    check("a huge lr", &folder.run(&args), FAILED, &["error:", "not finite", "hint:", "lower lr"]);
}
