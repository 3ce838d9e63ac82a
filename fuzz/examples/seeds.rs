//! Writes the binary seeds (checkpoints, weights, messages) into `seeds/`; run by hand when a format changes:
//! `cargo run -p numalign-fuzz --example seeds`.

use std::path::Path;

use anyhow::Context;
use numalign_checkpoint::{Checkpoint, Identity};
use numalign_config::{Arithmetic, Config};
use numalign_data::{Domain, SampleDigest, SampleStream};
use numalign_fuzz::structure::join_safetensors;
use numalign_projector::State;
use numalign_protocol as proto;
use numalign_protocol::worker_message::Message;
use prost::Message as _;
use serde_json::{Map, Value, json};

const HIDDEN: usize = 2;

fn main() -> anyhow::Result<()> {
    for stage in ["nn", "text", "mixed"] {
        write("checkpoint", stage, &checkpoint(stage)?.to_bytes())?;
    }
    write("weights", "f32", &weights("F32", "", 4))?;
    write("weights", "bf16-prefixed", &weights("BF16", "transformer.", 2))?;
    for (name, bytes) in messages()? {
        write("messages", name, &bytes)?;
    }
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())
}

fn config(stage: &str) -> anyhow::Result<Config> {
    let flags =
        [("stage", stage), ("batch_size", "4"), ("micro_batch_size", "2"), ("num_epochs", "2"), ("num_batches", "3")];
    Ok(Config::with(&flags)?)
}

/// The state after two updates with a made-up row.
fn checkpoint(stage: &str) -> anyhow::Result<Checkpoint> {
    let recipe = config(stage)?.recipe;
    let stream = SampleStream::generated(&recipe, Domain::Train)?;
    let mut ledger = SampleDigest::start();
    ledger.extend(&stream, &recipe, 0..2);
    let mut state = State::initial(HIDDEN, recipe.seed);
    for _ in 0..2 {
        state.update(&vec![0.5; state.layout().row_len()], &recipe)?;
    }
    let identity = Identity {
        recipe,
        base_fingerprint: blake3::hash(b"no model").to_hex().to_string(),
        tokenizer_fingerprint: None,
        arithmetic: Arithmetic::F32,
        layer_norms: Vec::new(),
        dataset_digest: None,
        split: None,
        loaded_digest: None,
    };
    let state = state.evaluated(&identity.recipe, &vec![0.5; state.layout().row_len()], 4)?;
    Ok(Checkpoint { identity, state, sample_digest: ledger.to_hex(), sums: None })
}

/// The weights of a GPT-2 with one layer of width two, all zero.
fn weights(dtype: &str, prefix: &str, bytes_each: usize) -> Vec<u8> {
    let d = 2;
    let mut shapes = vec![("wte.weight", vec![3, d]), ("wpe.weight", vec![2, d])];
    for (name, shape) in [
        ("h.0.ln_1.weight", vec![d]),
        ("h.0.ln_1.bias", vec![d]),
        ("h.0.attn.c_attn.weight", vec![d, 3 * d]),
        ("h.0.attn.c_attn.bias", vec![3 * d]),
        ("h.0.attn.c_proj.weight", vec![d, d]),
        ("h.0.attn.c_proj.bias", vec![d]),
        ("h.0.ln_2.weight", vec![d]),
        ("h.0.ln_2.bias", vec![d]),
        ("h.0.mlp.c_fc.weight", vec![d, d]),
        ("h.0.mlp.c_fc.bias", vec![d]),
        ("h.0.mlp.c_proj.weight", vec![d, d]),
        ("h.0.mlp.c_proj.bias", vec![d]),
        ("ln_f.weight", vec![d]),
        ("ln_f.bias", vec![d]),
        ("h.0.attn.bias", vec![1, 1, 2, 2]),
    ] {
        shapes.push((name, shape));
    }
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += shape.iter().product::<usize>() * bytes_each;
        header
            .insert(format!("{prefix}{name}"), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
    }
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    join_safetensors(&Value::Object(header), &vec![0; end])
}

fn messages() -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let state = State::initial(HIDDEN, 0).to_bytes();
    let generation = Some(proto::Generation { incarnation: u64::MAX, number: 3, rollback: 1 });
    let rejoin_state = proto::RejoinState {
        rollback: 1,
        run_id: "nn".to_owned(),
        config_digest: "0".repeat(64),
        state: state.clone(),
        mac: vec![0; 32],
    };
    let hello = proto::Hello {
        protocol: proto::PROTOCOL,
        host: "host".to_owned(),
        rejoin_state: Some(rejoin_state),
        ..proto::Hello::default()
    };
    let done = proto::UnitDone {
        generation,
        unit: 7,
        digest: blake3::hash(&state).as_bytes().to_vec(),
        state: state.clone(),
        ..proto::UnitDone::default()
    };
    let rows = vec![proto::Row::new(1, &[0.0; 8], *blake3::hash(&[0; 32]).as_bytes())];
    let of_rank = proto::RankMessage { generation, member: 2, unit: Some(7), rows, ..proto::RankMessage::default() };
    let ready = proto::Ready {
        base_fingerprint: "ab".repeat(32),
        hidden_size: 2,
        model_parameters: 10,
        weights: "random".to_owned(),
        device: "cpu".to_owned(),
        trial_digest: vec![1; 32],
        no_nccl: "no GPU".to_owned(),
        layer_norms: vec![proto::LayerNorm::new("ln".to_owned(), &[0.0; 2])],
        ..proto::Ready::default()
    };
    let message = |message| proto::WorkerMessage { message: Some(message) }.encode_to_vec();
    Ok(vec![
        ("state", state),
        ("hello", message(Message::Hello(hello))),
        ("ready", message(Message::Ready(ready))),
        ("step-done", message(Message::UnitDone(done))),
        ("of_rank", of_rank.encode_to_vec()),
    ])
}
