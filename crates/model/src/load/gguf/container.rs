//! The GGUF container, versions 2 and 3, little-endian: header, metadata and tensor list.
//!
//! Written for hostile files: every length, count, offset and size is checked against the file before anything is
//! allocated for it, and the tensors must lie one after another, without overlap and without gaps, as llama.cpp's own
//! reader wants them.

use std::collections::BTreeMap;

use super::error::GgufError;
use super::kind::Kind;
use super::value::{Cursor, Value};

/// The first bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Longest key and longest tensor name, as the format's description has them.
const MOST_KEY: u64 = 65_535;
const MOST_TENSOR_NAME: u64 = 64;

/// GGML's tensors have at most four dimensions.
const MOST_DIMENSIONS: u32 = 4;

/// The fewest bytes of a metadata entry: length and one byte of its key, its type, a value of one byte.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;

/// The fewest bytes of a tensor's description: length and one byte of its name, one dimension, type and offset.
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// Where the alignment is not given.
const DEFAULT_ALIGNMENT: u64 = 32;

/// What a GGUF file holds; borrows the file's bytes.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    /// 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<&'a str, Value<'a>>,
    /// Tensors by GGML's name.
    pub tensors: BTreeMap<&'a str, TensorInfo>,
    bytes: &'a [u8],
}

/// A tensor's description.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// The type of its blocks.
    pub kind: Kind,
    /// Slowest dimension first, the reverse of the file's order.
    pub shape: Vec<usize>,
    /// First byte within the file.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl<'a> Container<'a> {
    /// Reads and checks everything before the tensors' data. `bytes` is the whole file.
    ///
    /// # Errors
    /// The file is no GGUF file, damaged, of another version or byte order, or holds a tensor of a type that is not read.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes);
        let version = version(&mut cursor)?;
        // Both counts come first; each is checked against what is left for it.
        let tensor_count = cursor.count(LEAST_TENSOR, "the tensor list")?;
        let entries = cursor.count(LEAST_ENTRY, "the metadata")?;
        let metadata = metadata(&mut cursor, entries)?;
        let alignment = alignment(&metadata)?;
        if tensor_count > cursor.left() / LEAST_TENSOR {
            let (what, left) = ("the tensor list".to_owned(), cursor.left());
            return Err(GgufError::Count { what, count: tensor_count, left });
        }
        let mut tensors = tensor_list(&mut cursor, tensor_count, alignment)?;
        let size = bytes.len() as u64;
        place(&mut tensors, cursor.at(), alignment, size)?;
        Ok(Self { version, metadata, tensors, bytes })
    }

    /// The bytes of one of [`Container::tensors`].
    pub fn data(&self, tensor: &TensorInfo) -> &'a [u8] {
        let (start, end) = (tensor.start as usize, (tensor.start + tensor.bytes) as usize);
        self.bytes.get(start..end).unwrap_or_default()
    }
}

fn version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let magic = cursor.take(4.min(cursor.left()), "the magic number")?;
    if magic != MAGIC {
        return Err(GgufError::Magic { found: magic.to_vec() });
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        // The other byte order makes small numbers huge.
        _ if version & 0xffff == 0 && version != 0 => Err(GgufError::BigEndian { version: version.swap_bytes() }),
        _ => Err(GgufError::Version { version }),
    }
}

fn metadata<'a>(cursor: &mut Cursor<'a>, entries: u64) -> Result<BTreeMap<&'a str, Value<'a>>, GgufError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = cursor.name("a metadata key", MOST_KEY)?;
        let value = cursor.typed_value(key)?;
        if metadata.insert(key, value).is_some() {
            return Err(GgufError::Duplicate { name: format!("metadata key {key}") });
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<&str, Value<'_>>) -> Result<u64, GgufError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && *alignment <= u64::from(u32::MAX) => {
            Ok(*alignment)
        }
        Some(Value::Unsigned(alignment)) => Err(GgufError::Alignment { alignment: *alignment }),
        Some(other) => {
            let (key, found) = ("general.alignment".to_owned(), other.describe());
            Err(GgufError::Value { key, found, wanted: "an unsigned number" })
        }
    }
}

