//! Compiles `proto/numalign.proto` with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../../proto";
    println!("cargo:rerun-if-changed={folder}/numalign.proto");
    let files = protox::compile(["numalign.proto"], [folder])?;
    let mut builder = tonic_prost_build::configure()
        // One sum goes to every rank: a shared buffer is not copied for each.
        .bytes(".numalign.v1.ReduceReply.sum");
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
