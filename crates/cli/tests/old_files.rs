//! Checkpoints that an older build wrote (protocol 4) go on being read: they resume to the bytes that build reached, and
//! evaluate to the figures it printed.

mod common;

use std::path::Path;

use common::Folder;
use common::run::{bytes, succeed};
use numalign_checkpoint::Checkpoint;

/// The settings of the runs in `testdata/checkpoints/protocol-4`.
const SETTINGS: &str = "--num-epochs 4 --num-batches 10 --batch-size 20 --micro-batch-size 4 --mixed-max-numbers 4 \
                        --checkpoint-every 7 --keep-checkpoints 100 --lr 0.01";

/// Stage, and the mean absolute error that the older build's `eval --count 200` printed for its final file.
const RUNS: [(&str, f64); 3] = [("nn", 1.8228377743035638), ("text", 22.032922458315447), ("mixed", 6.29600250206958)];

/// The final file of a run as the older build would have written it: stages with text have gained the tokenizer's
/// fingerprint, all else is the same to the byte.
fn as_before(folder: &Folder, stage: &str) -> Vec<u8> {
    let written = bytes(folder, stage);
    let mut checkpoint = Checkpoint::from_bytes(Path::new(stage), &written).expect("a checkpoint");
    assert_eq!(checkpoint.to_bytes(), written);
    assert_eq!(checkpoint.identity.tokenizer_fingerprint.take().is_some(), stage != "nn", "stage {stage}");
    checkpoint.to_bytes()
}

#[test]
fn an_older_builds_checkpoint_resumes_to_the_bytes_it_reached() {
    let folder = Folder::new();
    folder.copy_fixture("checkpoints/protocol-4", "old");
    for (stage, _) in RUNS {
        succeed(&folder, stage, SETTINGS, &format!("--run-id {stage} --resume old/{stage}-step-21.safetensors"));
        let reached = folder.read(&format!("old/{stage}-final.safetensors"));
        assert!(as_before(&folder, stage) == reached, "stage {stage} resumed from step 21 of an older build");
    }
}

#[test]
fn a_run_from_the_start_gives_an_older_builds_bytes() {
    let folder = Folder::new();
    folder.copy_fixture("checkpoints/protocol-4", "old");
    for (stage, _) in RUNS {
        succeed(&folder, stage, SETTINGS, &format!("--run-id {stage}"));
        let reached = folder.read(&format!("old/{stage}-final.safetensors"));
        assert!(as_before(&folder, stage) == reached, "stage {stage} from the start");
    }
}

#[test]
fn an_older_builds_checkpoint_evaluates_to_the_figures_it_printed() {
    let folder = Folder::new();
    folder.copy_fixture("checkpoints/protocol-4", "old");
    for (stage, expected) in RUNS {
        let file = format!("old/{stage}-final.safetensors");
        let output = folder.run(&["eval", "--checkpoint", &file, "--count", "200", "--json"]);
        assert!(output.status.success(), "{stage}: {output}");
        let figures: serde_json::Value = serde_json::from_str(&output.stdout).expect("one JSON object");
        assert_eq!(figures["mae"].as_f64(), Some(expected), "{stage}: {output}");
        // Once, and in stages that read text only.
        let warnings = output.stderr.matches("without the tokenizer's fingerprint").count();
        assert_eq!(warnings, usize::from(stage != "nn"), "{stage}: {output}");
        let verified = folder.run(&["verify", &file]);
        assert!(verified.status.success(), "{stage}: {verified}");
    }
}
