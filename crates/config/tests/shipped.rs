//! Every file in `config/` loads, and holds what its name promises.

use std::path::{Path, PathBuf};
use std::time::Duration;

use numalign_config::{Config, Source, Stage, ValueEncoding, resolve, to_yaml};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config")
}

fn load(path: &Path) -> Config {
    let source = Source::from_yaml_file(path);
    match resolve(Some(source), Source::from_env([]), Source::from_flags::<&str>([])) {
        Ok(config) => config,
        Err(errors) => panic!("{errors}"),
    }
}

fn shipped(name: &str) -> Config {
    load(&folder().join(name))
}

#[test]
fn every_file_loads_under_its_own_name() {
    let mut found = 0;
    let mut paths = Vec::new();
    for inside in ["", "experiments", "experiments/large", "experiments/smollm2"] {
        paths.extend(std::fs::read_dir(folder().join(inside)).unwrap().map(|entry| entry.unwrap().path()));
    }
    for path in paths {
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        found += 1;
        let config = load(&path);
        assert_eq!(Some(config.run.run_id.as_str()), path.file_stem().unwrap().to_str());
        let again = Source::from_yaml_text(&path, &to_yaml(&config));
        let again = resolve(Some(again), Source::from_env([]), Source::from_flags::<&str>([]));
        assert_eq!(again.unwrap(), config);
    }
    assert!(found >= 30, "{found} files");
}

#[test]
fn the_quickstart_is_small() {
    let config = shipped("quickstart.yaml");
    assert_eq!((config.recipe.stage, config.recipe.model_name.as_str()), (Stage::Nn, "demo"));
    assert_eq!(config.run.workers, 2);
    assert!(config.recipe.total_steps() <= 10_000);
    assert!(config.run.coordinator_wait >= Duration::from_secs(5));
}

#[test]
fn the_real_job_is_on_gpt2() {
    let recipe = shipped("config.yaml").recipe;
    assert_eq!(recipe.model_name, "openai-community/gpt2");
    assert_eq!((recipe.num_epochs, recipe.num_batches, recipe.batch_size), (60, 10, 8));
    assert_eq!((recipe.lr, recipe.lr_gamma, recipe.lr_step_epochs), (0.003, 0.5, 10));
    assert_eq!(recipe.value_encoding, ValueEncoding::Standard);
}

#[test]
fn the_original_is_kept_for_parity() {
    let recipe = shipped("original.yaml").recipe;
    assert_eq!(recipe.value_encoding, ValueEncoding::Raw);
    assert_eq!((recipe.numeric_positions, recipe.batch_size), (1024, 8));
    assert_eq!((recipe.lr, recipe.lr_gamma, recipe.lr_step_epochs), (0.003, 0.1, 10));
}

#[test]
fn the_demo_of_all_stages_fits_every_stage() {
    let path = folder().join("demo-all.yaml");
    for stage in ["nn", "text", "mixed"] {
        let flags = Source::from_flags([("stage", stage.to_string())]);
        let config = resolve(Some(Source::from_yaml_file(&path)), Source::from_env([]), flags).unwrap();
        assert_eq!(config.recipe.total_steps(), 1500);
        assert_eq!(config.recipe.mixed_max_numbers, 5);
        assert_eq!(config.recipe.decimals, if stage == "mixed" { 2 } else { 4 });
    }
    assert_eq!(shipped("mixed.yaml").recipe.stage, Stage::Mixed);
}
