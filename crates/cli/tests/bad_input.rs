//! Everything wrong that can be given to the program ends in one clear error: exit code 1 or 2, words that name what is
//! wrong, no panic, no hang, nothing damaged on disk.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{Folder, Output, check, words};
use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::coordinator_server::{Coordinator, CoordinatorServer};
use numalign_protocol::worker_message::Message;
use tonic::codegen::tokio_stream::{self, Stream};
use tonic::{Request, Response, Status, Streaming};

const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// A run of two steps on the demo model.
const TINY: &[&str] = &["--no-eval", "--workers", "1", "--num-epochs", "1", "--num-batches", "2"];

/// Runs it, expects the refusal, and finds every file that was there as it was.
fn refuse(folder: &Folder, args: &[&str], code: i32, said: &[&str]) -> Output {
    refuse_env(folder, args, &[], code, said)
}

fn refuse_env(folder: &Folder, args: &[&str], envs: &[(&str, &str)], code: i32, said: &[&str]) -> Output {
    let before = folder.contents();
    let output = folder.run_env(args, envs);
    check(&args.join(" "), &output, code, said);
    unharmed(&args.join(" "), folder, &before);
    assert_eq!(output.stdout, "", "{}: results only on standard output", args.join(" "));
    let errors = output.stderr.lines().filter(|line| line.starts_with("error:")).count();
    assert!(errors <= 1, "{}: one error is enough: {output}", args.join(" "));
    output
}

/// Every file of `before` is there with the same bytes, and nothing temporary is left.
fn unharmed(what: &str, folder: &Folder, before: &[(PathBuf, Vec<u8>)]) {
    let after = folder.contents();
    for (path, bytes) in before {
        if path.ends_with("lock") || path.ends_with("metrics.jsonl") {
            continue;
        }
        let same = after.iter().any(|(other, now)| other == path && now == bytes);
        assert!(same, "{what}: {} changed", path.display());
    }
    for (path, _) in &after {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert!(!name.ends_with(".tmp") && !name.ends_with(".probe"), "{what} left {}", path.display());
    }
}

/// A checkpoint of a run of two steps of stage nn on the demo model.
fn checkpoint() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = Folder::new();
        let output = folder.run(&words(&[&["launch", "nn"], TINY]));
        assert!(output.status.success(), "{output}");
        folder.read("chk/nn.safetensors")
    })
}

#[test]
fn every_key_refuses_a_wrong_value_from_every_source() {
    let folder = Folder::new();
    folder.write("empty.yaml", "");
    for key in numalign_config::keys() {
        let yaml = match key.name.split_once('.') {
            Some((group, inner)) => format!("{group}:\n  {inner}: [[]]\n"),
            None => format!("{}: [[]]\n", key.name),
        };
        folder.write("wrong.yaml", yaml);
        refuse(&folder, &["config", "check", "wrong.yaml"], USAGE, &["wrong.yaml", key.name, "must", "hint:"]);
        let flag = format!("--{}", key.flag());
        refuse(&folder, &["config", "check", "empty.yaml", &flag, ""], USAGE, &[&flag, key.name, "must", "hint:"]);
        let name = key.env_name();
        refuse_env(&folder, &["config", "show", "empty.yaml"], &[(&name, "")], USAGE, &[&name, "must", "hint:"]);
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

#[test]
fn a_mixed_text_without_sense_is_refused() {
    let folder = Folder::new();
    folder.write("nn.safetensors", checkpoint());
    for text in ["$$1", "$$&&", "$$1$$2&&", "$$x&&", "$$1e999&&"] {
        let args = ["hidden", "--checkpoint", "nn.safetensors", "--mixed", text];
        refuse(&folder, &args, FAILED, &["error:", "byte 0", "hint:"]);
    }
    refuse(&folder, &["hidden", "--checkpoint", "nn.safetensors", "--mixed", ""], FAILED, &["error:"]);
}

#[test]
fn a_bad_line_of_a_dataset_is_named() {
    let folder = Folder::new();
    folder.write("nn.safetensors", checkpoint());
    let good = "{\"input\": 1, \"output\": 1}\n";
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("json", b"{\"input\": 1, \"output\": }\n", &["line 2", "bad JSON"]),
        ("cut", b"{\"input\": 1, \"outp", &["line 2", "bad JSON"]),
        ("blank", b"\n{\"input\": 1, \"output\": 1}\n", &["line 2", "blank line"]),
        ("missing", b"{\"input\": 1}\n", &["line 2", "missing key \"output\""]),
        ("unknown", b"{\"input\": 1, \"output\": 1, \"weight\": 2}\n", &["line 2", "unknown key \"weight\""]),
        ("twice", b"{\"input\": 1, \"input\": 1, \"output\": 1}\n", &["line 2", "duplicate key \"input\""]),
        ("list", b"[1, 1]\n", &["line 2", "expected an object"]),
        ("null", b"{\"input\": 1, \"output\": null}\n", &["line 2", "\"output\""]),
        ("text", b"{\"input\": \"a\", \"output\": 1}\n", &["line 2", "\"input\"", "number"]),
        ("nan", b"{\"input\": NaN, \"output\": 1}\n", &["line 2"]),
        ("infinite", b"{\"input\": 1e999, \"output\": 1}\n", &["line 2", "\"input\""]),
        ("utf8", b"{\"input\": \"\xff\", \"output\": 1}\n", &["line 2", "UTF-8"]),
    ];
    for (name, bytes, said) in cases {
        let file = format!("{name}.jsonl");
        folder.write(&file, [good.as_bytes(), bytes].concat());
        let said = words(&[&["error:", "hint:", &file], said]);
        refuse(&folder, &["eval", "--checkpoint", "nn.safetensors", "--dataset", &file], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "nn", "--dataset.file", &file], TINY]), FAILED, &said);
    }
    folder.write("none.jsonl", "");
    let run = |file: &str, said: &[&str]| {
        refuse(&folder, &words(&[&["launch", "nn", "--dataset.file", file], TINY]), FAILED, said);
    };
    run("none.jsonl", &["none.jsonl", "no samples", "hint:"]);
    run("absent.jsonl", &["absent.jsonl", "No such file", "hint:"]);
    run(".", &["error:", "hint:"]);
}

