use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::choice::{CpuArithmetic, DeviceChoice, Distribution, Resume, Stage, TargetEncoding, Task, ValueEncoding};
use crate::key::{KeyDefault, keys};

fn file(text: &str) -> Option<Source> {
    Some(Source::from_yaml_text(Path::new("dir/run.yaml"), text))
}

fn env(pairs: &[(&str, &str)]) -> Source {
    Source::from_env(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())))
}

fn flags(pairs: &[(&str, &str)]) -> Source {
    Source::from_flags(pairs.iter().map(|(name, value)| (*name, value.to_string())))
}

/// Resolves a file's text alone.
fn from_yaml(text: &str) -> Result<Config, ConfigErrors> {
    resolve(file(text), env(&[]), flags(&[]))
}

fn from_flags(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::with(pairs)
}

/// The message of a configuration of flags that has to be refused.
fn refusal(pairs: &[(&str, &str)]) -> String {
    from_flags(pairs).unwrap_err().to_string()
}

#[test]
fn every_key_of_the_table_is_read_once() {
    let asked = std::cell::RefCell::new(Vec::new());
    let mut settings = Settings::default();
    for part in Part::ALL {
        let errors = settings.read(part, |name| {
            asked.borrow_mut().push(name);
            None
        });
        assert!(errors.is_empty(), "{errors:?}");
    }
    assert!(settings.complete().is_some());
    let asked = asked.into_inner();
    let table: BTreeSet<&str> = keys().iter().map(|key| key.name).collect();
    assert_eq!(asked.iter().copied().collect::<BTreeSet<_>>(), table);
    assert_eq!(asked.len(), keys().len());
}

#[test]
fn rounded_products_are_those_of_plain_weights() {
    for dtype in ["f32", "bf16"] {
        let recipe = from_flags(&[("arithmetic", "bf16"), ("dtype", dtype)]).unwrap().recipe;
        assert_eq!(recipe.arithmetic, CpuArithmetic::Bf16);
    }
    for dtype in ["f16", "q8_0", "q4_k"] {
        let message = refusal(&[("arithmetic", "bf16"), ("dtype", dtype)]);
        assert!(message.contains("arithmetic") && message.contains(dtype), "{message}");
        from_flags(&[("arithmetic", "f32"), ("dtype", dtype)]).unwrap();
    }
    assert!(refusal(&[("arithmetic", "tf32")]).contains("f32"));
}

#[test]
fn defaults_are_those_of_the_interface() {
    let config = resolve(None, env(&[]), flags(&[])).unwrap();
    let recipe = config.recipe;
    assert_eq!(recipe.stage, Stage::Nn);
    assert_eq!(recipe.model_name, "demo");
    assert_eq!((recipe.num_epochs, recipe.num_batches), (60, 10));
    assert_eq!((recipe.batch_size, recipe.micro_batch_size), (8, 8));
    assert_eq!((recipe.lr, recipe.shl), (0.003, true));
    assert_eq!((recipe.lr_step_epochs, recipe.lr_gamma), (10, 0.5));
    assert_eq!((recipe.min_val, recipe.max_val, recipe.decimals), (0.0, 100.0, 4));
    assert_eq!((recipe.value_encoding, recipe.numeric_positions), (ValueEncoding::Standard, 1));
    assert_eq!((recipe.mixed_tasks, recipe.mixed_max_numbers), (vec![Task::Min], 10));
    assert!(recipe.train_input_projection && recipe.train_output_projection);
    assert_eq!((recipe.seed, recipe.dataset_shuffle), (0, true));
    let run = config.run;
    assert_eq!((run.dataset_file, run.model_path_load, run.resume), (None, None, None));
    assert_eq!(run.model_path_save, Path::new("chk/nn.safetensors"));
    assert_eq!(run.run_id, "nn");
    assert_eq!((run.checkpoint_every, run.keep_checkpoints), (100, 3));
    assert_eq!((run.workers, run.min_workers, run.max_workers, run.max_restarts), (2, 1, 64, 3));
    assert_eq!((run.device, run.deterministic), (DeviceChoice::Auto, true));
    assert_eq!((run.prefetch_steps, run.eval_every), (4, 0));
    assert_eq!(run.heartbeat, Duration::from_millis(500));
    assert_eq!(run.dead_after, Duration::from_secs(3));
    assert_eq!(run.join_debounce, Duration::from_millis(200));
    assert_eq!(run.coordinator_wait, Duration::from_secs(30));
}

