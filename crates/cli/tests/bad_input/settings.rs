//! Configuration keys, files, environment variables, and the command line.

use numalign_config::{Key, Source, keys, resolve};

use super::*;

/// Wrong values of a key as a file, a flag and a variable have them, with the name of the flag and of the variable.
struct Wrong {
    yaml: String,
    flag: String,
    variable: String,
}

impl Wrong {
    fn of(key: &Key) -> Self {
        let yaml = match key.name.split_once('.') {
            Some((group, inner)) => format!("{group}:\n  {inner}: [[]]\n"),
            None => format!("{}: [[]]\n", key.name),
        };
        Self { yaml, flag: format!("--{}", key.flag()), variable: key.env_name() }
    }
}

#[test]
fn every_key_refuses_a_wrong_value_from_every_source() {
    let folder = Folder::new();
    let none = || Source::from_env(Vec::new());
    let no_flags = || Source::from_flags::<&str>([]);
    let refused = |file, variables, flags, said: &[&str]| {
        let problems = resolve(file, variables, flags).expect_err("a wrong value").to_string();
        for word in said {
            assert!(problems.contains(word), "`{word}` is not in {problems}");
        }
    };
    for key in keys() {
        let Wrong { yaml, flag, variable } = Wrong::of(key);
        let file = Source::from_yaml_file(&folder.write("wrong.yaml", yaml));
        refused(Some(file), none(), no_flags(), &["wrong.yaml", key.name, "must"]);
        refused(None, none(), Source::from_flags([(key.name, String::new())]), &[&flag, key.name, "must"]);
        let variables = Source::from_env([(variable.clone(), String::new())]);
        refused(None, variables, no_flags(), &[&variable, "must"]);
    }
}

/// The same through the program, for a key of each kind.
#[test]
fn a_wrong_value_from_any_source_ends_with_a_hint() {
    let folder = Folder::new();
    folder.write("empty.yaml", "");
    for name in ["stage", "num_epochs", "lr", "dataset.file", "heartbeat", "workers"] {
        let key = numalign_config::key(name).expect("a key");
        let Wrong { yaml, flag, variable } = Wrong::of(key);
        folder.write("wrong.yaml", yaml);
        refuse(&folder, &["config", "check", "wrong.yaml"], USAGE, &["wrong.yaml", key.name, "must", "hint:"]);
        refuse(&folder, &["config", "check", "empty.yaml", &flag, ""], USAGE, &[&flag, key.name, "must", "hint:"]);
        refuse_env(
            &folder,
            &["config", "show", "empty.yaml"],
            &[(&variable, "")],
            USAGE,
            &[&variable, "must", "hint:"],
        );
    }
}

#[test]
fn wrong_configuration_files_are_refused() {
    let folder = Folder::new();
    folder.write("folder.yaml/inside", "");
    let deep = "[".repeat(5000);
    let long = format!("# {}\nlr: 1\n", "x".repeat(1 << 17));
    let bomb = "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nlr: [*e,*e,*e,*e,*e,*e,*e,*e]\n";
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("latin1", b"model_name: caf\xe9\n", &["not UTF-8"]),
        ("binary", &[0, 1, 2, 3, 255], &["not UTF-8"]),
        ("broken", b"lr: [1\nstage: nn\n", &["not valid YAML"]),
        ("tabs", b"lr:\n\t- 1\n", &["not valid YAML"]),
        ("list", b"- lr\n- 1\n", &["key: value"]),
        ("text", b"hello\n", &["key: value"]),
        ("typo", b"bacth_size: 8\n", &["unknown key", "did you mean batch_size?"]),
        ("stranger", b"optimizer_betas: 1\n", &["unknown key", "optimizer_betas"]),
        ("twice", b"lr: 1\nlr: 1\n", &["lr", "more than once"]),
        ("number-key", b"3: 4\n", &["unknown key", "3"]),
        ("range", b"min_val: 5\nmax_val: 1\n", &["min_val", "max_val"]),
        ("divides", b"batch_size: 10\nmicro_batch_size: 4\n", &["micro_batch_size", "batch_size", "2 or 1 would do"]),
        ("yes", b"shl: 'yes'\n", &["shl", "write true"]),
        ("stage", b"stage: numbers\n", &["stage", "nn, text, mixed"]),
        ("tag", b"lr: !big 3\n", &["tag"]),
        ("dataset", b"dataset: samples.jsonl\n", &["dataset", "dataset.file"]),
        ("inner", b"dataset:\n  fil: a\n", &["dataset.fil", "did you mean dataset.file?"]),
        ("workers", b"workers: 3\nmax_workers: 2\n", &["workers", "max_workers"]),
        ("deep", deep.as_bytes(), &["not valid YAML"]),
        ("long", long.as_bytes(), &["larger than"]),
        ("bomb", bomb.as_bytes(), &["hint:"]),
    ];
    for (name, bytes, said) in cases {
        let file = format!("{name}.yaml");
        folder.write(&file, bytes);
        for command in [["config", "check", &file], ["config", "show", &file], ["launch", "--config", &file]] {
            refuse(&folder, &command, USAGE, &words(&[&["error:", "hint:", &file], said]));
        }
    }
    refuse(&folder, &["config", "check", "none.yaml"], USAGE, &["none.yaml", "does not exist", "hint:"]);
    refuse(&folder, &["config", "check", "folder.yaml"], USAGE, &["folder.yaml", "is a folder", "hint:"]);
    refuse(&folder, &["config", "check", "/dev/zero"], USAGE, &["/dev/zero", "hint:"]);
    // All problems are told together.
    folder.write("many.yaml", "lr: fast\nseeds: 3\nworkers: 0\n");
    refuse(&folder, &["launch", "--config", "many.yaml"], USAGE, &["lr = fast", "seeds", "workers = 0"]);
    assert!(!folder.path().join("chk").exists(), "a refused configuration starts nothing");
}

