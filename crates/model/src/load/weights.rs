//! Where a model's numbers come from: safetensors files (single or sharded), bytes inside this binary, or a
//! generator. Files are mapped into memory, one tensor at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};

use super::gguf::kind::Kind;
use super::misplaced;
use crate::arch::TensorList;
use crate::error::ModelError;
use crate::ops::HostBlocks;

/// Gives tensors by their name without a prefix, in `f32`, row-major.
pub trait TensorSource {
    /// The tensor `name`; the caller has checked that it exists.
    ///
    /// # Errors
    /// The source cannot be read.
    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError>;

    /// The weight `name` as a file of blocks has it, rows of outputs one after another; none where the source is no such file.
    ///
    /// # Errors
    /// The source cannot be read.
    fn blocks(&self, name: &str) -> Result<Option<HostBlocks>, ModelError> {
        let _ = name;
        Ok(None)
    }

    /// The kinds in which the weights of products lie; empty where no tensor lies in blocks.
    fn kinds(&self) -> BTreeSet<Kind> {
        BTreeSet::new()
    }

    /// The shape that the source has for `name`; empty where it has none.
    fn shape(&self, name: &str) -> Vec<usize> {
        let _ = name;
        Vec::new()
    }

    /// The tensor `name`, part by part, for what need not be held as `f32` whole.
    ///
    /// # Errors
    /// The source cannot be read.
    fn read_parts(&self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), ModelError> {
        each(&self.read(name)?);
        Ok(())
    }
}

/// Numbers of a tensor that are converted at once.
const PART: usize = 1 << 18;

/// A safetensors header larger than this is refused; the format's own reader draws the same line.
const MOST_HEADER: u64 = 100_000_000;

/// An index of shards larger than this is refused.
const MOST_INDEX: u64 = 64 << 20;

/// Where one tensor lies.
#[derive(Debug, Clone)]
struct TensorLocation {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

pub(crate) enum Storage {
    File { path: PathBuf, file: File },
    Memory { name: PathBuf, bytes: Cow<'static, [u8]> },
}

impl Storage {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Storage::File { path, .. } => path,
            Storage::Memory { name, .. } => name,
        }
    }

    /// Calls `with` on a tensor's bytes. A file's are mapped for that long only, so that what was read does not count
    /// as this process's memory.
    pub(crate) fn with_bytes(&self, start: u64, bytes: usize, with: impl FnOnce(&[u8])) -> Result<(), ModelError> {
        let end = start + bytes as u64;
        let short = |path: &Path| ModelError::Damaged { path: path.to_owned(), reason: "ends too early".to_owned() };
        match self {
            Storage::File { path, file } => {
                let read = |source| ModelError::Read { path: path.clone(), source };
                // A map past the end of a file would be answered by a signal.
                if file.metadata().map_err(read)?.len() < end {
                    return Err(short(path));
                }
                if bytes > 0 {
                    let mut options = memmap2::MmapOptions::new();
                    // SAFETY: the bytes are only read, and no reference to them outlives the map. Another program that
                    // changes the file meanwhile changes numbers, which the fingerprint tells.
                    let map = unsafe { options.offset(start).len(bytes).map(file) }.map_err(read)?;
                    with(&map);
                }
            }
            Storage::Memory { name, bytes } => {
                with(bytes.get(start as usize..end as usize).ok_or_else(|| short(name))?);
            }
        }
        Ok(())
    }

    fn read_at(&self, start: u64, out: &mut [u8]) -> Result<(), ModelError> {
        match self {
            Storage::File { path, file } => {
                file.read_exact_at(out, start).map_err(|source| ModelError::Read { path: path.clone(), source })
            }
            Storage::Memory { name, bytes } => {
                let start = usize::try_from(start).unwrap_or(usize::MAX);
                let part = bytes
                    .get(start..start.saturating_add(out.len()))
                    .ok_or_else(|| ModelError::Damaged { path: name.clone(), reason: "ends too early".to_owned() })?;
                out.copy_from_slice(part);
                Ok(())
            }
        }
    }
}

/// The tensors of one or several safetensors files.
pub struct Safetensors {
    files: Vec<Storage>,
    places: BTreeMap<String, TensorLocation>,
}

impl Safetensors {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// Files that are missing, cannot be read, or are damaged.
    pub fn open_folder(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join("model.safetensors");
        if single.exists() {
            return Self::open_files(vec![single]);
        }
        let index = folder.join("model.safetensors.index.json");
        if index.exists() {
            return Self::open_sharded(folder, &index);
        }
        if let Some(dangling) = misplaced::dangling(&single).or_else(|| misplaced::dangling(&index)) {
            return Err(dangling);
        }
        Err(misplaced::folder_without_weights(folder))
    }

    /// File names (without folder) that a model's index refers to.
    ///
    /// # Errors
    /// The index cannot be read, or names something else than files of its folder.
    pub fn shard_names(index: &Path) -> Result<Vec<String>, ModelError> {
        Self::shard_names_in(index, &read_text(index, MOST_INDEX)?)
    }