#[test]
fn the_tables_defaults_are_what_is_resolved() {
    let config = resolve(None, env(&[]), flags(&[])).unwrap();
    for key in keys() {
        match key.default {
            KeyDefault::Value(text) => {
                let shown = key.show(&config);
                assert!(shown == text || shown == format!("{text}.0"), "{}: {shown}", key.name);
            }
            KeyDefault::Unset => assert_eq!(key.show(&config), "none", "{}", key.name),
            KeyDefault::Derived(_) => {}
        }
    }
}

#[test]
fn later_sources_win() {
    let yaml = "lr: 0.1\nbatch_size: 4\nseed: 1\ndataset:\n  file: a.jsonl\n";
    let variables = [("NUMALIGN_LR", "0.2"), ("NUMALIGN_SEED", "2"), ("NUMALIGN_DATASET_FILE", "b")];
    let config = resolve(file(yaml), env(&variables), flags(&[("lr", "0.3")])).unwrap();
    assert_eq!(config.recipe.lr, 0.3);
    assert_eq!(config.recipe.seed, 2);
    assert_eq!(config.recipe.batch_size, 4);
    assert_eq!(config.run.dataset_file, Some("b".into()));
    let config = resolve(file(yaml), env(&variables), flags(&[("dataset.file", "c")])).unwrap();
    assert_eq!(config.run.dataset_file, Some("c".into()));
}

#[test]
fn an_overruled_value_is_not_judged() {
    let config = resolve(file("lr: abc"), env(&[]), flags(&[("lr", "0.3")])).unwrap();
    assert_eq!(config.recipe.lr, 0.3);
}

#[test]
fn null_means_not_set() {
    let yaml = "lr: null\nresume: ~\nmodel_path_load:\ndataset:\n  file: null\n  shuffle:\n";
    let config = from_yaml(yaml).unwrap();
    assert_eq!(config.recipe.lr, 0.003);
    assert_eq!((config.run.resume, config.run.model_path_load), (None, None));
    assert_eq!(config.run.dataset_file, None);
    assert!(config.recipe.dataset_shuffle);
    let config = resolve(file("lr: null"), env(&[("NUMALIGN_LR", "0.2")]), flags(&[])).unwrap();
    assert_eq!(config.recipe.lr, 0.2);
}

#[test]
fn some_defaults_follow_the_stage() {
    for (stage, decimals, input) in [("nn", 4, true), ("text", 4, false), ("mixed", 2, true)] {
        let config = from_flags(&[("stage", stage)]).unwrap();
        assert_eq!(config.recipe.decimals, decimals, "{stage}");
        assert_eq!(config.recipe.train_input_projection, input, "{stage}");
        assert!(config.recipe.train_output_projection, "{stage}");
        assert_eq!(config.run.run_id, stage);
    }
    let config = from_flags(&[("stage", "mixed"), ("decimals", "0")]).unwrap();
    assert_eq!(config.recipe.decimals, 0);
}

#[test]
fn the_default_micro_batch_divides_the_batch() {
    for (batch, micro) in [(1, 1), (3, 3), (7, 7), (8, 8), (9, 3), (10, 5), (11, 1), (12, 6), (32, 8)] {
        let config = from_flags(&[("batch_size", &batch.to_string())]).unwrap();
        assert_eq!(config.recipe.micro_batch_size, micro, "batch_size {batch}");
    }
}

