//! A run that goes back: which checkpoints are void, however the marking was interrupted; and the states that are kept for it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{checkpoint, names};
use numalign_checkpoint::{Audited, AuditedMachine, CheckpointError, RunFolder, is_void};

/// A folder with checkpoints of steps 5, 10, … 30.
fn folder() -> (tempfile::TempDir, RunFolder) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(&temporary.path().join("run")).unwrap();
    for step in (5..=30).step_by(5) {
        folder.write(step, &checkpoint(2, step).to_bytes(), 9).unwrap();
    }
    (temporary, folder)
}

fn back_to(folder: &RunFolder, number: u64, step: u64) -> Result<(), CheckpointError> {
    folder.roll_back(number, &checkpoint(2, step), |found| found.state.step() > step)
}

fn newest(folder: &RunFolder) -> u64 {
    let (newest, _) = folder.newest_valid().unwrap();
    newest.map_or(0, |(_, checkpoint)| checkpoint.state.step())
}

fn void(folder: &RunFolder) -> usize {
    names(folder.path()).iter().filter(|name| is_void(Path::new(name))).count()
}

#[test]
fn what_was_written_since_is_void_and_what_is_written_later_is_not() {
    let (_temporary, folder) = folder();
    assert_eq!(folder.rollbacks().unwrap(), 0);
    back_to(&folder, 1, 12).unwrap();
    assert_eq!((folder.rollbacks().unwrap(), newest(&folder), void(&folder)), (1, 12, 4));
    folder.write(15, &checkpoint(2, 15).to_bytes(), 3).unwrap();
    assert_eq!((newest(&folder), void(&folder)), (15, 4));
    back_to(&folder, 2, 10).unwrap();
    assert_eq!((folder.rollbacks().unwrap(), newest(&folder), void(&folder)), (2, 10, 6));
    folder.clear().unwrap();
    assert_eq!((folder.rollbacks().unwrap(), names(folder.path())), (0, Vec::new()));
}

#[test]
fn a_damaged_checkpoint_of_a_later_step_is_void_too() {
    let (_temporary, folder) = folder();
    fs::write(folder.file_of(30), b"?").unwrap();
    back_to(&folder, 1, 20).unwrap();
    assert_eq!((newest(&folder), void(&folder)), (20, 2));
}

#[test]
fn a_marking_that_was_interrupted_is_finished_by_whoever_comes_next() {
    let void_names = r#"["step-00000030.safetensors","step-00000025.safetensors","step-00000020.safetensors"]"#;
    for renamed in 0..=3 {
        let (_temporary, folder) = folder();
        let record = format!(r#"{{"number":1,"void":{void_names}}}"#);
        fs::write(folder.path().join("rollbacks.json"), record).unwrap();
        for step in [30, 25, 20].into_iter().take(renamed) {
            let to = folder.path().join(format!("rolled-back-1-step-{step:08}.safetensors"));
            fs::rename(folder.file_of(step), to).unwrap();
        }
        assert_eq!((folder.rollbacks().unwrap(), newest(&folder), void(&folder)), (1, 15, 3));
        // One of that step that is written later is valid.
        folder.write(20, &checkpoint(2, 20).to_bytes(), 3).unwrap();
        assert_eq!((folder.rollbacks().unwrap(), newest(&folder)), (1, 20));
    }
}

#[test]
fn a_record_that_cannot_be_read_is_no_permission_to_go_on() {
    let (_temporary, folder) = folder();
    fs::write(folder.path().join("rollbacks.json"), b"?").unwrap();
    assert!(matches!(folder.rollbacks(), Err(CheckpointError::Damaged { .. })));
}

fn audited(machines: &[(&str, u64)]) -> Audited {
    let mut audited = Audited::default();
    for (host, unit) in machines {
        let (host, device) = ((*host).to_owned(), "cpu".to_owned());
        audited.machines.push(AuditedMachine { host, device, unit: *unit });
        audited.states.insert(*unit, Arc::new(checkpoint(2, *unit)));
    }
    audited
}

#[test]
fn the_states_to_go_back_to_are_kept_as_long_as_a_machine_needs_them() {
    let (_temporary, folder) = folder();
    assert!(folder.audited().unwrap().is_empty());
    let mut written = BTreeMap::new();
    folder.keep_audited(&audited(&[("a", 3), ("b", 7)]), &mut written).unwrap();
    folder.keep_audited(&audited(&[("a", 3), ("b", 9)]), &mut written).unwrap();
    let here = folder.path().join("audited");
    assert_eq!(names(&here), ["machines.json", "unit-00000003.safetensors", "unit-00000009.safetensors"]);
    let found = folder.audited().unwrap();
    let found: Vec<(&str, u64)> =
        found.iter().map(|(machine, state)| (machine.host.as_str(), state.as_ref().unwrap().state.step())).collect();
    assert_eq!(found, [("a", 3), ("b", 9)]);
    // The same unit again after a rollback is another state.
    let mut other = audited(&[("a", 3)]);
    other.states.insert(3, Arc::new(checkpoint(2, 4)));
    folder.keep_audited(&other, &mut written).unwrap();
    assert_eq!(folder.audited().unwrap()[0].1.as_ref().unwrap().state.step(), 4);
    fs::write(here.join("unit-00000003.safetensors"), b"?").unwrap();
    assert!(folder.audited().unwrap()[0].1.is_err(), "a damaged one is named");
    folder.clear().unwrap();
    assert!(!here.exists());
}
