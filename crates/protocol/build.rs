//! Compiles `proto/numalign.proto` with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../../proto";
    println!("cargo:rerun-if-changed={folder}/numalign.proto");
    let files = protox::compile(["numalign.proto"], [folder])?;
    // One sum goes to every rank: a shared buffer is not copied for each.
    tonic_prost_build::configure().bytes(".numalign.v1.ReduceReply.sum").compile_fds(files)?;
    Ok(())
}