fn tensor_list<'a>(
    cursor: &mut Cursor<'a>,
    count: u64,
    alignment: u64,
) -> Result<BTreeMap<&'a str, TensorInfo>, GgufError> {
    let mut tensors = BTreeMap::new();
    for _ in 0..count {
        let name = cursor.name("a tensor", MOST_TENSOR_NAME)?;
        let shape = shape(cursor, name)?;
        let code = cursor.u32(name)?;
        let Some(kind) = Kind::from_code(code) else {
            return Err(GgufError::UnsupportedKind { tensor: name.to_owned(), code });
        };
        let bytes = size(name, kind, &shape)?;
        let offset = cursor.u64(name)?;
        if !offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { tensor: name.to_owned(), offset, alignment });
        }
        if tensors.insert(name, TensorInfo { kind, shape, start: offset, bytes }).is_some() {
            return Err(GgufError::Duplicate { name: format!("tensor {name}") });
        }
    }
    Ok(tensors)
}

/// The dimensions, slowest first.
fn shape(cursor: &mut Cursor<'_>, tensor: &str) -> Result<Vec<usize>, GgufError> {
    let wrong = |reason: String| GgufError::Shape { tensor: tensor.to_owned(), reason };
    let dimensions = cursor.u32(tensor)?;
    if dimensions == 0 || dimensions > MOST_DIMENSIONS {
        return Err(wrong(format!("{dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible")));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let length = cursor.u64(tensor)?;
        if length == 0 {
            return Err(wrong("a dimension of 0".to_owned()));
        }
        shape.push(usize::try_from(length).map_err(|_| wrong(format!("a dimension of {length}")))?);
    }
    shape.reverse();
    Ok(shape)
}

/// Bytes of a tensor; its fastest dimension holds whole blocks.
fn size(tensor: &str, kind: Kind, shape: &[usize]) -> Result<u64, GgufError> {
    let wrong = |reason: String| GgufError::Shape { tensor: tensor.to_owned(), reason };
    let (numbers, bytes) = kind.block();
    let row = shape.last().copied().unwrap_or(1) as u64;
    if !row.is_multiple_of(numbers) {
        return Err(wrong(format!("rows of {row} numbers are no whole blocks of {numbers}, as {kind:?} has them")));
    }
    let mut count: u64 = 1;
    for length in shape {
        count = count.checked_mul(*length as u64).ok_or_else(|| wrong(format!("the shape {shape:?} overflows")))?;
    }
    (count / numbers).checked_mul(bytes).ok_or_else(|| wrong(format!("the size of shape {shape:?} overflows")))
}

/// Turns offsets into positions within the file, and checks that the tensors fill the rest of it one after another.
fn place(tensors: &mut BTreeMap<&str, TensorInfo>, header: u64, alignment: u64, size: u64) -> Result<(), GgufError> {
    let padded = |end: u64| end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let data = padded(header);
    let mut in_order: Vec<(&str, &mut TensorInfo)> = tensors.iter_mut().map(|(name, tensor)| (*name, tensor)).collect();
    in_order.sort_by_key(|(_, tensor)| tensor.start);
    let mut end = 0;
    let mut last = "the header";
    for (name, tensor) in in_order {
        let offset = tensor.start;
        if offset < end {
            let (tensor, other) = (name.to_owned(), last.to_owned());
            return Err(GgufError::Overlap { tensor, offset, other, end });
        }
        if offset > padded(end) {
            return Err(GgufError::Gap { bytes: offset - end, place: format!("tensor {name}") });
        }
        let start = data.saturating_add(offset);
        end = offset.saturating_add(tensor.bytes);
        if data.saturating_add(end) > size {
            let what = format!("tensor {name}");
            return Err(GgufError::TooShort { what, at: start, needed: tensor.bytes, size });
        }
        tensor.start = start;
        last = name;
    }
    // Writers pad the last tensor too, or leave that out.
    if size > padded(data.saturating_add(end)) {
        let bytes = size - data - end;
        return Err(GgufError::Gap { bytes, place: "the end".to_owned() });
    }
    Ok(())
}
