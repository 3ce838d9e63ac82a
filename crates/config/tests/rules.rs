//! The rules between keys, each by its message.

use numalign_config::{Config, ConfigErrors, Source, resolve};

fn from_flags(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::with(pairs)
}

/// The message of a configuration of flags that has to be refused.
fn refusal(pairs: &[(&str, &str)]) -> String {
    from_flags(pairs).unwrap_err().to_string()
}

#[test]
fn the_environment_is_named_where_it_clashes() {
    let yaml = Source::from_yaml_text("run.yaml".as_ref(), "micro_batch_size: 8\n");
    let env = Source::from_env([("NUMALIGN_BATCH_SIZE".to_string(), "12".to_string())]);
    let errors = resolve(Some(yaml), env, Source::from_flags::<&str>([])).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "run.yaml: micro_batch_size = 8: must divide batch_size = 12 (NUMALIGN_BATCH_SIZE); hint: 6 or 4 or 3 would do"
    );
}

#[test]
fn micro_batches_divide_the_batch() {
    assert_eq!(
        refusal(&[("batch_size", "12"), ("micro_batch_size", "8")]),
        "--micro-batch-size: micro_batch_size = 8: must divide batch_size = 12 (--batch-size); hint: 6 or 4 or 3 would do"
    );
    assert!(refusal(&[("batch_size", "4"), ("micro_batch_size", "8")]).contains("hint: 4 or 2 or 1"));
}

#[test]
fn a_run_can_be_counted() {
    let message = refusal(&[("num_epochs", "9007199254740991")]);
    assert!(message.starts_with("--num-epochs: num_epochs = 9007199254740991: "), "{message}");
    assert!(message.contains("at most 9007199254740991 are allowed"), "{message}");
    let most = [("num_epochs", "9007199254740991"), ("num_batches", "1"), ("batch_size", "1")];
    assert!(from_flags(&most).is_ok());
    for key in ["num_epochs", "num_batches", "batch_size", "micro_batch_size", "lr_step_epochs"] {
        assert!(refusal(&[(key, "0")]).contains(" = 0: must be a whole number from 1 to "), "{key}");
    }
}

#[test]
fn ranges_are_ordered_and_finite() {
    assert_eq!(
        refusal(&[("min_val", "100")]),
        "--min-val: min_val = 100: must be below max_val = 100 (default); hint: set min_val and max_val together"
    );
    assert_eq!(
        refusal(&[("max_val", "-1")]),
        "--max-val: max_val = -1: must be above min_val = 0 (default); hint: set min_val and max_val together"
    );
    assert!(refusal(&[("min_val", "-3e38"), ("max_val", "3e38")]).contains("gives a range of 6e38"));
    assert!(refusal(&[("max_val", "1e-40")]).contains("gives a range of 1e-40"));
    assert!(refusal(&[("max_val", "inf")]).contains("must be a finite number"));
    assert!(refusal(&[("min_val", "nan")]).contains("must be a finite number"));
}

#[test]
fn texts_have_numbers_to_write() {
    let narrow = [("min_val", "0.1"), ("max_val", "0.9"), ("decimals", "0")];
    assert!(from_flags(&narrow).is_ok(), "stage nn writes no numbers");
    for stage in ["text", "mixed"] {
        let mut pairs = narrow.to_vec();
        pairs.push(("stage", stage));
        let message = refusal(&pairs);
        assert!(message.starts_with("--decimals: decimals = 0: stage "), "{message}");
        assert!(message.contains("min_val = 0.1 (--min-val)"), "{message}");
    }
    let message = refusal(&[("stage", "text"), ("max_val", "1e12")]);
    assert!(message.contains("exactly with decimals = 4 (default)"), "{message}");
    assert!(refusal(&[("decimals", "13")]).contains("from 0 to 12"));
}

#[test]
fn something_trains() {
    let nothing = [("train_input_projection", "false"), ("train_output_projection", "false")];
    assert_eq!(
        refusal(&nothing),
        "--train-output-projection: train_output_projection = false: leaves nothing to train with train_input_projection = false (--train-input-projection); hint: set one of the two to true"
    );
    assert!(from_flags(&nothing[..1]).is_ok());
    assert!(from_flags(&nothing[1..]).is_ok());
    assert_eq!(
        refusal(&[("stage", "text"), ("train_input_projection", "true")]),
        "--train-input-projection: train_input_projection = true: must be false with stage = text (--stage), which does not use the input projector; hint: leave it out, or set it to false"
    );
    assert_eq!(
        refusal(&[("stage", "text"), ("train_output_projection", "false")]),
        "--train-output-projection: train_output_projection = false: leaves nothing to train with train_input_projection = false (default); hint: set train_output_projection to true"
    );
}

#[test]
fn workers_are_ordered() {
    assert_eq!(
        refusal(&[("workers", "65")]),
        "--workers: workers = 65: must not be above max_workers = 64 (default); hint: raise max_workers or lower workers"
    );
    assert_eq!(
        refusal(&[("max_workers", "1")]),
        "--max-workers: max_workers = 1: must not be below workers = 2 (default); hint: raise max_workers or lower workers"
    );
    assert_eq!(
        refusal(&[("min_workers", "3")]),
        "--min-workers: min_workers = 3: must not be above workers = 2 (default); hint: raise workers or lower min_workers"
    );
    assert_eq!(refusal(&[("min_workers", "9"), ("max_workers", "8")]).lines().count(), 1);
    assert!(from_flags(&[("min_workers", "4"), ("workers", "4"), ("max_workers", "4")]).is_ok());
}

#[test]
fn timeouts_are_ordered() {
    assert_eq!(
        refusal(&[("dead_after", "0.9")]),
        "--dead-after: dead_after = 0.9: must be at least twice heartbeat = 0.5s (default); hint: raise dead_after to 1s or lower heartbeat to 0.45s"
    );
    assert_eq!(
        refusal(&[("heartbeat", "2s")]),
        "--heartbeat: heartbeat = 2s: must be at most half of dead_after = 3s (default); hint: raise dead_after to 4s or lower heartbeat to 1.5s"
    );
    assert!(from_flags(&[("dead_after", "1s")]).is_ok());
    for key in ["heartbeat", "dead_after", "coordinator_wait"] {
        assert!(refusal(&[(key, "0")]).contains("must be above 0"), "{key}");
    }
    assert!(from_flags(&[("join_debounce", "0")]).is_ok());
}