#[test]
fn the_run_is_named_after_the_file() {
    let config = from_yaml("stage: text").unwrap();
    assert_eq!(config.run.run_id, "run");
    assert_eq!(config.run.model_path_save, Path::new("chk/run.safetensors"));
    let config = from_yaml("run_id: 2024").unwrap();
    assert_eq!(config.run.run_id, "2024");
    assert_eq!(config.run.model_path_save, Path::new("chk/2024.safetensors"));
    let source = Source::from_yaml_text(Path::new("my run.yaml"), "lr: 0.1");
    let error = resolve(Some(source), env(&[]), flags(&[])).unwrap_err().to_string();
    assert_eq!(
        error,
        "my run.yaml: run_id = my run: comes from the file's name and must have letters, digits, '.', '_' and '-' only, not ' '; hint: set run_id, or rename the file"
    );
    let source = Source::from_yaml_text(Path::new("my run.yaml"), "lr: 0.1");
    assert!(resolve(Some(source), env(&[]), flags(&[("run_id", "mine")])).is_ok());
}

#[test]
fn typed_values_reach_their_fields() {
    let config = from_flags(&[
        ("resume", "chk/a/step-00000100.safetensors"),
        ("device", "cuda:2"),
        ("mixed-tasks", "min,count"),
        ("heartbeat", "100ms"),
        ("model-path-save", "out/final.safetensors"),
        ("dataset.shuffle", "false"),
    ])
    .unwrap();
    assert_eq!(config.run.resume, Some(Resume::File("chk/a/step-00000100.safetensors".into())));
    assert_eq!(config.run.device, DeviceChoice::Cuda(Some(2)));
    assert_eq!(config.recipe.mixed_tasks, vec![Task::Min, Task::Count]);
    assert_eq!(config.run.heartbeat, Duration::from_millis(100));
    assert_eq!(config.run.model_path_save, Path::new("out/final.safetensors"));
    assert!(!config.recipe.dataset_shuffle);
}

#[test]
fn all_errors_are_reported_at_once_with_their_origins() {
    let yaml = "lr: -1\nbacth_size: 4\nshl: 1\nmicro_batch_size: 3\n";
    let variables = [("NUMALIGN_SEED", "1.5"), ("NUMALIGN_LRR", "2")];
    let errors = resolve(file(yaml), env(&variables), flags(&[("workers", "0")])).unwrap_err();
    let lines: Vec<String> = errors.errors.iter().map(|error| error.to_string()).collect();
    assert_eq!(
        lines,
        [
            "dir/run.yaml: bacth_size: unknown key; hint: did you mean batch_size?",
            "NUMALIGN_LRR: unknown environment variable; hint: did you mean NUMALIGN_LR?",
            "dir/run.yaml: lr = -1: must be above 0",
            "dir/run.yaml: shl = 1: must be true or false, not a number",
            "NUMALIGN_SEED: seed = 1.5: must be a whole number, at least 0",
            "dir/run.yaml: micro_batch_size = 3: must divide batch_size = 8 (default); hint: 2 or 1 would do",
            "--workers: workers = 0: must be a whole number from 1 to 65536",
        ]
    );
    assert_eq!(errors.to_string(), lines.join("\n"));
}

#[test]
fn an_invalid_stage_is_reported_once() {
    assert_eq!(
        refusal(&[("stage", "words"), ("run_id", "a")]),
        "--stage: stage = words: must be one of nn, text, mixed"
    );
    assert_eq!(refusal(&[("stage", "words")]).lines().count(), 1);
}

#[test]
fn an_empty_variable_is_an_empty_value() {
    let errors = resolve(None, env(&[("NUMALIGN_MODEL_NAME", "")]), flags(&[])).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "NUMALIGN_MODEL_NAME: model_name = \"\": must not be empty; hint: leave it out to use the default"
    );
}

#[test]
fn an_unreadable_file_hides_follow_on_errors() {
    let missing = || Some(Source::from_yaml_file(Path::new("no/such.yaml")));
    let errors = resolve(missing(), env(&[]), flags(&[("max_val", "-5"), ("lr", "x")])).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "no/such.yaml: does not exist; hint: check the path; it starts from the current directory\n--lr: lr = x: must be a number"
    );
}