#[test]
fn a_damaged_checkpoint_is_refused_by_every_reader() {
    let folder = Folder::new();
    let good = checkpoint();
    folder.write("good.safetensors", good);
    folder.write("run.yaml", "{}\n");
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    let flip = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let foreign = std::fs::read(common::fixtures().join("small-f32/model.safetensors")).unwrap();
    let mut endless_header = good.to_vec();
    endless_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "empty"),
        ("short", good[..5].to_vec(), "damaged"),
        ("header", good[..200].to_vec(), "damaged"),
        ("truncated", good[..good.len() - 1].to_vec(), "damaged"),
        ("half", good[..good.len() / 2].to_vec(), "damaged"),
        ("longer", [good, b"x"].concat(), "damaged"),
        ("flipped", flip(good.len() - 3), "damaged"),
        ("foreign", foreign, "not a numalign checkpoint"),
        ("text", b"this is a text file, longer than eight bytes\n".to_vec(), "damaged"),
        ("yaml", b"lr: 1\n".to_vec(), "damaged"),
        ("zeros", vec![0; 4096], "damaged"),
        ("endless", endless_header, "damaged"),
    ];
    for (name, bytes, said) in &cases {
        let file = format!("{name}.safetensors");
        folder.write(&file, bytes);
        let said = ["error:", "hint:", file.as_str(), *said];
        refuse(&folder, &["inspect", &file], FAILED, &said);
        refuse(&folder, &["inspect", &file, "--json"], FAILED, &said);
        refuse(&folder, &["eval", "--checkpoint", &file, "--count", "2"], FAILED, &said);
        refuse(&folder, &["predict", "--checkpoint", &file, "1"], FAILED, &said);
        refuse(&folder, &["hidden", "--checkpoint", &file, "--value", "1"], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "--run-id", "x", "--resume", &file], TINY]), FAILED, &said);
        refuse(&folder, &words(&[&["launch", "--run-id", "x", "--model-path-load", &file], TINY]), FAILED, &said);
    }
    for (file, said) in [("missing.safetensors", "No such file"), ("folder", "not a file"), ("/dev/zero", "not a file")]
    {
        let said = ["error:", "hint:", file, said];
        refuse(&folder, &["inspect", file], FAILED, &said);
        refuse(&folder, &["predict", "--checkpoint", file, "1"], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "--run-id", "x", "--resume", file], TINY]), FAILED, &said);
    }
    // Wherever a byte is wrong, it is noticed.
    for at in (0..good.len()).step_by(good.len() / 64).chain(0..8) {
        folder.write("flipped.safetensors", flip(at));
        refuse(&folder, &["inspect", "flipped.safetensors"], FAILED, &["error:", "hint:", "flipped.safetensors"]);
    }
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let folder = Folder::new();
    folder.write("demo.safetensors", checkpoint());
    folder.copy_fixture("small-f32", "small");
    let other = ["--model", "small"];
    let said = ["another frozen model", "small", "hint:"];
    refuse(&folder, &words(&[&["eval", "--checkpoint", "demo.safetensors"], &other]), FAILED, &said);
    // Flags may stand behind the inputs, and a number may be negative.
    refuse(&folder, &words(&[&["predict", "--checkpoint", "demo.safetensors", "1", "-2.5"], &other]), FAILED, &said);
    let load = ["launch", "--model-name", "small", "--model-path-load", "demo.safetensors"];
    refuse(&folder, &words(&[&load, TINY]), FAILED, &["error:", "hint:", "model"]);
}

