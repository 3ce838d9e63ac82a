//! GGUF files as `model_name`: container, dequantisation, names and layouts, configuration, tokenizer.
//!
//! Reading order: [`open`] → [`container`] → [`settings`] → [`source`] → [`dequantise`]; [`tokenizer`] beside them. A file
//! is turned into what a Hugging Face folder of the same model gives: the same configuration, the same tensors under the
//! same names, and so the same fingerprint where the numbers are the same.

pub mod container;
pub mod dequantise;
pub mod error;
pub mod kind;
pub mod names;
mod pre_tokenizer;
mod rope_factors;
pub mod settings;
pub mod source;
pub mod tokenizer;
pub mod value;

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::arch::Architecture;
use crate::error::ModelError;
use crate::load::weights::Storage;
use crate::tokenizer::Tokenizer;
use container::Container;
use source::GgufTensors;

/// A GGUF file, ready to be loaded.
pub struct GgufModel {
    /// Shape and arithmetic.
    pub architecture: Architecture,
    /// The tensors under their Hugging Face names.
    pub tensors: GgufTensors,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

/// Opens the file at `path`; reads everything but the tensors' data. A tokenizer that is `given` is taken in the place of
/// the file's own.
///
/// # Errors
/// The file cannot be read, is damaged, or holds a model or a type of tensor that numalign does not compute.
pub fn open(path: &Path, given: Option<Tokenizer>) -> Result<GgufModel, ModelError> {
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    if !file.metadata().map_err(read)?.is_file() {
        return Err(ModelError::Damaged { path: path.to_owned(), reason: "not a file".to_owned() });
    }
    // SAFETY: the bytes are only read, and no reference to them outlives the map. Another program that shortens the file
    // meanwhile ends this process by a signal, as it would any reader of a map.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read)?;
    from_parts(&map, path, given, |path| Storage::File { path, file })
}

/// The same, of a file in memory; `name` is named in errors.
///
/// # Errors
/// As [`open`].
pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<GgufModel, ModelError> {
    let copy = bytes.clone();
    from_parts(&copy, Path::new(name), None, |name| Storage::Memory { name, bytes: Cow::Owned(bytes) })
}

fn from_parts(
    bytes: &[u8],
    path: &Path,
    given: Option<Tokenizer>,
    storage: impl FnOnce(PathBuf) -> Storage,
) -> Result<GgufModel, ModelError> {
    let file = Container::parse(bytes).map_err(|error| error.at(path))?;
    let (gguf, fields) = settings::config(&file).map_err(|error| error.at(path))?;
    let architecture = Architecture::parse(path, &Json::Object(fields).to_string())?;
    let tensors = GgufTensors::new(storage(path.to_owned()), &file, gguf, &architecture)?;
    let tokenizer = match given {
        Some(tokenizer) => tokenizer,
        None => tokenizer::tokenizer(&file, gguf, path)?,
    };
    Ok(GgufModel { architecture, tensors, tokenizer })
}
