//! A checkpoint belongs to the tokenizer it was trained with: another one is refused by name, and a file that another
//! program saved again is the same checkpoint.

mod common;

use common::run::{json, listening_address, run_line, succeed_line};
use common::{Folder, check};
use serde_json::Value;

const STEPS: &str = "--num-batches 2 --batch-size 4 --checkpoint-every 2 --workers 1";
const TINY: &str = "--num-epochs 2 --num-batches 2 --batch-size 4 --checkpoint-every 2 --workers 1 --no-eval";

/// A folder with `model`, and `other` whose vocabulary has two digits swapped: the same weights, other ids.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.copy_fixture("tokenizer", "model");
    folder.copy_fixture("tokenizer", "other");
    swap_digits(&folder, "other");
    folder
}

fn swap_digits(folder: &Folder, model: &str) {
    let file = format!("{model}/tokenizer.json");
    let mut document: Value = serde_json::from_slice(&folder.read(&file)).expect("JSON");
    let vocab = document["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let (one, two) = (vocab["1"].clone(), vocab["2"].clone());
    vocab.insert("1".to_owned(), two);
    vocab.insert("2".to_owned(), one);
    folder.write(&file, document.to_string());
}

#[test]
fn another_tokenizer_is_refused_by_name() {
    let folder = folder();
    succeed_line(&folder, &format!("launch text --model-name model --run-id first {TINY}"));
    let said = &["was trained with another tokenizer", "hint:"];
    for line in ["eval --checkpoint FILE --count 4", "predict --checkpoint FILE 12.5", "verify FILE"] {
        let line = line.replace("FILE", "chk/first.safetensors");
        succeed_line(&folder, &line);
        check(&line, &run_line(&folder, &format!("{line} --model other")), 1, said);
    }
    let said = &["its tokenizer has fingerprint", "that of chk/first", "hint: set model_name to the model"];
    let load = format!("launch text --model-path-load chk/first.safetensors {TINY}");
    succeed_line(&folder, &format!("{load} --model-name model --run-id second"));
    check("load", &run_line(&folder, &format!("{load} --model-name other --run-id third")), 1, said);
    // The same name, and other files behind it.
    swap_digits(&folder, "model");
    let resume = run_line(
        &folder,
        &format!("launch text --model-name model --run-id first --resume auto {STEPS} --num-epochs 3 --no-eval"),
    );
    check("resume", &resume, 1, said);
    // Stage nn reads no text.
    succeed_line(&folder, &format!("launch nn --model-name model --run-id nn {TINY}"));
    let numbers = json(&succeed_line(&folder, "inspect chk/nn.safetensors --json"));
    assert!(numbers.get("tokenizer_fingerprint").is_none(), "{numbers}");
    succeed_line(&folder, "eval --checkpoint chk/nn.safetensors --count 4 --model other");
    let load = format!("launch nn --run-id fourth --model-path-load chk/first.safetensors {TINY}");
    succeed_line(&folder, &format!("{load} --model-name model"));
}

#[test]
fn special_tokens_around_a_text_are_another_tokenizer() {
    let folder = folder();
    let file = "model/tokenizer.json";
    let mut document: Value = serde_json::from_slice(&folder.read(file)).expect("JSON");
    let token = serde_json::json!({ "SpecialToken": { "id": "1", "type_id": 0 } });
    let text = serde_json::json!({ "Sequence": { "id": "A", "type_id": 0 } });
    document["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "single": [token, text], "pair": [token, text],
        "special_tokens": { "1": { "id": "1", "ids": [5], "tokens": ["1"] } },
    });
    folder.write(file, document.to_string());
    let ids = |more: &str| {
        json(&succeed_line(&folder, &format!("hidden --model model --text 12 --json {more}")))["ids"].clone()
    };
    let (plain, special) = (ids(""), ids("--add-special-tokens"));
    let (plain, special) = (plain.as_array().expect("ids"), special.as_array().expect("ids"));
    assert_eq!((special[0].as_u64(), &special[1..]), (Some(5), &plain[..]));
    let line = format!("launch text --model-name model {TINY}");
    for (run, value) in [("without", "false"), ("with", "true")] {
        succeed_line(&folder, &format!("{line} --run-id {run} --add-special-tokens {value}"));
    }
    let about = |run: &str| json(&succeed_line(&folder, &format!("inspect chk/{run}.safetensors --json")));
    let (without, with) = (about("without"), about("with"));
    assert_ne!(without["tokenizer_fingerprint"], with["tokenizer_fingerprint"]);
    assert_ne!(without["state_digest"], with["state_digest"]);
    assert!(without["config"].get("add_special_tokens").is_none() && with["config"]["add_special_tokens"] == true);
    // A text with numbers in it is one text.
    let line = "hidden --checkpoint chk/with.safetensors --mixed 1$$2&&3 --json";
    let mixed = json(&succeed_line(&folder, line))["ids"].clone();
    assert_eq!(mixed.as_array().map(|ids| (ids.len(), ids[0].as_u64())), Some((3, Some(5))), "{mixed}");
    let idle = run_line(&folder, "launch nn --add-special-tokens true");
    check("nn", &idle, 2, &["add_special_tokens", "means something only with stage text or mixed"]);
}