/// Replaces `from` by `to` in a file of the model folder.
fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} holds `{from}`", path.display());
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// A safetensors file with the header `text` and `count` zero bytes.
fn safetensors_file(text: &str, count: usize) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &vec![0; count]].concat()
}

type Damage = fn(&Path);

#[test]
fn damaged_model_folders_are_refused() {
    let cases: &[(&str, Damage, &[&str])] = &[
        ("small-f32", |m| std::fs::remove_file(m.join("config.json")).unwrap(), &["config.json", "No such file"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), "{").unwrap(), &["config.json", "not JSON"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), "").unwrap(), &["config.json", "not JSON"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), "[]").unwrap(), &["config.json", "not a JSON object"]),
        ("small-f32", |m| std::fs::write(m.join("config.json"), b"\xff\xfe").unwrap(), &["config.json"]),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"gpt2\"", "\"gpt_neox\""),
            &["model_type", "gpt_neox", "gpt2, llama"],
        ),
        ("small-f32", |m| edit(&m.join("config.json"), "\"model_type\"", "\"model_tipe\""), &["model_type"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"gelu_new\"", "\"mish\""), &["activation_function", "mish"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_head\": 5", "\"n_head\": 7"), &["n_embd 30", "n_head 7"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_head\": 5", "\"n_head\": 0"), &["n_head is 0"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": \"30\""), &["n_embd"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": -30"), &["n_embd is -30"]),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": 1e300"), &["n_embd"]),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"n_embd\": 30", "\"n_embd\": 35"),
            &["misshapen", "wte.weight", "[97, 30]"],
        ),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"n_layer\": 3", "\"n_layer\": 4"),
            &["missing", "h.3.ln_1.weight"],
        ),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"n_layer\": 3", "\"n_layer\": 2"),
            &["unexpected", "h.2.ln_1.weight"],
        ),
        ("small-f32", |m| edit(&m.join("config.json"), "\"n_layer\": 3", "\"n_layer\": 9999"), &["missing", "more"]),
        ("small-f32", |m| edit(&m.join("config.json"), "1e-05", "0"), &["layer_norm_epsilon"]),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"add_cross_attention\": false", "\"add_cross_attention\": true"),
            &["add_cross_attention"],
        ),
        (
            "small-f32",
            |m| edit(&m.join("config.json"), "\"reorder_and_upcast_attn\": false", "\"reorder_and_upcast_attn\": 1"),
            &["reorder_and_upcast_attn"],
        ),
        ("small-f32", |m| std::fs::remove_file(m.join("model.safetensors")).unwrap(), &["neither model.safetensors"]),
        (
            "small-f32",
            |m| std::fs::rename(m.join("model.safetensors"), m.join("pytorch_model.bin")).unwrap(),
            &["only pytorch_model.bin", "safe_serialization"],
        ),
        (
            "small-f32",
            |m| {
                std::fs::remove_file(m.join("model.safetensors")).unwrap();
                std::fs::create_dir(m.join("model.safetensors")).unwrap();
            },
            &["model.safetensors", "not a file"],
        ),
        ("small-f32", |m| std::fs::write(m.join("model.safetensors"), "").unwrap(), &["model.safetensors", "0 bytes"]),
        ("small-f32", |m| std::fs::write(m.join("model.safetensors"), "a text file").unwrap(), &["model.safetensors"]),
        (
            "small-f32",
            |m| {
                let path = m.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
            },
            &["model.safetensors", "ends at byte"],
        ),
        (
            "small-f32",
            |m| {
                let path = m.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..100]).unwrap();
            },
            &["model.safetensors", "header claims"],
        ),
        (
            "small-f32",
            |m| {
                let text =
                    "{\"wte.weight\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,8]}}";
                std::fs::write(m.join("model.safetensors"), safetensors_file(text, 8)).unwrap();
            },
            &["model.safetensors", "header"],
        ),
        (
            "small-f32",
            |m| {
                let text = "{\"wte.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}";
                std::fs::write(m.join("model.safetensors"), safetensors_file(text, 8)).unwrap();
            },
            &["model.safetensors", "header"],
        ),
        (
            "small-f32",
            |m| {
                let text = "{\"wte.weight\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
                std::fs::write(m.join("model.safetensors"), safetensors_file(text, 8)).unwrap();
            },
            &["missing", "wte.weight"],
        ),
        (
            "sharded-bf16",
            |m| std::fs::remove_file(m.join("model-00002-of-00004.safetensors")).unwrap(),
            &["model-00002-of-00004.safetensors", "No such file"],
        ),
        (
            "sharded-bf16",
            |m| {
                let from = m.join("model-00001-of-00004.safetensors");
                std::fs::copy(from, m.join("model-00002-of-00004.safetensors")).unwrap();
            },
            &["occurs twice"],
        ),
        (
            "sharded-bf16",
            |m| std::fs::write(m.join("model.safetensors.index.json"), "{").unwrap(),
            &["index.json", "not JSON"],
        ),
        ("sharded-bf16", |m| std::fs::write(m.join("model.safetensors.index.json"), "{}").unwrap(), &["weight_map"]),
        (
            "sharded-bf16",
            |m| std::fs::write(m.join("model.safetensors.index.json"), "{\"weight_map\": {\"a\": 1}}").unwrap(),
            &["weight_map of a"],
        ),
        (
            "sharded-bf16",
            |m| {
                std::fs::write(m.join("model.safetensors.index.json"), "{\"weight_map\": {\"a\": \"../../x\"}}")
                    .unwrap()
            },
            &["leaves the folder", "../../x"],
        ),
        (
            "sharded-bf16",
            |m| edit(&m.join("model.safetensors.index.json"), "00004.safetensors", "00009.safetensors"),
            &["00009"],
        ),
        (
            "tokenizer",
            |m| std::fs::write(m.join("tokenizer.json"), "{}").unwrap(),
            &["tokenizer.json", "not a tokenizer"],
        ),
        ("tokenizer", |m| std::fs::write(m.join("tokenizer.json"), "").unwrap(), &["tokenizer.json"]),
    ];
    for (index, (fixture, damage, said)) in cases.iter().enumerate() {
        let folder = Folder::new();
        damage(&folder.copy_fixture(fixture, "model"));
        let said = words(&[&["error:", "hint:"], said]);
        refuse(&folder, &["hidden", "--model", "model", "--ids", "1,2"], FAILED, &said);
        refuse(&folder, &["bench", "step", "--model", "model", "--steps", "1"], FAILED, &said);
        // A worker's refusal ends the whole run, with its words; a few of them will do.
        if index % 5 == 0 {
            refuse(&folder, &words(&[&["launch", "nn", "--model-name", "model"], TINY]), FAILED, &said);
        }
    }
}

