//! `probe`: the same report and checkpoint for any world and after kills, each entry the solution that `launch` finds, and
//! a configuration that `launch` takes.

mod common;

use common::Folder;
use common::run::{bytes, hit_at_steps, json, succeed_line};
use rustix::process::Signal;
use serde_json::Value;

/// 60 chunks of 32 samples.
const PROBE: &str = "probe text --layers 0,2,-1 --samples 1920 --taps 2 --checkpoint-every 4 --keep-checkpoints 100";

fn report(folder: &Folder, run: &str) -> Vec<u8> {
    folder.read(&format!("chk/{run}/probe.json"))
}

#[test]
fn any_world_and_any_kill_give_the_same_bytes() {
    let folder = Folder::new();
    for workers in [1, 2, 3] {
        succeed_line(&folder, &format!("{PROBE} --no-ablation --workers {workers} --run-id {workers}"));
        assert!(report(&folder, &workers.to_string()) == report(&folder, "1"), "{workers} workers");
        assert!(bytes(&folder, &workers.to_string()) == bytes(&folder, "1"), "{workers} workers");
    }
    for victim in ["worker --coordinator", "coordinator --listen"] {
        let run = format!("killed-{}", &victim[..6]);
        let line = format!("{PROBE} --no-ablation --run-id {run}");
        let mut probe = folder.spawn(&line.split_whitespace().collect::<Vec<_>>());
        hit_at_steps(probe.id(), victim, Signal::KILL, &folder.path().join("chk").join(&run), [4]);
        let output = probe.wait();
        assert!(output.status.success(), "{run}: {}", output.stderr);
        assert!(report(&folder, &run) == report(&folder, "1"), "{run}");
        assert!(bytes(&folder, &run) == bytes(&folder, "1"), "{run}");
    }
    let left = std::fs::read_dir(folder.path().join("chk/1")).unwrap();
    assert!(left.flatten().all(|entry| entry.file_name() != "probe.rows"), "the rows are gone");
}

#[test]
fn entries_are_what_launch_solves_and_the_choice_can_be_launched() {
    let folder = Folder::new();
    let line = format!("{PROBE} --run-id p --json --plot places.svg --write-config best.yaml");
    let output = succeed_line(&folder, &line);
    assert!(output.stderr.contains("GiB of rows on disk, up to"), "it says what it takes: {}", output.stderr);
    let page = json(&output);
    let constant = page["constant_percent_of_range"].as_f64().expect("a constant");
    let ablation = page["ablation_percent_of_range"].as_f64().expect("an ablation");
    assert!(ablation < constant, "{page}");
    let svg = String::from_utf8(folder.read("places.svg")).expect("text");
    assert!(svg.starts_with("<svg") && svg.contains("where the number is"), "{svg}");
    let pass = "--solver exact --num-epochs 1 --num-batches 60 --batch-size 32 --no-eval";
    let solved = |run: &str| -> f64 {
        let about = json(&succeed_line(&folder, &format!("inspect --json chk/{run}.safetensors")));
        about["solve"]["held_out_error"].as_f64().unwrap_or_else(|| panic!("{about}"))
    };
    let places = page["places"].as_array().expect("places");
    assert_eq!(places.len(), 6, "{page}");
    for place in [0, 3, 4] {
        let (layer, pooling) = (&places[place]["layer"], places[place]["pooling"].as_str().unwrap_or_default());
        let run = format!("place-{place}");
        succeed_line(&folder, &format!("launch text {pass} --layer {layer} --pooling {pooling} --run-id {run}"));
        let (alone, entry) = (solved(&run), places[place]["held_out_error"].as_f64().unwrap_or(f64::NAN));
        assert!((alone - entry).abs() <= 1e-6 * alone, "{layer} {pooling}: {alone} and {entry}");
    }
    let together = page["together"]["held_out_error"].as_f64().expect("an error");
    let errors = places.iter().filter_map(|place| place["held_out_error"].as_f64());
    assert!(together <= errors.fold(f64::INFINITY, f64::min) * 1.02, "{page}");
    succeed_line(&folder, "launch --config best.yaml --no-eval");
    assert_eq!(solved("best"), together, "the same samples, read at the chosen places");
    let chosen = &page["together"]["taps"];
    let several = chosen.as_array().is_some_and(|taps| taps.len() > 1);
    let taps = &json(&succeed_line(&folder, "inspect --json chk/best.safetensors"))["taps"];
    assert_eq!(taps, if several { chosen } else { &Value::Null });
}

/// So few rows that a run on them would choose its ridge by folds.
#[test]
fn a_small_dataset_can_be_probed_and_its_configuration_launched() {
    let folder = Folder::new();
    let row = |i: u64| format!("{{\"input\": \"{} nights cost {} euros\", \"output\": {}}}\n", i % 7, 3 * i, 3 * i);
    folder.write("rows.jsonl", (1..=120).map(row).collect::<String>());
    let line = "probe text --model demo --dataset rows.jsonl --samples 96 --taps 2 --layers 0-1 --no-ablation --json \
                --write-config best.yaml";
    let page = json(&succeed_line(&folder, line));
    assert_eq!(page["places"].as_array().map(Vec::len), Some(4), "{page}");
    succeed_line(&folder, "launch --config best.yaml --run-id best --no-eval");
}
