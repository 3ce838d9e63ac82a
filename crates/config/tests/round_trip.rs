//! A shown configuration loads back to the same one.

use std::path::Path;

use numalign_config::{Config, ConfigErrors, Source, keys, resolve, to_yaml};

fn resolve_flags(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::with(pairs)
}

fn reload(yaml: &str) -> Config {
    let source = Source::from_yaml_text(Path::new("shown file.yaml"), yaml);
    resolve(Some(source), Source::from_env([]), Source::from_flags::<&str>([])).unwrap()
}

fn assert_comes_back(config: &Config) {
    let yaml = to_yaml(config);
    assert_eq!(&reload(&yaml), config, "{yaml}");
}

#[test]
fn the_defaults_come_back() {
    let config = resolve_flags(&[]).unwrap();
    assert_comes_back(&config);
    let yaml = to_yaml(&config);
    assert!(yaml.contains("\ndataset:\n  file: null\n  shuffle: true\n"), "{yaml}");
    assert!(yaml.contains("\nmodel_path_load: null\n"), "{yaml}");
    assert!(yaml.contains("\nheartbeat: 0.5s\n"), "{yaml}");
}

#[test]
fn every_key_is_shown_in_the_tables_order() {
    let yaml = to_yaml(&resolve_flags(&[]).unwrap());
    let mut rest = yaml.as_str();
    assert!(!yaml.contains("train_transformer"), "it has one value only");
    for key in keys().iter().filter(|key| key.is_settable()) {
        let name = key.name.rsplit('.').next().unwrap();
        let at = rest.find(&format!("{name}:")).unwrap_or_else(|| panic!("{name} is missing"));
        rest = &rest[at..];
    }
}

#[test]
fn every_setting_comes_back() {
    let config = resolve_flags(&[
        ("stage", "mixed"),
        ("num_epochs", "3"),
        ("batch_size", "12"),
        ("micro_batch_size", "4"),
        ("min_val", "-1e-7"),
        ("max_val", "0.30000000000000004"),
        ("decimals", "3"),
        ("value_encoding", "raw"),
        ("numeric_positions", "2"),
        ("mixed_tasks", "count,min"),
        ("train_input_projection", "false"),
        ("seed", "18446744073709551615"),
        ("dataset.file", "a/b.jsonl"),
        ("dataset.shuffle", "false"),
        ("model_path_load", "x.safetensors"),
        ("run_id", "2024"),
        ("resume", "auto"),
        ("device", "cuda:7"),
        ("collective", "nccl"),
        ("heartbeat", "1ms"),
        ("dead_after", "719.999999999h"),
        ("join_debounce", "0"),
    ])
    .unwrap();
    assert_comes_back(&config);
}

#[test]
fn encoders_come_back() {
    assert_comes_back(&resolve_flags(&[("value_encoding", "fourier"), ("fourier_periods", "3")]).unwrap());
    assert_comes_back(&resolve_flags(&[("value_encoding", "signlog"), ("target", "linear"), ("layer", "2")]).unwrap());
    assert_comes_back(&resolve_flags(&[("layer", "0,1"), ("pooling", "mean,last")]).unwrap());
    assert_comes_back(&resolve_flags(&[("distribution", "log"), ("log_threshold", "0.1"), ("loss", "huber")]).unwrap());
    assert_comes_back(
        &resolve_flags(&[("stage", "mixed"), ("pooling", "numbers"), ("train_layer_norms", "true")]).unwrap(),
    );
}

#[test]
fn floats_come_back_exactly() {
    for lr in ["1e-7", "0.1", "1.2e-38", "3.4e38", "1e16", "123456789.123456789", "5e15"] {
        assert_comes_back(&resolve_flags(&[("lr", lr)]).unwrap());
    }
    for min in ["-3.4e37", "-0.0", "-1e-300", "-12345678901234567890", "0.30000000000000004"] {
        assert_comes_back(&resolve_flags(&[("min_val", min), ("max_val", "1.3e37")]).unwrap());
    }
}

#[test]
fn times_come_back_exactly() {
    for time in ["1e-9", "3.000000007", "2591999.999999999", "123456.789012345", "2min"] {
        assert_comes_back(&resolve_flags(&[("coordinator_wait", time)]).unwrap());
    }
}

#[test]
fn texts_come_back_whatever_they_look_like() {
    let odd = [
        "null",
        "~",
        "true",
        "yes",
        "1e3",
        "0x10",
        "007",
        "-1",
        ".inf",
        " a ",
        "a: b",
        "a #b",
        "- a",
        "[a]",
        "{a}",
        "'",
        "\"",
        "a\nb",
        "a\n",
        "\ta",
        "&a",
        "*a",
        "!a",
        "|",
        ">",
        "%a",
        "@a",
        "`a",
        "<<",
        "=",
        "é",
        "a\\b",
        "a\r\nb",
        "\u{1b}",
        "\u{feff}a",
        "\u{85}",
        "1_000",
        "2024-01-01",
        "?",
        "? a",
        ":",
        "a:",
        "---",
        "...",
        "auto",
    ];
    for text in odd {
        let config =
            resolve_flags(&[("model_name", text), ("dataset.file", text), ("model_path_load", text), ("resume", text)]);
        assert_comes_back(&config.unwrap());
    }
}