#[test]
fn a_model_without_tokenizer_is_refused_for_texts_only() {
    let folder = Folder::new();
    folder.copy_fixture("small-f32", "model");
    refuse(&folder, &["hidden", "--model", "model", "--text", "1"], FAILED, &["tokenizer", "hint:"]);
    refuse(&folder, &words(&[&["launch", "text", "--model-name", "model"], TINY]), FAILED, &["tokenizer", "hint:"]);
    let output = folder.run(&words(&[&["launch", "nn", "--model-name", "model"], TINY]));
    assert!(output.status.success(), "{output}");
}

#[test]
fn wrong_model_names_are_refused() {
    let folder = Folder::new();
    folder.write("file", "");
    for (name, said) in [
        ("synthetic:huge", "huge"),
        ("synthetic:small:x", "`x` is not a seed"),
        ("synthetic:small:-1", "`-1` is not a seed"),
        ("synthetic:small:1:2", "1:2"),
        ("synthetic:", "not a size"),
        ("./none", "no such folder"),
        ("/none/at/all", "no such folder"),
        ("~/models/gpt2", "no such folder"),
        ("a/b/c", "no such folder"),
        ("file", "it is a file"),
        ("my model", "neither a folder nor a possible hub id"),
        ("openai/gpt2?", "neither a folder"),
        ("gpt2/", "neither a folder"),
        ("..", "config.json"),
    ] {
        let code = if name == ".." { FAILED } else { USAGE };
        refuse(&folder, &["hidden", "--model", name, "--ids", "1"], code, &["error:", "hint:", said]);
        if name != ".." {
            refuse(
                &folder,
                &words(&[&["launch", "nn", "--model-name", name], TINY]),
                USAGE,
                &["error:", "hint:", said],
            );
        }
    }
    // A name that could be a hub's, without a network.
    for name in ["dmeo", "openai-community/gpt3"] {
        let said = ["error:", "hint:", name, "HF_HUB_OFFLINE"];
        refuse(&folder, &["hidden", "--model", name, "--ids", "1"], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "nn", "--model-name", name], TINY]), FAILED, &said);
    }
}

