//! The README and the pages keep their promises: every command, path, link and anchor in them exists. The first command is
//! `cargo run` without a package, so the workspace has to leave cargo no choice of binaries; and what the program prints may
//! go to a pipe that closes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::Folder;
use common::run::{bytes, succeed_line};
use common::words::{Spoken, commands};
use serde_json::Value;

mod common;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Path from the repository's root, and text, of every page that a reader is sent to.
fn pages() -> Vec<(String, String)> {
    let mut names = Vec::new();
    for name in ["README.md", "CONTRIBUTING.md", "deploy/README.md", "examples/README.md", "testdata/README.md"] {
        names.push(name.to_owned());
    }
    for entry in std::fs::read_dir(root().join("docs")).expect("docs/") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    assert!(names.len() >= 10, "{names:?}");
    names.sort();
    let read = |name: String| {
        let text = std::fs::read_to_string(root().join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// The anchor that a page's heading gets.
fn anchor(heading: &str) -> String {
    let mut slug = String::new();
    for c in heading.trim().to_lowercase().chars() {
        match c {
            ' ' => slug.push('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => slug.push(c),
            _ => {}
        }
    }
    slug
}

#[test]
fn the_readme_is_short() {
    let (_, readme) = pages().into_iter().find(|(name, _)| name == "README.md").expect("the README");
    assert!(readme.lines().count() <= 150, "{} lines", readme.lines().count());
}

#[test]
fn every_page_has_a_list_of_its_contents() {
    const PAGES: &[&str] = &[
        "QUICKSTART",
        "DATA",
        "MODELS",
        "CONFIGURATION",
        "TRAINING",
        "OPERATIONS",
        "WATCH",
        "PYTHON",
        "CHECKPOINT",
        "RESULTS",
        "PERFORMANCE",
        "SCALING",
        "GPUS",
        "ARCHITECTURE",
        "FAQ",
        "CHANGELOG",
        "SECURITY",
    ];
    let pages = pages();
    let (_, readme) = pages.iter().find(|(name, _)| name == "README.md").expect("the README");
    for page in PAGES {
        let name = format!("docs/{page}.md");
        let (_, text) = pages.iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("there is no {name}"));
        assert!(readme.contains(&name), "the README does not lead to {name}");
        let (list, _) = text.split_once("\n## ").unwrap_or_else(|| panic!("{name} has no heading"));
        for heading in text.lines().filter_map(|line| line.strip_prefix("## ")) {
            let link = format!("](#{})", anchor(heading));
            assert!(list.contains(&link), "{name}: the list of contents lacks {heading}");
        }
    }
}

#[test]
fn the_template_names_every_key() {
    let template = std::fs::read_to_string(root().join("config/config.yaml")).expect("the template");
    let written = |line: &str, name: &str| {
        let line = line.trim_start_matches(['#', ' ']);
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
    };
    for key in numalign_config::keys() {
        let name = key.name.rsplit('.').next().unwrap_or(key.name);
        assert!(template.lines().any(|line| written(line, name)), "config/config.yaml lacks {}", key.name);
    }
}

#[test]
fn every_command_of_the_pages_exists() {
    let folder = Folder::new();
    let mut tried = 0;
    for (page, text) in pages() {
        for arguments in commands(&text, Spoken::Markdown) {
            // Flags and values before `--help` are checked; the command itself is spared.
            let mut line: Vec<&str> = arguments.iter().map(String::as_str).collect();
            line.push("--help");
            let output = folder.run(&line);
            assert!(output.status.success(), "{page}: numalign {arguments:?}: {output}");
            assert!(output.stdout.contains("Usage: numalign "), "{page}: numalign {arguments:?}: {output}");
            tried += 1;
        }
    }
    assert!(tried >= 50, "only {tried} commands were found");
}

#[test]
fn every_path_of_the_pages_exists() {
    const FOLDERS: &[&str] = &[
        "crates/",
        "config/",
        "deploy/",
        "docs/",
        "examples/",
        "proto/",
        "python/",
        "testdata/",
        "tools/",
        "bench/",
        "fuzz/",
        ".ci/",
    ];
    let mut found = 0;
    for (page, text) in pages() {
        let separators = |c: char| c.is_whitespace() || "`()[]{}\"'|,".contains(c);
        for word in text.split(separators) {
            let path = word.split('#').next().unwrap_or_default().trim_end_matches(['.', ':', ';', '?']);
            // What stands for several files, or for a file of the reader's.
            if !FOLDERS.iter().any(|folder| path.starts_with(folder)) || path.contains(['*', '<', '$', '@']) {
                continue;
            }
            assert!(root().join(path).exists(), "{page}: there is no {path}");
            found += 1;
        }
    }
    assert!(found >= 100, "only {found} paths were found");
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    let pages = pages();
    let mut found = 0;
    for (page, text) in &pages {
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            if target.starts_with("http") {
                continue;
            }
            let (path, wanted) = target.split_once('#').unwrap_or((target, ""));
            let folder = root().join(page).parent().expect("a folder").to_owned();
            let full = if path.is_empty() { root().join(page) } else { folder.join(path) };
            assert!(full.exists(), "{page}: the link {target} leads nowhere");
            found += 1;
            if wanted.is_empty() {
                continue;
            }
            let linked = std::fs::read_to_string(&full).expect("a page");
            let headings = linked.lines().filter(|line| line.starts_with('#'));
            let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#')));
            assert!(anchors.any(|anchor| anchor == wanted), "{page}: {target} is no heading");
        }
    }
    assert!(found >= 50, "only {found} links were found");
}

/// Names of a checkpoint's tensors, and its metadata.
fn header(file: &[u8]) -> (Vec<String>, Value) {
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&rest[..length]).expect("JSON");
    let names = header.as_object().expect("an object").keys().filter(|name| *name != "__metadata__");
    (names.cloned().collect(), header["__metadata__"].clone())
}

#[test]
fn every_tensor_and_metadata_key_of_three_checkpoints_stands_in_the_page() {
    let page = std::fs::read_to_string(root().join("docs/CHECKPOINT.md")).expect("the page");
    let has = |name: &str| page.contains(&format!("`{name}`"));
    let folder = Folder::new();
    let tiny = "--no-eval --http off --workers 1 --num-epochs 2 --num-batches 5 --eval-every 1 --eval-samples 8";
    let mut found = 0;
    for line in [
        "nn --run-id first --solver alternate --solve-samples 64 --target signlog --min-val 1",
        "text --run-id second --solver exact --layer 0,1 --pooling mean,last",
        "mixed --run-id third --train-layer-norms true --value-encoding fourier",
    ] {
        succeed_line(&folder, &format!("launch {line} {tiny}"));
        let run = line.split_whitespace().nth(2).expect("the run");
        let (tensors, metadata) = header(&bytes(&folder, run));
        for tensor in tensors {
            let mut name = tensor.as_str();
            for prefix in ["best.", "optimizer.exp_avg.", "optimizer.exp_avg_sq."] {
                if let Some(rest) = name.strip_prefix(prefix) {
                    assert!(has(&format!("{prefix}TENSOR")), "{tensor}");
                    name = rest;
                }
            }
            let name = if name.starts_with("layer_norms.") { "layer_norms.NAME" } else { name };
            assert!(has(name), "docs/CHECKPOINT.md lacks the tensor {tensor} of {run}");
            found += 1;
        }
        for (key, text) in metadata.as_object().expect("an object") {
            assert!(has(key), "docs/CHECKPOINT.md lacks the key {key} of {run}");
            let value = serde_json::from_str::<Value>(text.as_str().expect("text"));
            // The recipe's names are those of the configuration.
            let fields = value.ok().filter(|_| key != "config").and_then(|value| value.as_object().cloned());
            for field in fields.unwrap_or_default().keys() {
                assert!(has(field), "docs/CHECKPOINT.md lacks the field {field} of {key}");
            }
            found += 1;
        }
    }
    assert!(found > 80, "only {found} names were found");
}

#[test]
fn cargo_run_finds_one_binary() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path", manifest])
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let defaults = said["workspace_default_members"].as_array().expect("a list");
    let mut binaries = Vec::new();
    for package in said["packages"].as_array().expect("a list").iter().filter(|p| defaults.contains(&p["id"])) {
        for target in package["targets"].as_array().expect("a list") {
            if target["kind"][0] == "bin" {
                binaries.push(target["name"].clone());
            }
        }
    }
    assert_eq!(binaries, ["numalign"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_panic() {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/quickstart.yaml");
    for args in [vec!["generate", "nn", "--count", "200000", "--out", "-"], vec!["config", "show", config]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_numalign"));
        let mut child = common::without_foreign_variables(&mut command)
            .args(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        assert!(args[0] != "generate" || (output.status.success() && said.is_empty()), "{args:?}: {output:?}");
    }
}

/// Autotuning chooses kernels by the clock, and fusion by what stands beside an operation: with either, two machines, or two
/// runs on one, could compute other bits. Neither is in the build, and it has to stay so.
#[test]
fn burns_cuda_backend_is_built_without_autotuning_and_fusion() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let output = Command::new(cargo)
        .args([
            "tree",
            "--offline",
            "--package",
            "numalign",
            "--features",
            "cuda",
            "--prefix",
            "none",
            "--format",
            "{p} | {f}",
        ])
        .args(["--manifest-path", manifest])
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["burn-cuda v", "burn-cubecl v"] {
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with(name)).collect();
        assert!(!lines.is_empty(), "{name} is not in the tree");
        for line in lines {
            let features = line.split('|').nth(1).unwrap_or_default();
            assert!(!features.contains("autotune") && !features.contains("fusion"), "{line}");
        }
    }
    assert!(!said.contains("burn-fusion v"), "fusion is in the tree");
}
