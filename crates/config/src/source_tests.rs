use super::*;

fn yaml(text: &str) -> Source {
    Source::from_yaml_text(Path::new("run.yaml"), text)
}

fn env(pairs: &[(&str, &str)]) -> Source {
    Source::from_env(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())))
}

fn lines(source: &Source) -> Vec<String> {
    source.errors.iter().map(|error| error.to_string()).collect()
}

#[test]
fn nested_and_dotted_names_are_the_same_key() {
    let nested = yaml("dataset:\n  file: a.jsonl\n  shuffle: false\n");
    let dotted = yaml("dataset.file: a.jsonl\ndataset.shuffle: false\n");
    assert_eq!(nested.values, dotted.values);
    assert_eq!(nested.get("dataset.file"), Some(&Raw::Text("a.jsonl".to_string())));
    assert!(lines(&nested).is_empty() && lines(&dotted).is_empty());
}

#[test]
fn files_without_keys_set_nothing() {
    for text in ["", "\n", "# only a comment\n", "---\n", "{}", "null", "\u{feff}", "dataset:\n"] {
        let source = yaml(text);
        assert!(source.values.is_empty() && lines(&source).is_empty(), "{text:?}: {:?}", lines(&source));
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_key() {
    assert!(yaml("\u{feff}lr: 0.1").is_set("lr"));
}

#[test]
fn repeated_keys_are_errors() {
    let repeated = "is set more than once; hint: keep one of them";
    assert_eq!(lines(&yaml("lr: 1\nlr: 1\n")), [format!("run.yaml: lr: {repeated}")]);
    let file = [format!("run.yaml: dataset.file: {repeated}")];
    assert_eq!(lines(&yaml("dataset:\n  file: a\n  file: b\n")), file);
    assert_eq!(lines(&yaml("dataset:\n  file: a\ndataset.file: b\n")), file);
    assert_eq!(lines(&yaml("dataset: {file: a}\ndataset: {file: a}\n")), file);
    assert_eq!(lines(&yaml("lr: null\nlr: 1\n")), [format!("run.yaml: lr: {repeated}")]);
    let flags = Source::from_flags([("lr", "1".to_string()), ("lr", "2".to_string())]);
    assert_eq!(lines(&flags), [format!("--lr: lr: {repeated}")]);
}

#[test]
fn unknown_keys_come_with_a_suggestion() {
    let source = yaml("bacth_size: 8\ndataset:\n  fil: a\nbatch-size: 4\nmomentum_decay: 1\n3: 4\n");
    assert_eq!(
        lines(&source),
        [
            "run.yaml: bacth_size: unknown key; hint: did you mean batch_size?",
            "run.yaml: dataset.fil: unknown key; hint: did you mean dataset.file?",
            "run.yaml: batch-size: unknown key; hint: did you mean batch_size?",
            "run.yaml: momentum_decay: unknown key; hint: `numalign config show` lists every key",
            "run.yaml: 3: unknown key; hint: `numalign config show` lists every key",
        ]
    );
    let flags = Source::from_flags([("batch-siz", "1".to_string())]);
    assert_eq!(lines(&flags), ["--batch-siz: batch-siz: unknown key; hint: did you mean --batch-size?"]);
}

#[test]
fn other_top_levels_are_refused() {
    for (text, kind) in [("- lr", "a list"), ("lr", "text"), ("3", "a number"), ("true", "true or false")] {
        let source = yaml(text);
        let expected = format!(
            "run.yaml: must be a list of `key: value` lines, not {kind}; hint: begin with a line such as `stage: nn`"
        );
        assert_eq!(lines(&source), [expected]);
        assert!(source.is_unreadable);
    }
    assert_eq!(
        lines(&yaml("dataset: a.jsonl")),
        ["run.yaml: dataset = a.jsonl: must be a mapping, not text; hint: set dataset.file"]
    );
}

#[test]
fn broken_yaml_names_the_place() {
    for text in ["lr: [1", "lr: 1\n\tseed: 2\n", "a: b: c", "lr: *gone", "lr: !unit 3", "a: 1\n---\nb: 2"] {
        let source = yaml(text);
        let found = lines(&source);
        assert_eq!(found.len(), 1, "{text:?}");
        assert!(found[0].starts_with("run.yaml: is not valid YAML: "), "{}", found[0]);
        assert!(source.is_unreadable);
    }
    assert!(lines(&yaml("lr: 1\nseed: [1\n"))[0].contains("line "));
}

#[test]
fn hostile_yaml_ends_in_an_error() {
    assert!(yaml(&"[".repeat(5_000)).is_unreadable);
    assert!(yaml(&"{a: ".repeat(5_000)).is_unreadable);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_string();
    for level in 1..20 {
        let below = format!("*a{}, ", level - 1).repeat(9);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    assert!(yaml(&bomb).is_unreadable);
    assert_eq!(yaml(&format!("{}: 1", "k".repeat(900))).errors.len(), 1);
}

#[test]
fn unreadable_files_are_explained() {
    let folder = std::env::temp_dir().join(format!("numalign-source-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let binary = folder.join("binary.yaml");
    std::fs::write(&binary, b"lr: \xff\xfe").unwrap();
    let large = folder.join("large.yaml");
    std::fs::write(&large, vec![b'#'; 1 << 21]).unwrap();
    let good = folder.join("good.yaml");
    std::fs::write(&good, "lr: 0.5").unwrap();

    let message = |path: &Path| lines(&Source::from_yaml_file(path)).join("\n");
    assert!(message(&binary).contains("binary.yaml: is not UTF-8 text (byte 4)"));
    assert!(message(&large).contains("large.yaml: is larger than 65536 bytes"));
    assert!(message(&folder).contains(": is a folder, not a file; hint: name a YAML file inside it"));
    assert!(message(&folder.join("none.yaml")).contains("none.yaml: does not exist; hint: check the path"));
    assert!(message(&good.join("x.yaml")).contains("x.yaml: cannot be read: "));
    assert_eq!(message(&good), "");
    assert_eq!(Source::from_yaml_file(&good).get("lr"), Some(&Raw::Float(0.5)));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn variables_are_settings_only_with_the_prefix() {
    let source = env(&[
        ("PATH", "/bin"),
        ("numalign_lr", "9"),
        ("NUMALIGN_LR", "0.1"),
        ("NUMALIGN_DATASET_SHUFFLE", "false"),
        ("NUMALIGN_TOKEN", "secret"),
        ("NUMALIGN_LOG", "debug"),
        ("NUMALIGN_INTERNAL_RANK", "3"),
    ]);
    assert!(lines(&source).is_empty(), "{:?}", lines(&source));
    let set: Vec<&str> = source.values.keys().copied().collect();
    assert_eq!(set, ["dataset.shuffle", "lr"]);
}

#[test]
fn unknown_variables_are_errors_and_their_values_stay_hidden() {
    let source = env(&[("NUMALIGN_TOKN", "secret"), ("NUMALIGN_BATCHSIZE", "8"), ("NUMALIGN_", "1")]);
    assert_eq!(
        lines(&source),
        [
            "NUMALIGN_TOKN: unknown environment variable; hint: did you mean NUMALIGN_TOKEN?",
            "NUMALIGN_BATCHSIZE: unknown environment variable; hint: did you mean NUMALIGN_BATCH_SIZE?",
            "NUMALIGN_: unknown environment variable; hint: `numalign config show` lists every key",
        ]
    );
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_utf8_are_errors() {
    use std::os::unix::ffi::OsStringExt;
    let broken = || OsString::from_vec(vec![0xff]);
    let source = Source::from_env_os([("NUMALIGN_LR".into(), broken()), ("OTHER".into(), broken())]);
    assert_eq!(lines(&source), ["NUMALIGN_LR: lr: is not UTF-8; hint: set it again with plain text"]);
}

#[test]
fn auto_is_filled_in_where_it_stands() {
    let mut flags = Source::from_flags([("workers", "auto".to_owned()), ("device", "auto".to_owned())]);
    assert!(flags.fill_in_auto("workers", || 3));
    assert!(!flags.fill_in_auto("workers", || 4), "it is a number now");
    assert!(!flags.fill_in_auto("max_workers", || 4));
    let config = crate::resolve(None, Source::from_env([]), flags).unwrap();
    assert_eq!(config.run.workers, 3);
    let unfilled = Source::from_flags([("workers", "auto".to_owned())]);
    assert!(crate::resolve(None, Source::from_env([]), unfilled).is_err());
}

#[test]
fn helpers_hold_anchors_and_are_no_settings() {
    let source = yaml("x-common: &common\n  lr: 0.1\n  seed: 3\nx-list: [1, {a: 2}]\n<<: *common\nseed: 4\n");
    assert!(lines(&source).is_empty(), "{:?}", lines(&source));
    assert_eq!(source.get("lr"), Some(&Raw::Float(0.1)));
    assert_eq!(source.get("seed"), Some(&Raw::Int(4)), "what the file says itself wins");
    let source = yaml("x-a: &a {lr: 1}\nx-b: &b {lr: 2, dataset: {file: b}}\n<<: [*a, *b]\n");
    assert!(lines(&source).is_empty(), "{:?}", lines(&source));
    assert_eq!(source.get("lr"), Some(&Raw::Int(1)), "the first of the list wins");
    assert_eq!(source.get("dataset.file"), Some(&Raw::Text("b".to_string())));
    let source = yaml("x-data: &data {file: a}\ndataset:\n  <<: *data\n  shuffle: false\n");
    assert_eq!(source.values.len(), 2, "{:?}", lines(&source));
    assert_eq!(lines(&yaml("dataset:\n  x-file: a\n")).len(), 1, "helpers stand at the top");
    assert_eq!(lines(&yaml("x-a: &a {bacth_size: 1}\n<<: *a\n")).len(), 1, "what is merged is checked");
    assert_eq!(lines(&yaml("<<: 3\n")).len(), 1);
    let flags = Source::from_flags([("x-lr", "1".to_string())]);
    assert_eq!(lines(&flags).len(), 1, "only files have anchors");
}

#[test]
fn old_spellings_are_accepted_everywhere() {
    let old = || Raw::Text("mean".to_string());
    let flags = Source::from_flags([("readout", "mean".to_string())]);
    for source in [yaml("readout: mean\n"), env(&[("NUMALIGN_READOUT", "mean")]), flags] {
        assert!(lines(&source).is_empty(), "{:?}", lines(&source));
        assert_eq!(source.get("pooling"), Some(&old()));
    }
    let both = yaml("readout: mean\npooling: mean\n");
    assert_eq!(lines(&both), ["run.yaml: pooling: is set more than once; hint: keep one of them"]);
    for (source, name) in [
        (yaml("readout: middle\n"), "run.yaml: readout = middle: "),
        (env(&[("NUMALIGN_READOUT", "middle")]), "NUMALIGN_READOUT: readout = middle: "),
    ] {
        let error = crate::resolve(None, source, Source::from_flags::<&str>([])).unwrap_err().to_string();
        assert!(error.starts_with(name), "an old name is told as it was written: {error}");
    }
}

#[test]
fn what_a_cluster_sets_for_its_services_is_passed_over() {
    let services = env(&[
        ("NUMALIGN_PORT", "tcp://10.0.0.1:7400"),
        ("NUMALIGN_SERVICE_HOST", "10.0.0.1"),
        ("NUMALIGN_SERVICE_PORT", "7400"),
        ("NUMALIGN_SERVICE_PORT_GRPC", "7400"),
        ("NUMALIGN_PORT_7400_TCP", "tcp://10.0.0.1:7400"),
        ("NUMALIGN_PORT_7400_TCP_PROTO", "tcp"),
        ("NUMALIGN_PORT_7400_TCP_PORT", "7400"),
        ("NUMALIGN_PORT_7400_TCP_ADDR", "10.0.0.1"),
        ("NUMALIGN_COORDINATOR_SERVICE_HOST", "fd00::1"),
        ("NUMALIGN_COORDINATOR_0_PORT", "udp://[fd00::1]:53"),
        ("NUMALIGN_COORDINATOR_0_PORT_53_UDP_ADDR", "fd00::1"),
        ("NUMALIGN_LR", "0.5"),
    ]);
    assert!(lines(&services).is_empty(), "{:?}", lines(&services));
    assert!(services.is_set("lr"));
    for (name, value) in [
        ("NUMALIGN_PORT", "7400"),
        ("NUMALIGN_SERVICE", "x"),
        ("NUMALIGN_PORT_7400_HTTP", "x"),
        ("NUMALIGN_BATCHSIZE", "8"),
        ("NUMALIGN_HOST", "x"),
    ] {
        assert_eq!(lines(&env(&[(name, value)])).len(), 1, "{name}");
    }
}

#[test]
fn a_byte_order_mark_before_several_keys_is_passed_over() {
    let source = yaml("\u{feff}lr: 0.1\nbatch_size: 8\n");
    assert!(lines(&source).is_empty() && source.is_set("lr") && source.is_set("batch_size"), "{:?}", lines(&source));
}