#[test]
fn wrong_addresses_are_refused() {
    let folder = Folder::new();
    for (url, said) in [
        ("nonsense", "http://"),
        ("https://127.0.0.1:7400", "http://"),
        ("http://127.0.0.1", "no port"),
        ("127.0.0.1:7400", "http://"),
        ("http://", "http://"),
        ("", "http://"),
        ("http://127.0.0.1:99999", "http://"),
        ("ftp://127.0.0.1:21", "http://"),
        ("http://a b:1", "http://"),
    ] {
        refuse(&folder, &["worker", "--coordinator", url], USAGE, &["error:", "coordinator's address", said, "hint:"]);
    }
    refuse(&folder, &["worker"], USAGE, &["no coordinator", "MASTER_ADDR", "hint:"]);
    let envs = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "many")];
    refuse_env(&folder, &["worker"], &envs, USAGE, &["127.0.0.1:many", "hint:"]);
    for (address, code) in [
        ("nonsense", USAGE),
        ("127.0.0.1", USAGE),
        (":", USAGE),
        ("127.0.0.1:99999", USAGE),
        ("", USAGE),
        ("fd:99", USAGE),
        ("fd:0", USAGE),
        ("fd:x", USAGE),
        ("192.0.2.1:7400", FAILED),
    ] {
        refuse(&folder, &["coordinator", "nn", "--listen", address], code, &["error:", address]);
    }
    // Somebody else has the port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refuse(
        &folder,
        &["coordinator", "nn", "--listen", &address],
        FAILED,
        &["error:", &address, "in use", "hint:", "port"],
    );
    // Nobody has it.
    drop(taken);
    let url = format!("http://{address}");
    let wait = [("NUMALIGN_COORDINATOR_WAIT", "300ms")];
    refuse_env(
        &folder,
        &["worker", "--coordinator", &url],
        &wait,
        FAILED,
        &["no coordinator at", &url, "refused", "hint:"],
    );
}

#[test]
fn a_text_that_is_too_long_is_refused_with_its_sample() {
    let folder = Folder::new();
    let text = "x y ".repeat(400);
    let line = format!("{{\"input\": \"{text}\", \"output\": 1}}\n");
    let good = "{\"input\": \"$$1&&\", \"output\": 1}\n";
    folder.write("long.jsonl", [good, good, &line].concat());
    let launch = ["launch", "text", "--dataset.file", "long.jsonl", "--dataset.shuffle", "false"];
    refuse(&folder, &words(&[&launch, TINY]), FAILED, &["error:", "sample 2", "256", "hint:"]);
    refuse(&folder, &["hidden", "--model", "demo", "--text", &text], FAILED, &["error:", "256", "hint:"]);
    folder.write("nn.safetensors", checkpoint());
    let mixed = format!("{text} $$1&&");
    refuse(&folder, &["hidden", "--checkpoint", "nn.safetensors", "--mixed", &mixed], FAILED, &["256", "hint:"]);
    let positions = ["launch", "nn", "--numeric-positions", "257"];
    refuse(&folder, &words(&[&positions, TINY]), FAILED, &["257", "256", "hint:"]);
}

#[test]
fn a_destination_that_cannot_be_written_is_found_out_before_training() {
    let folder = Folder::new();
    folder.write("file", "");
    // A finished run, which the next ones would replace.
    let output = folder.run(&words(&[&["launch", "nn"], TINY]));
    assert!(output.status.success(), "{output}");
    assert!(folder.path().join("chk/nn/step-00000002.safetensors").exists());
    let to = |path: &str, code: i32, said: &[&str]| {
        let args = words(&[&["launch", "nn", "--seed", "1", "--model-path-save", path], TINY]);
        let output = refuse(&folder, &args, code, said);
        assert!(!output.stderr.contains("epoch"), "{output}");
    };
    to("file/x.safetensors", FAILED, &["error:", "file/x.safetensors", "hint:"]);
    to("/proc/x.safetensors", FAILED, &["error:", "/proc/x.safetensors", "hint:"]);
    to("chk/", USAGE, &["error:", "model_path_save", "folder", "hint:"]);
    to("chk", USAGE, &["error:", "model_path_save", "folder", "hint:"]);
    // The destination that nobody named may be a folder too.
    std::fs::create_dir(folder.path().join("chk/other.safetensors")).unwrap();
    let args = words(&[&["launch", "nn", "--run-id", "other"], TINY]);
    refuse(&folder, &args, FAILED, &["error:", "chk/other.safetensors", "hint:"]);
    // A run that cannot begin leaves the finished one alone.
    folder.copy_fixture("small-f32", "model");
    std::fs::remove_file(folder.path().join("model/config.json")).unwrap();
    let args = words(&[&["launch", "nn", "--model-name", "model"], TINY]);
    refuse(&folder, &args, FAILED, &["error:", "config.json", "hint:"]);
    // chk may not be a folder.
    let folder = Folder::new();
    folder.write("chk", "");
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &["error:", "chk", "hint:"]);
}