#[test]
fn counts_have_bounds() {
    for key in ["numeric_positions", "checkpoint_every", "keep_checkpoints", "prefetch_steps"] {
        assert!(refusal(&[(key, "0")]).contains("must be a whole number from 1 to "), "{key}");
        assert!(refusal(&[(key, "99999999999999999999")]).contains("must be a whole number"), "{key}");
    }
    assert!(refusal(&[("mixed_max_numbers", "1001")]).contains("from 1 to 1000"));
    assert!(refusal(&[("lr_gamma", "0")]).contains("must be above 0"));
    assert!(from_flags(&[("eval_every", "0"), ("max_restarts", "0")]).is_ok());
    assert_eq!(from_flags(&[("seed", "18446744073709551615")]).unwrap().recipe.seed, u64::MAX);
}

#[test]
fn encoders_follow_from_one_another() {
    let recipe = from_flags(&[("value_encoding", "signlog"), ("min_val", "-5")]).unwrap().recipe;
    assert_eq!((recipe.target_encoding(), recipe.value_distribution()), (TargetEncoding::Signlog, Distribution::Log));
    assert_eq!((recipe.log_threshold, recipe.target, recipe.distribution), (Some(1e-6), None, None));
    let recipe = from_flags(&[("value_encoding", "signlog"), ("min_val", "0.5"), ("target", "linear")]).unwrap().recipe;
    assert_eq!((recipe.log_threshold, recipe.target), (Some(0.5), Some(TargetEncoding::Linear)));
    // What follows anyway is not stored, however it was said.
    let said = from_flags(&[("target", "linear"), ("distribution", "uniform"), ("layer", "-1")]).unwrap();
    assert_eq!(said.recipe, from_flags(&[]).unwrap().recipe);
    assert_eq!(from_flags(&[("value_encoding", "fourier")]).unwrap().recipe.fourier_periods, Some(8));
}

#[test]
fn encoder_settings_that_mean_nothing_are_refused() {
    for (key, value, place) in [
        ("fourier_periods", "4", "value_encoding fourier"),
        ("log_threshold", "1", "distribution log"),
        ("huber_delta", "1", "loss huber"),
    ] {
        let message = refusal(&[(key, value)]);
        assert!(message.contains(key) && message.contains(place), "{message}");
    }
    let message = refusal(&[("loss", "relative"), ("value_encoding", "signlog")]);
    assert!(message.contains("target = signlog"), "{message}");
    let message = refusal(&[("stage", "text"), ("pooling", "numbers")]);
    assert!(message.contains("use mean or last"), "{message}");
    for layer in ["-3", "-2", "1.5", "last"] {
        let message = refusal(&[("layer", layer)]);
        assert!(message.contains("number of a block"), "{message}");
    }
}

#[test]
fn the_transformer_stays_frozen() {
    let message = refusal(&[("train_transformer", "true")]);
    assert!(message.contains("stays frozen") && message.contains("train_layer_norms"), "{message}");
    assert!(from_flags(&[("train_transformer", "false")]).is_ok());
    let norms_alone = [("train_layer_norms", "true"), ("stage", "text"), ("train_output_projection", "false")];
    assert!(from_flags(&norms_alone).is_ok());
}

