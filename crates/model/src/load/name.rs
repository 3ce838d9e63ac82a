//! From `model_name` to something that can be loaded: `demo`, `synthetic:…`, a folder, a GGUF file, or a hub id with or without a revision.

use std::path::{Path, PathBuf};

use super::hub::HubName;
use super::{gguf, hub, synthetic};
use crate::error::ModelError;

/// What a `model_name` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelName {
    /// The small trained GPT-2 inside this binary.
    Demo,
    /// Random weights of a published size.
    Synthetic {
        /// One of [`synthetic::SIZES`].
        size: String,
        /// Other seeds give other weights.
        seed: u64,
    },
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// `organisation/name` or `name` on the hub, with `@revision` or without.
    Hub(HubName),
}

impl ModelName {
    /// Reads a name; touches the file system only to see whether there is such a folder or file, and
    /// whether a folder holds a GGUF file.
    ///
    /// # Errors
    /// A name that means nothing of these.
    pub fn parse(name: &str) -> Result<Self, ModelError> {
        let unknown = |reason: String| ModelError::UnknownModel { name: name.to_owned(), reason };
        if name == "demo" {
            return Ok(Self::Demo);
        }
        if let Some(rest) = name.strip_prefix("synthetic:") {
            let (size, seed) = match rest.split_once(':') {
                None => (rest, 0),
                Some((size, seed)) => {
                    let parsed = seed.parse().map_err(|_| unknown(format!("`{seed}` is not a seed")))?;
                    (size, parsed)
                }
            };
            if synthetic::architecture(size).is_none() {
                return Err(unknown(format!("`{size}` is not a size; sizes are {}", synthetic::SIZES)));
            }
            return Ok(Self::Synthetic { size: size.to_owned(), seed });
        }
        let path = Path::new(name);
        if path.is_dir() {
            return Ok(match gguf::source::only_file(path)? {
                Some(file) => Self::Gguf(file),
                None => Self::Folder(path.to_owned()),
            });
        }
        if path.is_file() && gguf::source::has_extension(path) {
            return Ok(Self::Gguf(path.to_owned()));
        }
        if path.is_file() {
            return Err(unknown("it is a file; give the folder that holds config.json, or a .gguf file".to_owned()));
        }
        if gguf::source::has_extension(path) {
            return Err(unknown("there is no such file".to_owned()));
        }
        if let Some(name) = HubName::parse(name) {
            return Ok(Self::Hub(name));
        }
        if name.starts_with(['/', '.', '~']) || name.matches('/').count() > 1 {
            return Err(unknown("there is no such folder".to_owned()));
        }
        Err(unknown("it is neither a folder nor a possible hub id".to_owned()))
    }

    /// Whether the model can be loaded without the network.
    pub fn is_at_hand(&self) -> bool {
        match self {
            Self::Demo | Self::Synthetic { .. } | Self::Folder(_) | Self::Gguf(_) => true,
            Self::Hub(name) => hub::is_cached(name),
        }
    }
}
