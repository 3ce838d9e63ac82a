//! Token ids of model folders, as `transformers` leaves them, against `AutoTokenizer`'s (`tools/fixtures/make_tokenizers.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use numalign_model::ModelError;
use numalign_model::arch::Architecture;
use numalign_model::load::folder_tokenizer;
use numalign_model::tokenizer::{Around, Tokenizer};
use serde_json::{Value, json};

/// Folders in `testdata/tokenizers`.
const FOLDERS: usize = 13;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers")
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(testdata().join(name)).unwrap()).unwrap()
}

fn tokenizer(folder: &Path, hub_id: Option<&str>) -> Result<Tokenizer, ModelError> {
    let path = folder.join("config.json");
    let architecture = Architecture::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    folder_tokenizer(folder, &architecture, hub_id)
}

/// As `tools/fixtures/make_tokenizers.py` hashes ids.
fn fnv(ids: &[u32]) -> u32 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    bytes.fold(0x811c_9dc5, |state, byte| (state ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[test]
fn ids_are_those_of_transformers() {
    let strings: Vec<String> = read("strings.json");
    let expected: BTreeMap<String, Vec<u32>> = read("expected.json");
    assert_eq!((strings.len(), expected.len()), (1000, FOLDERS));
    for (name, hashes) in &expected {
        let tokenizer = tokenizer(&testdata().join(name), None).unwrap();
        for (text, hash) in strings.iter().zip(hashes) {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(fnv(&ids), *hash, "{name}: {text:?} gives {ids:?}");
        }
    }
}

/// A folder with `config.json` and whatever a test writes.
fn folder(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

fn refusal(folder: &Path, hub_id: Option<&str>) -> String {
    match tokenizer(folder, hub_id).and_then(|tokenizer| tokenizer.encode("a")) {
        Ok(ids) => panic!("there is a tokenizer, which gives {ids:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn gpt_2s_own_vocabulary_is_for_the_hubs_own_models() {
    let folder = folder("{\"model_type\": \"gpt2\"}");
    for id in ["gpt2", "openai-community/gpt2", "openai-community/gpt2-xl"] {
        assert_eq!(tokenizer(folder.path(), Some(id)).unwrap().encode("Hello world").unwrap(), [15496, 995]);
    }
    for id in [None, Some("dbmdz/german-gpt2"), Some("someone/gpt2")] {
        assert!(refusal(folder.path(), id).contains("neither tokenizer.json nor vocab.json"));
    }
}

#[test]
fn vocabularies_of_unknown_kinds_are_refused() {
    let files = |folder: &Path, merges: &str, settings: &str| {
        std::fs::write(folder.join("vocab.json"), "{\"a\": 0, \"b\": 1, \"ab\": 2}").unwrap();
        std::fs::write(folder.join("merges.txt"), merges).unwrap();
        std::fs::write(folder.join("tokenizer_config.json"), settings).unwrap();
    };
    let llama = folder("{\"model_type\": \"llama\"}");
    files(llama.path(), "#version: 0.2\na b\n", "{}");
    assert!(refusal(llama.path(), None).contains("model_type `llama`"));
    files(llama.path(), "a b\n", "{\"tokenizer_class\": \"RobertaTokenizerFast\"}");
    assert!(refusal(llama.path(), None).contains("tokenizer_class `RobertaTokenizer`"));
    files(llama.path(), "a b\n", "{\"tokenizer_class\": \"GPT2TokenizerFast\"}");
    assert_eq!(tokenizer(llama.path(), None).unwrap().encode("ab").unwrap(), [2]);
    files(llama.path(), "a b\nab\n", "{\"tokenizer_class\": \"GPT2Tokenizer\"}");
    assert!(refusal(llama.path(), None).contains("merges.txt: line 2 is not a pair of tokens: \"ab\""));
    for (line, token) in [("a c", "c"), ("b a", "ba"), ("{\"a\": 1}", "{\"a\":")] {
        files(llama.path(), &format!("a b\n{line}\n"), "{\"tokenizer_class\": \"GPT2Tokenizer\"}");
        let said = format!("merges.txt: line 2 has a token that vocab.json lacks: {token:?}");
        assert!(refusal(llama.path(), None).contains(&said), "{said}");
    }
}

#[test]
fn ids_with_special_tokens_are_those_of_transformers() {
    let strings: Vec<String> = read("strings.json");
    let expected: BTreeMap<String, u32> = read("special.json");
    assert_eq!(expected.len(), FOLDERS);
    for (name, hash) in expected {
        let tokenizer = tokenizer(&testdata().join(&name), None).unwrap();
        let mut ids = Vec::new();
        for text in &strings {
            ids.extend(tokenizer.encode_with_special_tokens(text).unwrap());
        }
        assert_eq!(fnv(&ids), hash, "{name}");
    }
    let around = |name: &str| tokenizer(&testdata().join(name), None).unwrap().around().unwrap();
    assert_eq!(around("gpt2-vocabulary"), Around::default());
    assert_eq!(around("llama-bos"), Around { before: vec![1], after: Vec::new() });
    let both = around("gpt2-vocabulary-bos");
    assert_eq!((both.before.len(), both.after.len()), (1, 1), "{both:?}");
}

fn fingerprint(tokenizer: &Tokenizer, add_special_tokens: bool) -> String {
    tokenizer.fingerprint(add_special_tokens).unwrap().to_hex().to_string()
}

/// The fingerprint of a `tokenizer.json`.
fn fingerprint_of(document: &Value) -> String {
    let tokenizer = Tokenizer::from_json(Path::new("tokenizer.json"), document.to_string().as_bytes()).unwrap();
    fingerprint(&tokenizer, false)
}

#[test]
fn a_folder_that_was_saved_again_keeps_its_fingerprint() {
    let again = testdata().join("../tokenizers-saved-again");
    let folders: Vec<_> = std::fs::read_dir(&again).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(folders.len(), 4);
    for name in folders {
        let first = tokenizer(&testdata().join(&name), None).unwrap();
        let second = tokenizer(&again.join(&name), None).unwrap();
        for special in [false, true] {
            assert_eq!(fingerprint(&first, special), fingerprint(&second, special), "{name:?}");
        }
    }
}

#[test]
fn a_fingerprint_covers_what_changes_ids_and_nothing_else() {
    let document: Value = read("gpt2-normalised/tokenizer.json");
    let own = fingerprint_of(&document);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut document = document.clone();
        change(&mut document);
        fingerprint_of(&document)
    };
    let same: [&dyn Fn(&mut Value); 6] = [
        &|d| d["truncation"] = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}),
        &|d| {
            for pair in d["model"]["merges"].as_array_mut().unwrap() {
                *pair = format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()).into();
            }
        },
        &|d| d["model"]["unk_token"] = "<|endoftext|>".into(),
        &|d| d["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [d["pre_tokenizer"]]}),
        &|d| d["decoder"] = Value::Null,
        // Which tokens hide from skip_special_tokens when ids become text again.
        &|d| d["added_tokens"][0]["special"] = false.into(),
    ];
    for change in same {
        assert_eq!(changed(change), own);
    }
    let other: [&dyn Fn(&mut Value); 6] = [
        // Two digits of the vocabulary change places.
        &|d| {
            let vocab = d["model"]["vocab"].as_object_mut().unwrap();
            let (one, two) = (vocab["1"].clone(), vocab["2"].clone());
            vocab.insert("1".to_owned(), two);
            vocab.insert("2".to_owned(), one);
        },
        &|d| d["model"]["merges"].as_array_mut().unwrap().swap(0, 1),
        &|d| d["normalizer"] = json!({"type": "NFKC"}),
        &|d| d["pre_tokenizer"]["add_prefix_space"] = true.into(),
        &|d| d["added_tokens"][0]["lstrip"] = true.into(),
        &|d| d["model"]["ignore_merges"] = true.into(),
    ];
    for (number, change) in other.iter().enumerate() {
        assert_ne!(changed(change), own, "change {number}");
    }
    // As a GGUF file has it: an added token stands in the vocabulary too.
    let mut document: Value = read("llama-added/tokenizer.json");
    let own = fingerprint_of(&document);
    let (token, id) = (document["added_tokens"][1]["content"].clone(), document["added_tokens"][1]["id"].clone());
    document["model"]["vocab"][token.as_str().unwrap()] = id;
    assert_eq!(fingerprint_of(&document), own);
    let bos = tokenizer(&testdata().join("llama-bos"), None).unwrap();
    assert_ne!(fingerprint(&bos, true), fingerprint(&bos, false), "what stands around a text counts where it is added");
}

#[test]
fn merges_are_never_dropped_by_chance() {
    let mut document: Value = read("gpt2-file/tokenizer.json");
    let expected = tokenizer(&testdata().join("gpt2-file"), None).unwrap().encode("The weight is 12.345").unwrap();
    document["model"]["dropout"] = json!(0.9);
    let tokenizer = Tokenizer::from_json(Path::new("t.json"), document.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("The weight is 12.345").unwrap(), expected);
}

/// Reads a `tokenizer.json`.
fn of(document: &Value) -> Tokenizer {
    Tokenizer::from_json(Path::new("t.json"), document.to_string().as_bytes()).unwrap()
}

/// huggingface/tokenizers#1609: without a token for each byte, a text may come to nothing, whatever its length.
#[test]
fn lengths_are_no_bound_where_a_byte_has_no_token() {
    let mut document: Value = read("gpt2-file/tokenizer.json");
    assert_eq!(of(&document).longest_text(64), 64);
    let merges = document["model"]["merges"].to_string();
    assert!(!merges.contains('~'), "the token is left out below, and merges need theirs");
    document["model"]["vocab"].as_object_mut().unwrap().remove("~").unwrap();
    let tokenizer = of(&document);
    assert_eq!((tokenizer.encode("~").unwrap(), tokenizer.longest_text(64)), (Vec::new(), 0));
}