#[test]
fn a_worker_with_another_tokenizer_is_refused_in_words() {
    let (here, there) = (folder(), Folder::new());
    there.copy_fixture("tokenizer", "model");
    swap_digits(&there, "model");
    let line = format!("coordinator --listen 127.0.0.1:0 --stage text --model-name model {STEPS} --num-epochs 20000");
    let mut coordinator = here.spawn(&line.split_whitespace().collect::<Vec<_>>());
    let address = format!("http://{}", listening_address(&mut coordinator));
    let first = here.spawn(&["worker", "--coordinator", &address]);
    coordinator.wait_for_stderr("rank 0");
    let odd = there.spawn(&["worker", "--coordinator", &address]).wait();
    check("the odd worker", &odd, 1, &["its tokenizer has fingerprint", "this run's has", "the weights are the same"]);
    assert!(!odd.stderr.contains("other bits"), "{odd}");
    drop((first.stderr(), coordinator.stderr()));
}

#[test]
fn bare_projectors_become_a_checkpoint() {
    let folder = folder();
    succeed_line(&folder, &format!("launch nn --model-name model --run-id first {TINY}"));
    // What a file without metadata holds: the tensors of a checkpoint, and nothing that says what they are.
    let bytes = folder.read("chk/first.safetensors");
    let parsed = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    folder.write("bare.safetensors", safetensors::serialize(parsed.tensors(), None).expect("a file"));
    let line = "import bare.safetensors --stage nn --model-name model --out chk/mine.safetensors";
    let said = succeed_line(&folder, line).stderr;
    assert!(said.contains("8 tensors that are no projectors"), "{said}");
    let predicted = |file: &str| succeed_line(&folder, &format!("predict --checkpoint {file} 12.5 80 --json")).stdout;
    assert_eq!(predicted("chk/mine.safetensors"), predicted("chk/first.safetensors"));
    succeed_line(&folder, "verify chk/mine.safetensors");
    succeed_line(
        &folder,
        &format!("launch nn --model-name model --run-id next --model-path-load chk/mine.safetensors {TINY}"),
    );
    let refuse = |line: &str, code, said: &[&str]| check(line, &run_line(&folder, line), code, said);
    refuse(&format!("{line} --value-encoding fourier"), 1, &["input_projection.weight is [", "not [", "hint:"]);
    refuse("import bare.safetensors --stage nn --out x.safetensors", 1, &["input_projection.weight", "hint:"]);
    refuse("import bare.safetensors --out x.safetensors", 2, &["no stage is given", "--stage nn"]);
    refuse("predict --checkpoint bare.safetensors 1", 1, &["it has no metadata", "numalign import"]);
}

#[test]
fn a_file_that_another_program_saved_again_is_the_same_checkpoint() {
    let folder = folder();
    succeed_line(&folder, &format!("launch text --model-name model --run-id first {TINY}"));
    let bytes = folder.read("chk/first.safetensors");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let parsed = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let again = safetensors::serialize(parsed.tensors(), header.metadata().clone()).expect("a file");
    assert!(again != bytes);
    folder.write("chk/again.safetensors", again);
    let verified = |run: &str| succeed_line(&folder, &format!("verify chk/{run}.safetensors")).stdout;
    assert!(!verified("first").contains("saved the file again"));
    let said = verified("again");
    assert!(said.contains("; another program saved the file again: its "), "{said}");
    assert!(said.contains("its content is the same"), "{said}");
    let predicted =
        |run: &str| succeed_line(&folder, &format!("predict --checkpoint chk/{run}.safetensors 12.5")).stdout;
    assert_eq!(predicted("again"), predicted("first"));
}
