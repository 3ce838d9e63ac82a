//! Compiles `proto/numalign.proto` with protox, so that no `protoc` is needed.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../../proto";
    println!("cargo:rerun-if-changed={folder}/numalign.proto");
    let mut files = protox::compile(["numalign.proto"], [folder])?;
    // Whoever asks the server for its proto gets all of it.
    let whole = std::path::Path::new(&std::env::var("OUT_DIR")?).join("numalign.bin");
    std::fs::write(whole, files.encode_to_vec())?;
    // The codec alone makes and checks it: no message has it as a field that could be set or forgotten.
    for file in &mut files.file {
        for message in &mut file.message_type {
            message.field.retain(|field| field.name() != "message_digest");
        }
    }
    let mut builder = tonic_prost_build::configure()
        .codec_path("crate::checked::CheckedCodec")
        // One sum goes to every rank: a shared buffer is not copied for each. A row is read where it arrived.
        .bytes(".numalign.v1.Sum.sum")
        .bytes(".numalign.v1.Row.values");
    // `numalign status --json` prints these as they are.
    for message in ["StatusReply", "WorkerStatus", "FailureStatus", "EvaluationStatus"] {
        builder = builder.type_attribute(format!(".numalign.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    for (field, attribute) in [
        ("StatusReply.steps_per_second", "#[serde(rename = \"steps_per_s\")]"),
        ("StatusReply.refused", "#[serde(skip)]"),
        ("WorkerStatus.last_heartbeat_seconds", "#[serde(rename = \"last_heartbeat_s\")]"),
    ] {
        builder = builder.field_attribute(format!(".numalign.v1.{field}"), attribute);
    }
    builder.compile_fds(files)?;
    Ok(())
}