#[test]
fn wrong_environment_variables_are_refused() {
    let folder = Folder::new();
    folder.write("good.yaml", "stage: nn\n");
    for (name, value, said) in [
        ("NUMALIGN_BACTH_SIZE", "8", "NUMALIGN_BATCH_SIZE"),
        ("NUMALIGN_LR", "fast", "must be a number"),
        ("NUMALIGN_WORKERS", "0", "must be a whole number"),
        ("NUMALIGN_STAGE", "NN", "write nn"),
        ("NUMALIGN_HEARTBEAT", "often", "must be a time"),
        ("NUMALIGN_TOKE", "secret", "NUMALIGN_TOKEN"),
    ] {
        for command in
            [vec!["config", "check", "good.yaml"], vec!["launch"], vec!["coordinator", "--listen", "127.0.0.1:0"]]
        {
            let output = refuse_env(&folder, &command, &[(name, value)], USAGE, &[name, said, "hint:"]);
            assert!(!output.stderr.contains("secret"), "{output}");
        }
    }
    let url = ["worker", "--coordinator", "http://127.0.0.1:9"];
    refuse_env(
        &folder,
        &url,
        &[("NUMALIGN_COORDINATOR_WAIT", "soon")],
        USAGE,
        &["NUMALIGN_COORDINATOR_WAIT", "must be a time"],
    );
    refuse_env(
        &folder,
        &["worker", "--device", "cuda"],
        &[("LOCAL_RANK", "first"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "1")],
        USAGE,
        &["LOCAL_RANK", "first"],
    );
}

#[test]
fn wrong_usage_is_refused() {
    let folder = Folder::new();
    folder.write("nn.safetensors", checkpoint());
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["Usage"]),
        (&["lunch"], &["lunch"]),
        (&["launch", "numbers"], &["numbers", "mixed"]),
        (&["launch", "--bacth-size", "8"], &["--bacth-size", "--batch-size"]),
        (&["launch", "--lr", "1", "--lr", "2"], &["--lr"]),
        (&["launch", "--lr"], &["--lr"]),
        (&["launch", "nn", "--stage", "text"], &["stage", "twice"]),
        (&["launch", "nn", "--workers", "-1"], &["--workers", "-1"]),
        (&["launch", "nn", "--device", "gpu"], &["--device", "gpu"]),
        (&["launch", "nn", "--eval-samples", "0"], &["--eval-samples", "0"]),
        (&["launch", "nn", "--eval-count", "0"], &["--eval-count", "0"]),
        (&["coordinator"], &["--listen"]),
        (&["worker", "--workers", "2"], &["--workers"]),
        (&["generate", "--count", "1", "--out", "x"], &["STAGE"]),
        (&["generate", "nn", "--count", "-1", "--out", "x"], &["--count"]),
        (&["generate", "nn", "--count", "many", "--out", "x"], &["many"]),
        (&["eval", "--checkpoint", "nn.safetensors", "--count", "0"], &["--count"]),
        (&["eval", "--checkpoint", "nn.safetensors", "--device", "tpu"], &["tpu", "hint:"]),
        (&["eval"], &["--checkpoint"]),
        (&["predict", "--checkpoint", "nn.safetensors", "1", "--jsno"], &["--jsno", "--json"]),
        (&["predict", "--checkpoint", "nn.safetensors"], &["INPUT"]),
        (&["predict", "--checkpoint", "nn.safetensors", "twelve"], &["twelve", "not a number", "hint:"]),
        (&["predict", "--checkpoint", "nn.safetensors", "nan"], &["nan"]),
        (&["predict", "--checkpoint", "nn.safetensors", ""], &["not a number"]),
        (&["predict", "--checkpoint", "nn.safetensors", "1e999"], &["1e999"]),
        (&["inspect"], &["FILE"]),
        (&["hidden", "--model", "demo"], &["--text"]),
        (&["hidden", "--text", "hello"], &["--model", "hint:"]),
        (&["hidden", "--model", "demo", "--text", "a", "--ids", "1"], &["exactly one"]),
        (&["hidden", "--model", "demo", "--text", ""], &["no tokens"]),
        (&["hidden", "--model", "demo", "--ids", "1,x"], &["`x`"]),
        (&["hidden", "--model", "demo", "--ids", "-1"], &["-1"]),
        (&["hidden", "--value", "1"], &["--checkpoint", "hint:"]),
        (&["hidden", "--checkpoint", "nn.safetensors", "--value", "x"], &["x"]),
        (&["bench"], &["step"]),
        (&["bench", "step", "--steps", "0"], &["--steps"]),
        (&["bench", "step", "--model", "demo", "--positions", "9999999"], &["numeric_positions"]),
        (&["config", "check"], &["FILE"]),
    ];
    for (args, said) in cases {
        refuse(&folder, args, USAGE, said);
    }
    let failing: &[(&[&str], &[&str])] = &[
        (&["hidden", "--model", "demo", "--ids", "640"], &["640", "vocabulary", "hint:"]),
        (&["bench", "step", "--model", "demo", "--positions", "300"], &["300", "256", "hint:"]),
        (&["generate", "nn", "--count", "1", "--out", "none/x.jsonl"], &["none/x.jsonl", "hint:"]),
        (&["generate", "nn", "--count", "1", "--out", "."], &["folder", "hint:"]),
    ];
    for (args, said) in failing {
        refuse(&folder, args, FAILED, &words(&[&["error:"], said]));
    }
}
