//! What is fuzzed: every reader of files and messages. A target returns the error's text or accepts, checks what must hold
//! of an accepted input, and panics only where a reader is wrong.

use std::path::Path;

use numalign_checkpoint::Checkpoint;
use numalign_config::{Choice, Config, Source, Stage, resolve, to_yaml};
use numalign_coordinator::machine::MemberId;
use numalign_coordinator::rpc::decode;
use numalign_data::table::{Table, TableOptions};
use numalign_data::{Dataset, DecimalMark, Domain, SampleDigest, SampleStream, Segment, Side, grammar, jsonl};
use numalign_model::arch::{Architecture, numbers};
use numalign_model::load::gguf;
use numalign_model::load::weights::{Safetensors, TensorSource};
use numalign_projector::State;
use numalign_protocol::worker_message::Message;
use prost::Message as _;

/// One reader.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also the name of its folder in `seeds/` and of its dictionary in `dict/`.
    pub name: &'static str,
    /// The error's text, or acceptance.
    pub run: fn(&[u8]) -> Result<(), String>,
}

/// Every target.
pub const ALL: &[Target] = &[
    Target { name: "grammar", run: grammar },
    Target { name: "jsonl", run: jsonl },
    Target { name: "csv", run: csv },
    Target { name: "config", run: config },
    Target { name: "checkpoint", run: checkpoint },
    Target { name: "model_config", run: model_config },
    Target { name: "weights", run: weights },
    Target { name: "shard_index", run: shard_index },
    Target { name: "gguf", run: gguf },
    Target { name: "messages", run: messages },
];

/// A text of stage `mixed`: its pieces put together again are the text.
///
/// # Errors
/// Why the input is refused.
pub fn grammar(input: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(input).map_err(|error| error.to_string())?;
    for mark in [DecimalMark::Point, DecimalMark::Comma] {
        // Its answer does not matter, only that there is one.
        let _ = grammar::parse_value(text, mark);
        if let Ok(canonical) = grammar::canonical(text, mark) {
            assert!(grammar::parse(&canonical).is_ok(), "{canonical:?}");
        }
    }
    let segments = grammar::parse(text).map_err(|error| error.to_string())?;
    let mut plain = 0;
    let mut last_was_text = false;
    for segment in &segments {
        match segment {
            Segment::Text(text) => {
                assert!(!text.is_empty() && !last_was_text && !text.contains("$$"), "{text:?}");
                plain += text.len();
                last_was_text = true;
            }
            Segment::Number(value) => {
                assert!(value.is_finite());
                last_was_text = false;
            }
        }
    }
    assert!(plain <= text.len());
    Ok(())
}

fn dataset_of(table: &[u8], path: &Path, stage: Stage) -> Result<Dataset, String> {
    let recipe = Config::with(&[("stage", stage.name())]).map_err(|errors| errors.to_string())?.recipe;
    let rows = std::io::Cursor::new(table.to_vec());
    let table = Table::read(rows, path, &TableOptions::default()).map_err(|error| error.to_string())?;
    Dataset::of_table(table, path, &recipe).map_err(|error| error.to_string())
}

/// A JSONL file, read for each stage, accepted by any: what was read comes back from what is written.
///
/// # Errors
/// Why the input is refused.
pub fn jsonl(input: &[u8]) -> Result<(), String> {
    table(input, Path::new("fuzz.jsonl"))
}

/// A CSV file, as [`jsonl`].
///
/// # Errors
/// Why the input is refused.
pub fn csv(input: &[u8]) -> Result<(), String> {
    table(input, Path::new("fuzz.csv"))
}

fn table(input: &[u8], path: &Path) -> Result<(), String> {
    let (mut words, mut accepted) = (String::new(), false);
    for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
        let dataset = match dataset_of(input, path, stage) {
            Ok(dataset) => dataset,
            Err(error) => {
                words.push_str(&error);
                continue;
            }
        };
        accepted = true;
        let mut written = String::new();
        for row in 0..dataset.len(Side::Train) {
            written.push_str(&jsonl::write_line(&dataset.sample(Side::Train, row, row)));
            written.push('\n');
        }
        let again = dataset_of(written.as_bytes(), Path::new("again.jsonl"), stage);
        let again = again.unwrap_or_else(|error| panic!("{error}: {written}"));
        assert_eq!(again.digest(), dataset.digest(), "{written}");
    }
    if accepted { Ok(()) } else { Err(words) }
}