/// A coordinator that waits for one worker, and its address.
fn coordinator(folder: &Folder, args: &[&str]) -> (common::Child, String) {
    let mut child = folder.spawn(&words(&[&["coordinator", "nn", "--listen", "127.0.0.1:0"], args]));
    child.wait_for_stderr("start workers with");
    let stderr = child.stderr();
    let after = stderr.split("listening on ").nth(1).expect("the address");
    let address = after.split(';').next().expect("the address").to_owned();
    (child, address)
}

const ONE: &[&str] = &["--workers", "1", "--num-epochs", "1", "--num-batches", "2"];

#[test]
fn a_run_folder_in_use_is_refused() {
    let folder = Folder::new();
    let (mut first, _) = coordinator(&folder, ONE);
    // By then it has its lock, and what it tried in the folder is gone.
    first.wait_for_stderr("waiting for 1 worker");
    let said = ["error:", "chk/nn", "in use", "hint:", "--run-id"];
    refuse(&folder, &words(&[&["coordinator", "nn", "--listen", "127.0.0.1:0"], ONE]), FAILED, &said);
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &said);
    refuse(&folder, &words(&[&["launch", "nn", "--resume", "auto"], TINY]), FAILED, &said);
    drop(first);
    // The lock ends with its holder.
    let output = folder.run(&words(&[&["launch", "nn"], TINY]));
    assert!(output.status.success(), "{output}");
}

#[test]
fn unfinished_changed_and_unreadable_runs_are_refused() {
    let folder = Folder::new();
    // Two steps of four: the first checkpoint of a run of twice the length.
    let output = folder.run(&words(&[&["launch", "nn", "--checkpoint-every", "1"], TINY]));
    assert!(output.status.success(), "{output}");
    let (half, end) = ("chk/nn/step-00000001.safetensors", "chk/nn/step-00000002.safetensors");
    std::fs::remove_file(folder.path().join(end)).unwrap();
    let said = ["error:", "unfinished", "step 1 of 2", "hint:", "--resume auto", "--run-id"];
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &said);
    // Every changed setting, with both values.
    let changed = ["launch", "nn", "--resume", "auto", "--lr", "0.5", "--seed", "7"];
    let said =
        ["error:", "lr: the checkpoint has 0.003", "0.5", "seed: the checkpoint has 0", "7", "hint:", "--run-id"];
    refuse(&folder, &words(&[&changed, TINY]), FAILED, &said);
    refuse(
        &folder,
        &words(&[&["launch", "text", "--run-id", "nn", "--resume", "auto"], TINY]),
        FAILED,
        &["stage", "nn", "text"],
    );
    let fewer = ["launch", "nn", "--run-id", "x", "--resume", half, "--no-eval", "--num-batches", "2", "--num-epochs"];
    let grown = folder.run(&words(&[&fewer, &["2", "--workers", "1"]]));
    assert!(grown.status.success(), "{grown}");
    let shrunk =
        ["launch", "nn", "--run-id", "x", "--resume", "auto", "--no-eval", "--num-batches", "2", "--num-epochs", "1"];
    refuse(&folder, &shrunk, FAILED, &["error:", "num_epochs: the checkpoint has 2", "hint:"]);
    folder.write("data.jsonl", "{\"input\": 1, \"output\": 1}\n");
    let data = ["launch", "nn", "--resume", "auto", "--dataset.file", "data.jsonl"];
    refuse(&folder, &words(&[&data, TINY]), FAILED, &["error:", "dataset.file", "hint:"]);
    // A damaged checkpoint is passed over with --resume auto, where an older one is whole.
    let whole = folder.read(half);
    folder.write(end, &whole[..whole.len() / 2]);
    let output = folder.run(&words(&[&["launch", "nn", "--resume", "auto"], TINY]));
    assert!(output.status.success() && output.stderr.contains("passed over"), "{output}");
    // Without --resume a folder with nothing readable is not wiped.
    for entry in std::fs::read_dir(folder.path().join("chk/nn")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            std::fs::write(path, "damaged").unwrap();
        }
    }
    let said = ["error:", "chk/nn", "damaged", "hint:", "--run-id"];
    refuse(&folder, &words(&[&["launch", "nn"], TINY]), FAILED, &said);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn cuda_is_refused_by_a_build_without_it() {
    let folder = Folder::new();
    folder.write("nn.safetensors", checkpoint());
    for device in ["cuda", "cuda:1"] {
        let said = ["error:", device, "without CUDA", "hint:", "--device"];
        refuse(&folder, &["hidden", "--model", "demo", "--ids", "1", "--device", device], FAILED, &said);
        refuse(&folder, &["eval", "--checkpoint", "nn.safetensors", "--device", device], FAILED, &said);
        refuse(&folder, &["bench", "step", "--model", "demo", "--device", device], FAILED, &said);
        refuse(&folder, &words(&[&["launch", "nn", "--device", device], TINY]), FAILED, &said);
    }
}

