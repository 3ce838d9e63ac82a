//! Everything that can be wrong with a GGUF file, by the key, tensor or count concerned.

use std::path::Path;

use super::kind::{Kind, name_of};
use crate::error::ModelError;

/// Why a GGUF file is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum GgufError {
    /// The first four bytes are others.
    #[error("not a GGUF file: it begins with {found:?}")]
    Magic { found: Vec<u8> },
    /// The version is a small number read the wrong way round.
    #[error("a big-endian GGUF file (version {version}); little-endian ones are read")]
    BigEndian { version: u32 },
    /// Another version of the format.
    #[error("GGUF version {version}; versions 2 and 3 are read")]
    Version { version: u32 },
    /// Something reaches past the end of the file.
    #[error("{what} at byte {at} needs {needed} bytes of a file of {size}")]
    TooShort { what: String, at: u64, needed: u64, size: u64 },
    /// A count that the rest of the file cannot hold.
    #[error("{what}: {count} entries do not fit into the remaining {left} bytes")]
    Count { what: String, count: u64, left: u64 },
    /// A text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    Text { what: String },
    /// A name longer than the format allows, or empty.
    #[error("{what} has a name of {length} bytes; 1 to {most} are allowed")]
    NameLength { what: &'static str, length: u64, most: u64 },
    /// A metadata value of a type that the format does not have.
    #[error("{key} has the value type {code}, which does not exist")]
    ValueType { key: String, code: u32 },
    /// A truth value other than 0 and 1.
    #[error("{key} holds {value}, which is neither true nor false")]
    Bool { key: String, value: u8 },
    /// Arrays within arrays beyond reason.
    #[error("{key} nests arrays more than {most} deep")]
    Nesting { key: String, most: usize },
    /// A key or tensor that occurs twice.
    #[error("{name} occurs twice")]
    Duplicate { name: String },
    /// `general.alignment` is not a power of two.
    #[error("general.alignment is {alignment}, not a power of two")]
    Alignment { alignment: u64 },
    /// A tensor's dimensions are impossible.
    #[error("tensor {tensor}: {reason}")]
    Shape { tensor: String, reason: String },
    /// A tensor in a format that is not read.
    #[error("tensor {tensor} is {}; {} are read", name_of(*code), Kind::names())]
    UnsupportedKind { tensor: String, code: u32 },
    /// A tensor's offset is not a multiple of the alignment.
    #[error("tensor {tensor} begins at {offset}, not a multiple of {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    /// Two tensors share bytes.
    #[error("tensor {tensor} begins at {offset}, within {other}, which ends at {end}")]
    Overlap { tensor: String, offset: u64, other: String, end: u64 },
    /// Bytes that belong to no tensor.
    #[error("{bytes} bytes before {place} belong to no tensor")]
    Gap { bytes: u64, place: String },
    /// A key that is needed.
    #[error("{key} is missing")]
    Missing { key: String },
    /// A key whose value is of the wrong type or out of range.
    #[error("{key} is {found}, not {wanted}")]
    Value { key: String, found: String, wanted: &'static str },
    /// What the file holds contradicts itself.
    #[error("{reason}")]
    Contradiction { reason: String },
    /// The file is sound, but its model is not one that numalign computes.
    #[error("{reason}")]
    Unsupported { reason: String },
}

impl GgufError {
    /// The error as one of the model, with the file that it concerns.
    pub fn at(self, path: &Path) -> ModelError {
        let (path, reason) = (path.to_owned(), self.to_string());
        match self {
            Self::BigEndian { .. } | Self::Version { .. } | Self::UnsupportedKind { .. } | Self::Unsupported { .. } => {
                ModelError::Unsupported { path, reason }
            }
            _ => ModelError::Damaged { path, reason },
        }
    }
}