/// YAML, then `KEY=VALUE` lines of environment and flags; what is accepted loads back from the YAML shown.
///
/// # Errors
/// Why the input is refused.
pub fn config(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let (mut yaml, mut env, mut flags) = (String::new(), Vec::new(), Vec::new());
    let mut part = 0;
    for line in text.split('\n') {
        match (line, part) {
            ("---env", _) => part = 1,
            ("---flags", _) => part = 2,
            (_, 0) => {
                yaml.push_str(line);
                yaml.push('\n');
            }
            (_, place) => {
                let (key, value) = line.split_once('=').unwrap_or((line, ""));
                let list = if place == 1 { &mut env } else { &mut flags };
                list.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    let path = Path::new("fuzz.yaml");
    let yaml = Source::from_yaml_text(path, &yaml);
    let config =
        resolve(Some(yaml), Source::from_env(env), Source::from_flags(flags)).map_err(|error| error.to_string())?;
    config.recipe.check().unwrap_or_else(|error| panic!("resolved and not valid: {error}"));
    let shown = to_yaml(&config);
    let nothing: [(&str, String); 0] = [];
    match resolve(Some(Source::from_yaml_text(path, &shown)), Source::from_env([]), Source::from_flags(nothing)) {
        Ok(again) => assert_eq!(again, config, "{shown}"),
        Err(error) => panic!("{error}\n{shown}"),
    }
    Ok(())
}

/// A checkpoint file; an accepted one can be used for all that checkpoints are used for.
///
/// # Errors
/// Why the input is refused.
pub fn checkpoint(input: &[u8]) -> Result<(), String> {
    let checkpoint = Checkpoint::from_bytes(Path::new("fuzz.safetensors"), input).map_err(|error| error.to_string())?;
    let recipe = &checkpoint.identity.recipe;
    let _ = (checkpoint.samples(), checkpoint.projector_digest(), recipe.total_steps(), recipe.micro_batches());
    let stream = SampleStream::generated(recipe, Domain::Train).map_err(|error| error.to_string())?;
    if recipe.batch_size <= 64 && recipe.mixed_max_numbers <= 100 {
        SampleDigest::start().extend(&stream, recipe, 0..checkpoint.state.step().min(2));
    }
    let mut state = checkpoint.state.clone();
    let row = vec![0.25; state.layout().row_len()];
    state.update(&row, recipe).map_err(|error| error.to_string())
}

/// A `config.json`; of an accepted one all that is derived can be derived.
///
/// # Errors
/// Why the input is refused.
pub fn model_config(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let architecture = Architecture::parse(Path::new("config.json"), &text).map_err(|error| error.to_string())?;
    match &architecture {
        Architecture::Gpt2(config) => {
            assert!(config.head_size() > 0 && !config.canonical().is_empty());
            assert!(config.attention_scale(config.n_layer).is_finite());
        }
        Architecture::Llama(config) => {
            assert!(config.head_size > 0 && !config.canonical().is_empty());
            assert_eq!(config.rope.frequencies(config.head_size).len(), config.head_size / 2);
        }
    }
    if architecture.layers() <= 100 {
        assert!(numbers(&architecture.tensors()) > 0);
        let _ = architecture.footprint();
    }
    Ok(())
}

/// A safetensors file of weights: the header, the comparison with a configuration, and every tensor that is there.
///
/// # Errors
/// Why the input is refused.
pub fn weights(input: &[u8]) -> Result<(), String> {
    let path = Path::new("fuzz");
    let source = Safetensors::embedded("fuzz.safetensors", input.to_vec()).map_err(|error| error.to_string())?;
    for name in source.names() {
        source.read(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let small = "{\"model_type\": \"gpt2\", \"n_layer\": 1, \"n_embd\": 2, \"n_head\": 1, \"n_inner\": 2, \
                 \"vocab_size\": 3, \"n_positions\": 2}";
    let wanted = match Architecture::parse(Path::new("config.json"), small) {
        Ok(architecture) => architecture.tensors(),
        Err(error) => panic!("it is valid: {error}"),
    };
    source.check(&wanted, path).map_err(|error| error.to_string())
}

/// A `model.safetensors.index.json`: no name in it leaves the folder.
///
/// # Errors
/// Why the input is refused.
pub fn shard_index(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let names = Safetensors::shard_names_in(Path::new("index.json"), &text).map_err(|error| error.to_string())?;
    for name in names {
        assert!(Path::new(&name).file_name().is_some_and(|last| last == name.as_str()), "{name:?}");
    }
    Ok(())
}

/// A GGUF file: every tensor of an accepted one has its shape, whole and in parts, and its tokenizer answers.
///
/// # Errors
/// Why the input is refused.
pub fn gguf(input: &[u8]) -> Result<(), String> {
    let model = gguf::from_bytes("fuzz.gguf", input.to_vec()).map_err(|error| error.to_string())?;
    for (name, shape) in model.architecture.tensors() {
        let whole = model.tensors.read(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(whole.len(), shape.iter().product::<usize>(), "{name}");
        let mut count = 0;
        let parts = model.tensors.read_parts(&name, &mut |part| count += part.len());
        parts.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(count, whole.len(), "{name}");
    }
    // A tokenizer without a text's bytes may refuse it.
    let _ = model.tokenizer.encode("a 12.5 $$-3&& é<|end|>").and_then(|ids| model.tokenizer.decode(&ids));
    Ok(())
}

/// What a stranger may send: the worker's messages as the coordinator reads them, rows, and states inside them.
///
/// # Errors
/// Why the input is refused.
pub fn messages(input: &[u8]) -> Result<(), String> {
    if let Ok(state) = State::from_bytes(input) {
        assert_eq!(state.to_bytes(), input);
        return Ok(());
    }
    let of_rank = numalign_protocol::RankMessage::decode(input).map_err(|error| error.to_string());
    let rows = of_rank.and_then(|message| decode::rows(&message.rows).map_err(|error| error.to_string()));
    let message = numalign_protocol::WorkerMessage::decode(input).map_err(|error| error.to_string())?;
    if let Some(Message::Hello(hello)) = &message.message {
        let state = hello.rejoin_state.as_ref().ok_or("no rejoin state")?;
        return State::from_bytes(&state.state).map(|_| ()).map_err(|error| error.to_string());
    }
    match decode::worker_message(MemberId(1), message)? {
        Some(_) => Ok(()),
        None => rows.map(|_| ()),
    }
}