    /// As [`Safetensors::shard_names`], from the index's text; `index` is named in errors.
    ///
    /// # Errors
    /// As there, except for reading.
    pub fn shard_names_in(index: &Path, text: &str) -> Result<Vec<String>, ModelError> {
        let damaged = |reason: String| ModelError::Damaged { path: index.to_owned(), reason };
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| damaged(format!("not JSON: {error}")))?;
        let Some(map) = value.get("weight_map").and_then(|map| map.as_object()) else {
            return Err(damaged("no weight_map".to_owned()));
        };
        let mut names = BTreeSet::new();
        for (tensor, file) in map {
            let Some(file) = file.as_str() else {
                return Err(damaged(format!("weight_map of {tensor} is not a file name")));
            };
            if file.contains(['/', '\\', '\0']) || matches!(file, "" | "." | "..") {
                return Err(damaged(format!("weight_map of {tensor} leaves the folder: {file}")));
            }
            names.insert(file.to_owned());
        }
        Ok(names.into_iter().collect())
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self, ModelError> {
        let names = Self::shard_names(index)?;
        Self::open_files(names.iter().map(|name| folder.join(name)).collect())
    }

    fn open_files(paths: Vec<PathBuf>) -> Result<Self, ModelError> {
        let mut all = Self { files: Vec::new(), places: BTreeMap::new() };
        for path in paths {
            let opened = File::open(&path).and_then(|file| file.metadata().map(|data| (file, data)));
            let (file, data) = opened.map_err(|source| unreadable(&path, source))?;
            if !data.is_file() {
                return Err(ModelError::Damaged { path, reason: "not a file".to_owned() });
            }
            all.add(Storage::File { path, file }, data.len())?;
        }
        Ok(all)
    }

    /// The tensors of a file in memory, such as one compiled into this binary.
    ///
    /// # Errors
    /// The bytes are no safetensors file.
    pub fn embedded(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ModelError> {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        let mut all = Self { files: Vec::new(), places: BTreeMap::new() };
        all.add(Storage::Memory { name: PathBuf::from(name), bytes }, size)?;
        Ok(all)
    }

    /// Names of all tensors, without a prefix.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    fn add(&mut self, storage: Storage, size: u64) -> Result<(), ModelError> {
        let path = storage.path().to_owned();
        let damaged = |reason: String| ModelError::Damaged { path: path.clone(), reason };
        let mut head = vec![0; size.min(misplaced::HEAD as u64) as usize];
        storage.read_at(0, &mut head)?;
        if let Some(error) = misplaced::content(&path, &head) {
            return Err(error);
        }
        if size < 8 {
            return Err(damaged(format!("{size} bytes are no safetensors file")));
        }
        let mut length = [0u8; 8];
        storage.read_at(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MOST_HEADER || length > size - 8 {
            return Err(damaged(format!("its header claims {length} bytes of a file of {size}")));
        }
        let mut header = vec![0u8; 8 + length as usize];
        storage.read_at(0, &mut header)?;
        let (_, metadata) = read_header(&header).map_err(damaged)?;
        let data_start = 8 + length;
        check_coverage(&metadata, size - data_start).map_err(damaged)?;
        for (name, info) in metadata.tensors() {
            let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            if end > size - data_start {
                return Err(damaged(format!("tensor {name} ends at byte {} of {size}", data_start + end)));
            }
            let place = TensorLocation {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data_start + start,
                bytes: (end - start) as usize,
            };
            let plain = name.strip_prefix("transformer.").or_else(|| name.strip_prefix("model.")).unwrap_or(&name);
            let plain = plain.to_owned();
            if self.places.insert(plain, place).is_some() {
                return Err(damaged(format!("tensor {name} occurs twice")));
            }
        }
        self.files.push(storage);
        Ok(())
    }

    /// Compares what is there with what the configuration needs; all differences are reported together, by name and shape.
    ///
    /// # Errors
    /// There are differences.
    pub fn check(&self, wanted: &TensorList, path: &Path) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        for (name, shape) in wanted {
            match self.places.get(name) {
                None => problems.push(format!("  missing: {name} {shape:?}")),
                Some(place) if place.shape != *shape => {
                    problems.push(format!("  misshapen: {name} is {:?}, config.json wants {shape:?}", place.shape));
                }
                Some(place) if !matches!(place.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                    problems.push(format!("  {name} is {:?}; f32, f16 and bf16 can be read", place.dtype));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<&String> = wanted.iter().map(|(name, _)| name).collect();
        let mut heads = Vec::new();
        for (name, place) in &self.places {
            if ignorable(name) || known.contains(name) {
                continue;
            }
            if is_head(name) {
                heads.push(name.as_str());
            } else {
                problems.push(format!("  unexpected: {name} {:?}", place.shape));
            }
        }
        if problems.is_empty() {
            if !heads.is_empty() {
                tracing::info!(
                    "{}: passing over heads that numalign does not use: {}",
                    path.display(),
                    heads.join(", ")
                );
            }
            return Ok(());
        }
        if let Some(wrapped) = misplaced::wrapped(path, self.places.keys()) {
            return Err(wrapped);
        }
        const MOST_LINES: usize = 20;
        let more = problems.len().saturating_sub(MOST_LINES);
        problems.truncate(MOST_LINES);
        if more > 0 {
            problems.push(format!("  and {more} more"));
        }
        Err(ModelError::Weights { path: path.to_owned(), problems: problems.join("\n") })
    }
}

/// Tensors that other programs store and the hidden state does not need: the head, the causal masks of old GPT-2 files,
/// the rotary frequencies of old Llama files, and the numbers of the positions.
fn ignorable(name: &str) -> bool {
    const ENDS: [&str; 4] = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "position_ids"];
    name == "lm_head.weight" || ENDS.iter().any(|end| name.ends_with(end))
}

/// Whether a tensor is of a head for another task, such as `score.weight` or `v_head.summary.weight`: it stands after the
/// hidden state that numalign reads.
fn is_head(name: &str) -> bool {
    let module = name.split('.').next().unwrap_or_default();
    matches!(module, "score" | "classifier" | "qa_outputs" | "summary" | "pre_classifier" | "regressor")
        || module == "head"
        || module.ends_with("_head")
        || module.ends_with("_heads")
}

/// The safetensors header in `bytes`, which hold nothing else.
fn read_header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    // `read_metadata` wants the data behind the header too; its parser alone is what is needed here.
    let text = std::str::from_utf8(&bytes[8..]).map_err(|_| "its header is not UTF-8".to_owned())?;
    let metadata: Metadata =
        serde_json::from_str(text.trim_end()).map_err(|error| format!("its header cannot be read: {error}"))?;
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let mut count: usize = 1;
        for size in &info.shape {
            count = count.checked_mul(*size).ok_or_else(|| format!("the shape of {name} overflows"))?;
        }
        let bits = count.checked_mul(info.dtype.bitsize()).ok_or_else(|| format!("the size of {name} overflows"))?;
        if end.checked_sub(start).and_then(|bytes| bytes.checked_mul(8)) != Some(bits) {
            return Err(format!("tensor {name} has {start}..{end} bytes for shape {:?}", info.shape));
        }
    }
    Ok((bytes.len() - 8, metadata))
}

