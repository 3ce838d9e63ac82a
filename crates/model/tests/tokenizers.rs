//! Token ids of model folders, as `transformers` leaves them, against `AutoTokenizer`'s (`tools/fixtures/make_tokenizers.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use numalign_model::ModelError;
use numalign_model::arch::Architecture;
use numalign_model::load::folder_tokenizer;
use numalign_model::tokenizer::Tokenizer;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers")
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
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
    let strings: Vec<String> = json("strings.json");
    let expected: BTreeMap<String, Vec<u32>> = json("expected.json");
    assert_eq!((strings.len(), expected.len()), (1000, 12));
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
    files(llama.path(), "a c\n", "{\"tokenizer_class\": \"GPT2Tokenizer\"}");
    assert!(refusal(llama.path(), None).contains("not a tokenizer"));
}
