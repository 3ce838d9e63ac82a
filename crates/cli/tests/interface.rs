//! What every command has in common at the terminal: help, verbosity, completion, whole lines, a stage from the
//! configuration.

mod common;

use common::Folder;
use common::run::{json, run_line, succeed_line};

const TINY: &str = "--workers 1 --num-epochs 1 --num-batches 2";

#[test]
fn quiet_leaves_errors_and_the_result() {
    let folder = Folder::new();
    let output = succeed_line(&folder, &format!("launch nn -q --json {TINY}"));
    assert_eq!(output.stderr, "", "{output}");
    assert!(json(&output)["mae"].is_number(), "{output}");
    let failed = run_line(&folder, "launch nn --quiet --layer 9 --run-id nine");
    assert_eq!(failed.status.code(), Some(1), "{failed}");
    assert!(failed.stderr.starts_with("error:") && failed.stderr.lines().count() <= 2, "{failed}");
    let both = run_line(&folder, "doctor -q -v");
    assert_eq!(both.status.code(), Some(2), "{both}");
}

#[test]
fn verbose_adds_to_the_log_and_the_variable_wins() {
    let folder = Folder::new();
    let line = format!("launch nn -vv --no-eval {TINY}");
    let verbose = succeed_line(&folder, &line);
    assert!(verbose.stderr.contains("DEBUG") || verbose.stderr.contains("TRACE"), "{verbose}");
    let args: Vec<&str> = line.split_whitespace().collect();
    let filtered = folder.run_env(&args, &[("NUMALIGN_LOG", "error")]);
    assert!(!filtered.stderr.contains("DEBUG") && !filtered.stderr.contains("INFO"), "{filtered}");
}

#[test]
fn completions_and_man_pages_know_every_command() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish", "man"] {
        let script = succeed_line(&folder, &format!("completions {shell}")).stdout;
        for word in ["launch", "predict", "selftest"] {
            assert!(script.contains(word), "{word} in {shell}: {script}");
        }
    }
    succeed_line(&folder, "completions man --out man/man1");
    let page = String::from_utf8(folder.read("man/man1/numalign-launch.1")).expect("text");
    assert!(page.contains("batch\\-size") && page.contains("Examples"), "{page}");
    succeed_line(&folder, "completions bash --out completions");
    assert!(folder.path().join("completions/numalign.bash").exists());
}

#[test]
fn only_commands_that_train_list_every_key() {
    let folder = Folder::new();
    for (command, lists) in [("launch", true), ("coordinator", true), ("report", false), ("config show", false)] {
        let help = succeed_line(&folder, &format!("{command} --help")).stdout;
        assert_eq!(help.contains("--batch-size"), lists, "{help}");
    }
    let generate = succeed_line(&folder, "generate --help").stdout;
    assert!(generate.contains("--max-val") && !generate.contains("--heartbeat"), "{generate}");
    // They are accepted all the same.
    folder.write("run.yaml", "stage: nn\n");
    assert!(succeed_line(&folder, "config show run.yaml --batch-size 16").stdout.contains("batch_size: 16"));
}

#[test]
fn generate_takes_its_stage_from_the_configuration() {
    let folder = Folder::new();
    folder.write("text.yaml", "stage: text\nseed: 3\n");
    let from_file = succeed_line(&folder, "generate --config text.yaml --count 3 --out -").stdout;
    assert_eq!(from_file, succeed_line(&folder, "generate text --seed 3 --count 3 --out -").stdout);
    assert_eq!(from_file.lines().count(), 3);
}

#[test]
fn status_finds_the_run_of_its_folder() {
    let folder = Folder::new();
    // A coordinator that was killed has left its file.
    folder.write("chk/gone/address", "http://127.0.0.1:9\n");
    let line = "launch nn --no-eval --run-id here --workers 1 --num-epochs 100000";
    let mut launch = folder.spawn(&line.split_whitespace().collect::<Vec<_>>());
    launch.wait_for_stderr("rank 0");
    let status = succeed_line(&folder, "status --json");
    assert!(status.stderr.contains("found in chk/here/address"), "{status}");
    assert_eq!(json(&status)["run_id"], "here");
    common::run::kill(launch.id() as i32, rustix::process::Signal::INT);
    assert_eq!(launch.wait().status.code(), Some(130));
    assert!(!folder.path().join("chk/here/address").exists(), "it is removed at the end");
}