/// As the format wants it, the tensors lie side by side and fill the file's `available` bytes of data. Tensors that end
/// beyond them are left to the caller.
fn check_coverage(metadata: &Metadata, available: u64) -> Result<(), String> {
    let mut extents: Vec<_> = metadata.tensors().into_iter().map(|(name, info)| (info.data_offsets, name)).collect();
    extents.sort();
    let mut covered = 0;
    for ((start, end), name) in extents {
        if start != covered {
            return Err(format!(
                "tensor {name} begins at byte {start} of the data, the one before it ends at {covered}"
            ));
        }
        covered = end;
    }
    match available.checked_sub(covered as u64) {
        None | Some(0) => Ok(()),
        Some(more) => Err(format!("{more} bytes follow the last tensor, which no tensor covers")),
    }
}

impl TensorSource for Safetensors {
    fn shape(&self, name: &str) -> Vec<usize> {
        self.places.get(name).map(|place| place.shape.clone()).unwrap_or_default()
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let mut values = Vec::new();
        if let Some(place) = self.places.get(name) {
            values.reserve_exact(place.shape.iter().product());
        }
        self.read_parts(name, &mut |part| values.extend_from_slice(part))?;
        Ok(values)
    }

    fn read_parts(&self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), ModelError> {
        let Some(place) = self.places.get(name) else {
            return Err(ModelError::Damaged { path: PathBuf::new(), reason: format!("no tensor {name}") });
        };
        self.files[place.file].with_bytes(place.start, place.bytes, |bytes| {
            let mut wide = Vec::with_capacity(PART);
            for part in bytes.chunks(PART * place.dtype.bitsize() / 8) {
                wide.clear();
                match place.dtype {
                    Dtype::F16 => {
                        wide.extend(part.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()));
                    }
                    Dtype::BF16 => {
                        wide.extend(part.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()));
                    }
                    _ => wide.extend(part.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
                }
                each(&wide);
            }
        })
    }
}

/// Reads a small text file; refuses what is not UTF-8 or larger than `most` bytes.
///
/// # Errors
/// The file cannot be read, or is refused.
pub fn read_text(path: &Path, most: u64) -> Result<String, ModelError> {
    let read_error = |source| unreadable(path, source);
    let file = File::open(path).map_err(read_error)?;
    let mut text = String::new();
    let read = file.take(most + 1).read_to_string(&mut text).map_err(|source| {
        misplaced::content(path, &misplaced::head_of(path)).unwrap_or_else(|| unreadable(path, source))
    })?;
    if let Some(error) = misplaced::content(path, text.as_bytes()) {
        return Err(error);
    }
    if read as u64 > most {
        return Err(ModelError::Damaged { path: path.to_owned(), reason: format!("larger than {most} bytes") });
    }
    // Editors of another system put a byte order mark there.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// A file that cannot be opened or read; a link whose target is gone is called that.
fn unreadable(path: &Path, source: std::io::Error) -> ModelError {
    misplaced::dangling(path).unwrap_or_else(|| ModelError::Read { path: path.to_owned(), source })
}
