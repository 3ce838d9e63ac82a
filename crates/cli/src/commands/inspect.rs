//! `numalign inspect`: everything a checkpoint says.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use serde_json::{Map, Value};

use crate::args::text;
use crate::error::CliError;
use crate::output::outln;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let path = Path::new(text(matches, "file").unwrap_or_default());
    let checkpoint = Checkpoint::read(path)?;
    let mut all = Map::new();
    all.insert("path".to_owned(), path.display().to_string().into());
    for (key, value) in checkpoint.metadata() {
        all.insert(key, readable(value));
    }
    let mut tensors = Map::new();
    for tensor in checkpoint.state.layout().tensors() {
        let values = &checkpoint.state.parameters()[tensor.range];
        let norm = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        tensors.insert(tensor.name.to_owned(), serde_json::json!({ "shape": tensor.shape, "norm": norm }));
    }
    all.insert("tensors".to_owned(), tensors.into());
    all.insert("projector_digest".to_owned(), checkpoint.projector_digest().into());
    if matches.get_flag("json") {
        outln!("{}", Value::Object(all))?;
        return Ok(());
    }
    for (key, value) in &all {
        match value {
            Value::Object(fields) => {
                outln!("{key}:")?;
                for (name, value) in fields {
                    outln!("  {name}: {value}")?;
                }
            }
            Value::String(text) => outln!("{key}: {text}")?,
            other => outln!("{key}: {other}")?,
        }
    }
    Ok(())
}

/// Metadata are strings in the file; objects, lists and whole numbers are shown as what they are.
fn readable(value: String) -> Value {
    if value.starts_with(['{', '[']) {
        return serde_json::from_str(&value).unwrap_or(Value::String(value));
    }
    match value.parse::<u64>() {
        Ok(number) => number.into(),
        Err(_) => Value::String(value),
    }
}