#[test]
fn a_run_that_diverges_ends_with_an_error() {
    let folder = Folder::new();
    let args =
        ["launch", "nn", "--no-eval", "--workers", "1", "--num-epochs", "1", "--num-batches", "20", "--lr", "1e38"];
    check("a huge lr", &folder.run(&args), FAILED, &["error:", "not finite", "hint:", "lower lr"]);
}

/// Answers every connection with `answer` and then closes it, or keeps it open and silent where there is no answer.
fn pretender(answer: Option<&'static [u8]>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            match answer {
                // The worker may have gone.
                Some(bytes) => drop(stream.write_all(bytes)),
                None => kept.push(stream),
            }
        }
    });
    format!("http://{address}")
}

#[test]
fn a_worker_gives_up_on_what_is_not_a_coordinator() {
    let folder = Folder::new();
    let answers: [Option<&'static [u8]>; 5] = [
        None,
        Some(b""),
        Some(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
        Some(b"SSH-2.0-OpenSSH_9.6\r\n"),
        Some(&[0; 64]),
    ];
    for answer in answers {
        let url = pretender(answer);
        let since = Instant::now();
        let wait = [("NUMALIGN_COORDINATOR_WAIT", "700ms")];
        let args = ["worker", "--coordinator", &url];
        refuse_env(&folder, &args, &wait, FAILED, &["error:", "no coordinator at", &url, "hint:"]);
        assert!(since.elapsed() < Duration::from_secs(10), "{answer:?} took {:?}", since.elapsed());
    }
}

/// A coordinator that refuses everybody, or welcomes everybody with `welcome`.
#[derive(Clone)]
struct Fake {
    welcome: Option<proto::Welcome>,
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Fake {
    type ControlStream = Answer<proto::CoordinatorMessage>;
    type WorkStream = Answer<proto::MicroBatch>;

    async fn control(
        &self,
        _: Request<Streaming<proto::WorkerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let Some(welcome) = &self.welcome else {
            return Err(Status::failed_precondition(
                "protocol 1 of build 0.1.0 does not match this coordinator's 2 of build 9",
            ));
        };
        let message = Some(proto::coordinator_message::Message::Welcome(welcome.clone()));
        let answer = tokio_stream::iter([Ok(proto::CoordinatorMessage { message })]);
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::chain(answer, tokio_stream::pending()))))
    }

    async fn work(&self, _: Request<Streaming<proto::WorkCredit>>) -> Result<Response<Self::WorkStream>, Status> {
        Err(Status::unimplemented("no work"))
    }

    async fn reduce(&self, _: Request<proto::ReduceRequest>) -> Result<Response<proto::ReduceReply>, Status> {
        Err(Status::unimplemented("no reduction"))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusReply>, Status> {
        Err(Status::unimplemented("no status"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_worker_ends_when_the_coordinator_is_of_another_build() {
    let folder = Folder::new();
    let runtime = runtime();
    let serve = |welcome: Option<proto::Welcome>| {
        let _inside = runtime.enter();
        let incoming = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let service = CoordinatorServer::new(Fake { welcome });
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        format!("http://{address}")
    };
    let url = serve(None);
    let said = ["error:", "does not take this worker", "protocol 1", "hint:", "same build"];
    refuse(&folder, &["worker", "--coordinator", &url], FAILED, &said);
    let mut welcome =
        proto::Welcome { protocol: proto::PROTOCOL, member: 1, config: "{".to_owned(), ..Default::default() };
    let url = serve(Some(welcome.clone()));
    refuse(&folder, &["worker", "--coordinator", &url], FAILED, &["error:", "protocol", "configuration"]);
    // One that has a setting more, as a later build would.
    welcome.config = "{\"recipe\": {}, \"run\": {}, \"later\": {}}".to_owned();
    let url = serve(Some(welcome));
    refuse(&folder, &["worker", "--coordinator", &url], FAILED, &["error:", "protocol", "configuration"]);
}

fn hello(protocol: u32) -> proto::WorkerMessage {
    let hello =
        proto::Hello { protocol, build: "9.9.9".to_owned(), host: "elsewhere".to_owned(), ..proto::Hello::default() };
    proto::WorkerMessage { message: Some(Message::Hello(hello)) }
}

/// Opens a control stream with `messages` and reads the answer to its end, a second at most.
async fn control(
    client: &CoordinatorClient<tonic::transport::Channel>,
    messages: Vec<proto::WorkerMessage>,
) -> Result<(), Status> {
    let outbound = tokio_stream::iter(messages);
    let talk = async {
        let mut inbound = client.clone().control(outbound).await?.into_inner();
        while inbound.message().await?.is_some() {}
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(1), talk).await.unwrap_or(Ok(()))
}

#[test]
fn nonsense_on_the_coordinators_port_harms_no_run() {
    let folder = Folder::new();
    let (mut coordinator, address) = coordinator(&folder, ONE);
    // Bytes that are no HTTP/2, some of them followed by a hard close, some held open.
    let mut held = Vec::new();
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let noise: Vec<u8> = (0..4096u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let http: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let framed = [preface, &noise].concat();
    for bytes in [http, &noise[..], &framed, preface, b"", &preface[..7], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(&address).unwrap();
        // It may hang up in the middle.
        let _ = stream.write_all(bytes);
        held.push(stream);
        drop(TcpStream::connect(&address).unwrap());
    }
    for stream in &mut held[..3] {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.read(&mut [0; 256]);
    }
    // Messages that are out of place.
    let generation = Some(proto::Generation { incarnation: 1, number: 1 });
    runtime().block_on(async {
        let client = CoordinatorClient::connect(format!("http://{address}")).await.unwrap();
        let refused = control(&client, vec![hello(proto::PROTOCOL + 1)]).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("9.9.9") && refused.message().contains("does not match"), "{refused}");
        let ready = |size| proto::WorkerMessage {
            message: Some(Message::Ready(proto::Ready { hidden_size: size, ..Default::default() })),
        };
        assert_eq!(control(&client, vec![ready(8)]).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(control(&client, vec![]).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        let done =
            |digest: usize| proto::UnitDone { generation, unit: 9, digest: vec![0; digest], ..Default::default() };
        for message in
            [Message::UnitDone(done(3)), Message::UnitDone(done(32)), Message::Heartbeat(proto::Heartbeat::default())]
        {
            let message = proto::WorkerMessage { message: Some(message) };
            // Whatever it answers.
            let _ = control(&client, vec![hello(proto::PROTOCOL), message]).await;
        }
        let _ = control(&client, vec![hello(proto::PROTOCOL), hello(proto::PROTOCOL)]).await;
        let mut returning = hello(proto::PROTOCOL);
        if let Some(Message::Hello(hello)) = &mut returning.message {
            hello.rejoin_state = Some(proto::RejoinState {
                run_id: "nn".to_owned(),
                config_digest: String::new(),
                state: vec![1, 2, 3],
            });
        }
        let _ = control(&client, vec![returning]).await;
        for generation in [None, generation] {
            let credit = tokio_stream::iter([proto::WorkCredit { generation, member: 1, units: u32::MAX }]);
            assert!(client.clone().work(credit).await.is_err());
            let rows = vec![proto::Row { micro_batch: u32::MAX, values: vec![1, 2, 3] }];
            let request = proto::ReduceRequest { generation, member: 1, unit: u64::MAX, rows, more: false };
            assert!(client.clone().reduce(request).await.is_err());
        }
    });
    // The run goes on as if nothing had been.
    let mut worker = folder.spawn(&["worker", "--coordinator", &format!("http://{address}")]);
    let output = worker.wait();
    assert!(output.status.success(), "{output}");
    let output = coordinator.wait();
    assert!(output.status.success() && !output.stderr.contains("panicked"), "{output}");
    assert!(folder.read("chk/nn.safetensors") == checkpoint(), "the same bytes as without the noise");
}
