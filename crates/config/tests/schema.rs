//! The JSON Schema takes what the parser takes, and refuses what it refuses, where one key is enough to know.

use std::path::{Path, PathBuf};

use boon::{Compiler, Schemas};
use numalign_config::{Config, Source, keys, resolve, schema, to_yaml};
use serde_json::Value;

/// Why the schema refuses the YAML text, where it does.
fn refusal(yaml: &str) -> Option<String> {
    let value: Value = serde_yaml::from_str(yaml).unwrap();
    let mut compiler = Compiler::new();
    compiler.add_resource("numalign.json", schema()).unwrap();
    let mut schemas = Schemas::new();
    let index = compiler.compile("numalign.json", &mut schemas).unwrap_or_else(|error| panic!("{error:#}"));
    schemas.validate(&value, index).err().map(|error| format!("{error:#}"))
}

/// Every YAML file below `folder`.
fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_shipped_file_is_valid() {
    let files = yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config"));
    assert!(files.len() >= 30, "{} files", files.len());
    for path in files {
        let refusal = refusal(&std::fs::read_to_string(&path).unwrap());
        assert_eq!(refusal, None, "{}", path.display());
    }
}

#[test]
fn shown_configurations_are_valid() {
    for settings in [
        &[][..],
        &[("stage", "mixed"), ("solver", "alternate"), ("loss", "huber"), ("device", "cuda:3"), ("resume", "auto")],
        &[("value_encoding", "signlog"), ("layer", "3"), ("heartbeat", "1e-9"), ("run_id", "2024")],
        &[("layer", "0,2"), ("pooling", "mean,last")],
    ] {
        let yaml = to_yaml(&Config::with(settings).unwrap());
        assert_eq!(refusal(&yaml), None, "{yaml}");
    }
}

/// Files that the schema and the parser take alike.
#[test]
fn other_spellings_are_valid() {
    for yaml in [
        "x-common: &common {lr: 0.1}\n<<: *common\n",
        "dataset.file: a.jsonl\ndataset:\n  shuffle: false\n",
        "readout: mean\n",
        "layer: [0, 1]\npooling: [mean, last]\n",
        "layer: 0, 1\npooling: mean, last\n",
        "taps: [1:mean, -1:last]\n",
        "taps: 1:mean, 2:last\n",
        "mixed_tasks: min,max\n",
        "mixed_tasks: [min, count]\nstage:\nheartbeat: 500 ms\n",
        "min_val: -5\nrun_id: 2024\n",
        "{}",
    ] {
        assert_eq!(refusal(yaml), None, "{yaml}");
        let source = Source::from_yaml_text(Path::new("run.yaml"), yaml);
        resolve(Some(source), Source::from_env([]), Source::from_flags::<&str>([])).unwrap();
    }
    assert_eq!(refusal("workers: auto\n"), None, "launch works it out");
}

/// Files that both refuse, with the place that the schema names.
#[test]
fn broken_files_are_refused() {
    for (yaml, place) in [
        ("bacth_size: 8\n", "bacth_size"),
        ("lr: fast\n", "/lr"),
        ("dataset:\n  fil: a\n", "/dataset"),
        ("stage: numbers\n", "/stage"),
        ("lr: 0\n", "/lr"),
        ("layer: -2\n", "/layer"),
        ("layer: [1, 1]\n", "/layer"),
        ("pooling: [mean, middle]\n", "/pooling"),
        ("taps: [1-mean]\n", "/taps"),
        ("workers: 0\n", "/workers"),
        ("shl: 'yes'\n", "/shl"),
        ("mixed_tasks: []\n", "/mixed_tasks"),
        ("mixed_tasks: [min, min]\n", "/mixed_tasks"),
        ("heartbeat: often\n", "/heartbeat"),
        ("device: gpu\n", "/device"),
        ("run_id: a/b\n", "/run_id"),
        ("train_transformer: true\n", "/train_transformer"),
        ("- lr\n", ""),
    ] {
        let why = refusal(yaml).unwrap_or_else(|| panic!("valid: {yaml}"));
        assert!(why.contains(place), "{why}");
        let source = Source::from_yaml_text(Path::new("run.yaml"), yaml);
        assert!(resolve(Some(source), Source::from_env([]), Source::from_flags::<&str>([])).is_err(), "{yaml}");
    }
}

#[test]
fn every_key_is_described_and_old_names_are_deprecated() {
    let schema = schema();
    for key in keys() {
        let property = match key.name.split_once('.') {
            Some((group, inner)) => &schema["properties"][group]["properties"][inner],
            None => &schema["properties"][key.name],
        };
        assert!(property["description"].as_str().is_some_and(|text| text.starts_with(key.help)), "{}", key.name);
        assert_eq!(property.get("deprecated"), None, "{}", key.name);
        for old in key.deprecated {
            assert_eq!(schema["properties"][old]["deprecated"], true, "{old}");
        }
    }
    assert_eq!(schema["properties"]["readout"]["pattern"], schema["properties"]["pooling"]["pattern"]);
    assert_eq!(schema["properties"]["batch_size"]["default"], 8);
    assert_eq!(schema["properties"]["mixed_tasks"]["default"], serde_json::json!(["min"]));
}