#[test]
fn the_stronger_source_says_what_is_read() {
    let places = |file: &[(&'static str, &str)], flags: &[(&'static str, &str)]| {
        let source =
            |pairs: &[(&'static str, &str)]| pairs.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        let (file, flags): (Vec<_>, Vec<_>) = (source(file), source(flags));
        let file = Source::worked_out("a file", file);
        let resolved = resolve_over(vec![file], None, Source::from_env([]), Source::from_flags(flags));
        resolved.map(|config| config.recipe.places().iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let stored = [("taps", "[0:last, 0:mean]")];
    assert_eq!(places(&stored, &[]).unwrap(), ["0:last", "0:mean"]);
    let lists = [("layer", "0,2"), ("pooling", "mean")];
    assert_eq!(places(&stored, &lists).unwrap(), ["0:mean", "2:mean"]);
    assert_eq!(places(&lists, &stored).unwrap(), ["0:last", "0:mean"]);
    assert_eq!(places(&stored, &[("layer", "2")]).unwrap(), ["2:last"]);
    let both = [("taps", "[0:last, 0:mean]"), ("layer", "0,2")];
    assert!(places(&[], &both).unwrap_err().to_string().contains("give either taps or layer and pooling"));
}

#[test]
fn what_was_worked_out_is_weaker_than_any_source() {
    let weaker = Source::worked_out("the rows", [("min_val", "3.5".to_string()), ("max_val", "90".to_string())]);
    let flags = || Source::from_flags([("max_val", "80".to_string())]);
    let config = resolve_over(vec![weaker.clone()], None, Source::from_env([]), flags()).unwrap();
    assert_eq!((config.recipe.min_val, config.recipe.max_val), (3.5, 80.0));
    let stored =
        Source::of_recipe("the checkpoint", &config.recipe, &["min_val", "dataset.input", "dataset.eval_share"]);
    let again = resolve_over(vec![weaker, stored], None, Source::from_env([]), Source::from_flags::<&str>([])).unwrap();
    assert_eq!((again.recipe.min_val, again.recipe.max_val), (3.5, 90.0));
    assert_eq!((again.recipe.dataset_input, again.recipe.dataset_eval_share), (None, None), "unset stays unset");
    let low = Source::worked_out("the rows", [("min_val", "500".to_string())]);
    let errors = resolve_over(vec![low], None, Source::from_env([]), flags()).unwrap_err().to_string();
    assert!(errors.contains("min_val = 500.0 (the rows)") || errors.contains("500 (the rows)"), "{errors}");
}

#[test]
fn a_draft_passes_over_what_is_wrong() {
    let flags = Source::from_flags([("min_val", "auto"), ("lr", "fast"), ("dataset.file", "rows.csv")].map(owned));
    let mut sources = [Source::from_env([]), flags];
    let config = draft(&sources).unwrap();
    assert_eq!((config.recipe.min_val, config.recipe.lr), (0.0, 0.003));
    assert_eq!(config.run.dataset_file, Some("rows.csv".into()));
    assert!(sources[1].forget_auto("min_val") && !sources[1].is_set("min_val"));
    assert!(!sources[1].forget_auto("lr"));
}

fn owned((key, value): (&'static str, &str)) -> (&'static str, String) {
    (key, value.to_string())
}

#[test]
fn dataset_settings_are_stored_only_where_they_are_used() {
    let plain = from_flags(&[("dataset.input", "input"), ("dataset.output", "output"), ("dataset.eval_share", "0")]);
    assert_eq!(plain.unwrap().recipe, from_flags(&[]).unwrap().recipe);
    let set = from_flags(&[
        ("dataset.input", "$${age}&&"),
        ("dataset.eval_share", "0.25"),
        ("dataset.missing", "skip"),
        ("input_ranges", "0..80"),
    ]);
    let text = set.unwrap().recipe.digest_text();
    let end = r#""input_ranges":[[0.0,80.0]],"dataset_input":"$${age}&&","dataset_missing":"skip","dataset_eval_share":0.25}"#;
    assert!(text.ends_with(end), "{text}");
    let both = refusal(&[("dataset.eval_file", "b.csv"), ("dataset.eval_share", "0.1")]);
    assert!(both.contains("leave one of the two out"), "{both}");
    assert!(refusal(&[("dataset.eval_share", "1")]).contains("below 1"));
    assert!(refusal(&[("min_val", "auto")]).contains("set dataset.file"));
    // Numbers of a dataset are never written out.
    let fine = [("stage", "text"), ("min_val", "1e-9"), ("max_val", "2e-9")];
    assert!(refusal(&fine).contains("decimals"));
    assert!(from_flags(&[&fine[..], &[("dataset.file", "rows.csv")]].concat()).is_ok());
    assert_eq!(from_flags(&[("dataset.separator", "tab")]).unwrap().run.dataset_separator.as_deref(), Some("\t"));
    assert!(refusal(&[("dataset.separator", ";;")]).contains("one character"));
}
