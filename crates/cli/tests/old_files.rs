//! Checkpoints that an older build wrote (protocol 4) go on being read: they resume to the bytes that build reached, and
//! evaluate to the figures it printed.

mod common;

use common::Folder;
use common::run::{bytes, succeed};

/// The settings of the runs in `testdata/checkpoints/protocol-4`.
const SETTINGS: &str = "--num-epochs 4 --num-batches 10 --batch-size 20 --micro-batch-size 4 --mixed-max-numbers 4 \
                        --checkpoint-every 7 --keep-checkpoints 100 --lr 0.01";

/// Stage, and the mean absolute error that the older build's `eval --count 200` printed for its final file.
const RUNS: [(&str, f64); 3] = [("nn", 1.8228377743035638), ("text", 22.032922458315447), ("mixed", 6.29600250206958)];

#[test]
fn an_older_builds_checkpoint_resumes_to_the_bytes_it_reached() {
    let folder = Folder::new();
    folder.copy_fixture("checkpoints/protocol-4", "old");
    for (stage, _) in RUNS {
        succeed(&folder, stage, SETTINGS, &format!("--run-id {stage} --resume old/{stage}-step-21.safetensors"));
        let reached = folder.read(&format!("old/{stage}-final.safetensors"));
        assert!(bytes(&folder, stage) == reached, "stage {stage} resumed from step 21 of an older build");
    }
}

#[test]
fn a_run_from_the_start_gives_an_older_builds_bytes() {
    let folder = Folder::new();
    folder.copy_fixture("checkpoints/protocol-4", "old");
    for (stage, _) in RUNS {
        succeed(&folder, stage, SETTINGS, &format!("--run-id {stage}"));
        let reached = folder.read(&format!("old/{stage}-final.safetensors"));
        assert!(bytes(&folder, stage) == reached, "stage {stage} from the start");
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
        let verified = folder.run(&["verify", &file]);
        assert!(verified.status.success(), "{stage}: {verified}");
    }
}
