//! Event files of a run that was killed and resumed, read by TensorBoard's own reader.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::common::Folder;
use crate::common::run::{kill, newest_step, succeed_line, wait_for};

#[test]
fn tensorboard_reads_every_point_of_a_killed_and_resumed_run_once() {
    let folder = Folder::new();
    let settings = "launch nn --run-id shown --tensorboard true --workers 1 --num-epochs 60 --num-batches 20 \
                    --checkpoint-every 20 --eval-every 5 --eval-samples 20 --eval-count 50";
    let slow = format!("{settings} --chaos slow=5");
    let mut run = folder.spawn(&slow.split_whitespace().collect::<Vec<_>>());
    let run_folder = folder.path().join("chk/shown");
    let files = || std::fs::read_dir(run_folder.join("tensorboard")).map_or(0, |entries| entries.flatten().count());
    wait_for("events of the first process", || newest_step(&run_folder) >= 200 && files() == 1);
    kill(run.id() as i32, Signal::KILL);
    assert!(!run.wait().status.success());
    succeed_line(&folder, &format!("{settings} --resume auto"));
    assert_eq!(files(), 1, "the file of the first process is replaced");

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/verify/check_tensorboard.py");
    // A Python with tensorboard may lie elsewhere.
    let python = std::env::var_os("TENSORBOARD_PYTHON").unwrap_or_else(|| "python3".into());
    let output = match Command::new(python).arg(script).arg(&run_folder).output() {
        Ok(output) if output.status.code() != Some(3) => output,
        _ => {
            eprintln!("skipped: no Python with tensorboard");
            return;
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 pictures") && said.contains("every point is that of metrics.jsonl"), "{said}");
}
