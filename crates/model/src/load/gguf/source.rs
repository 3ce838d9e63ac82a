//! Gives a GGUF file's tensors under their Hugging Face names, in Hugging Face layout and `f32`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::container::Container;
use super::dequantise::dequantise;
use super::kind::Kind;
use super::names::{GgufArchitecture, Layout, gguf_name, is_ignorable, layout, transposed, uninterleaved};
use crate::arch::{Architecture, TensorList};
use crate::error::ModelError;
use crate::load::weights::{Storage, TensorSource};
use crate::ops::HostBlocks;

/// Numbers that are converted at once; whole blocks of every kind.
const PART: u64 = 1 << 18;

/// Differences between tensors and metadata that are reported together.
const MOST_PROBLEMS: usize = 20;

/// The tensors of one GGUF file.
pub struct GgufTensors {
    storage: Storage,
    /// By Hugging Face name, without a prefix.
    locations: BTreeMap<String, TensorLocation>,
}

/// Where one tensor lies, and how.
#[derive(Debug, Clone)]
struct TensorLocation {
    kind: Kind,
    layout: Layout,
    /// As the file has it, slowest dimension first.
    shape: Vec<usize>,
    /// Heads of a tensor whose layout is [`Layout::Interleaved`].
    heads: usize,
    start: u64,
    bytes: u64,
}

impl GgufTensors {
    /// The tensors that `model` needs; `storage` is the file that `file` was read from.
    ///
    /// # Errors
    /// A tensor is missing, misshapen, or not one of the model's; all are named together.
    pub(crate) fn new(
        storage: Storage,
        file: &Container<'_>,
        architecture: GgufArchitecture,
        model: &Architecture,
    ) -> Result<Self, ModelError> {
        let problems = problems(file, architecture, &model.tensors());
        if !problems.is_empty() {
            return Err(ModelError::Damaged { path: storage.path().to_owned(), reason: report(problems) });
        }
        let mut locations = BTreeMap::new();
        for (name, _) in model.tensors() {
            let gguf = gguf_name(architecture, &name);
            let Some(tensor) = gguf.and_then(|name| file.tensors.get(name.as_str())) else {
                continue;
            };
            let location = TensorLocation {
                kind: tensor.kind,
                layout: layout(architecture, &name),
                shape: tensor.shape.clone(),
                heads: heads(model, &name),
                start: tensor.start,
                bytes: tensor.bytes,
            };
            locations.insert(name, location);
        }
        Ok(Self { storage, locations })
    }

    fn location(&self, name: &str) -> Result<&TensorLocation, ModelError> {
        self.locations.get(name).ok_or_else(|| ModelError::Damaged {
            path: self.storage.path().to_owned(),
            reason: format!("no tensor {name}"),
        })
    }

    /// The numbers in the file's own order, part by part.
    fn read_plain(&self, location: &TensorLocation, each: &mut dyn FnMut(&[f32])) -> Result<(), ModelError> {
        let (numbers, bytes) = location.kind.block();
        self.storage.with_bytes(location.start, location.bytes as usize, |data| {
            let mut part = Vec::with_capacity(PART as usize);
            for blocks in data.chunks((PART / numbers * bytes) as usize) {
                part.clear();
                dequantise(location.kind, blocks, &mut part);
                each(&part);
            }
        })
    }
}

impl TensorSource for GgufTensors {
    fn blocks(&self, name: &str) -> Result<Option<HostBlocks>, ModelError> {
        let location = self.location(name)?;
        if self.kinds().is_empty() {
            return Ok(None);
        }
        let (numbers, block_bytes) = location.kind.block();
        let mut bytes = Vec::new();
        if numbers == 1 {
            return Ok(Some(HostBlocks { kind: location.kind, bytes }));
        }
        let (rows, width) = (location.shape[0], location.shape[1..].iter().product::<usize>());
        let row_bytes = width / numbers as usize * block_bytes as usize;
        self.storage.with_bytes(location.start, location.bytes as usize, |data| {
            bytes = match location.layout {
                // Rows are outputs in the file, whatever a folder has.
                Layout::Plain | Layout::Transposed => data.to_vec(),
                Layout::Interleaved => uninterleaved(&data[..rows * row_bytes], location.heads, row_bytes),
            };
        })?;
        Ok(Some(HostBlocks { kind: location.kind, bytes }))
    }

    fn kinds(&self) -> BTreeSet<Kind> {
        let weights = self.locations.iter().filter(|(name, location)| {
            let is_table =
                name.ends_with("embed_tokens.weight") || matches!(name.as_str(), "wte.weight" | "wpe.weight");
            location.shape.len() > 1 && !is_table && location.kind.block().0 > 1
        });
        weights.map(|(_, location)| location.kind).collect()
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        let Some(location) = self.locations.get(name) else {
            return Vec::new();
        };
        let mut shape = location.shape.clone();
        if location.layout == Layout::Transposed {
            shape.reverse();
        }
        shape
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let location = self.location(name)?;
        let mut values = Vec::with_capacity(location.shape.iter().product());
        self.read_plain(location, &mut |part| values.extend_from_slice(part))?;
        let rows = location.shape[0];
        let width = location.shape[1..].iter().product();
        Ok(match location.layout {
            Layout::Plain => values,
            Layout::Transposed => transposed(&values, rows, width),
            Layout::Interleaved => uninterleaved(&values, location.heads, width),
        })
    }

    fn read_parts(&self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), ModelError> {
        let location = self.location(name)?;
        if location.layout == Layout::Plain {
            return self.read_plain(location, each);
        }
        each(&self.read(name)?);
        Ok(())
    }
}

/// Heads of a projection of queries or keys.
fn heads(model: &Architecture, name: &str) -> usize {
    match model {
        Architecture::Llama(config) if name.contains(".k_proj.") => config.kv_heads,
        Architecture::Llama(config) => config.heads,
        Architecture::Gpt2(config) => config.n_head,
    }
}

/// What the file lacks of `wanted`, has in another shape, or has beyond it.
fn problems(file: &Container<'_>, architecture: GgufArchitecture, wanted: &TensorList) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for (name, shape) in wanted {
        let Some(gguf) = gguf_name(architecture, name) else {
            problems.push(format!("  {name} has no name in a GGUF file"));
            continue;
        };
        let mut shape: Cow<'_, [usize]> = shape.into();
        if layout(architecture, name) == Layout::Transposed {
            shape.to_mut().reverse();
        }
        match file.tensors.get(gguf.as_str()).map(|tensor| &tensor.shape) {
            None => problems.push(format!("  missing: {gguf} {shape:?}")),
            Some(other) if **other != *shape => {
                problems.push(format!("  misshapen: {gguf} is {other:?}, the metadata want {shape:?}"));
            }
            Some(_) => {}
        }
        known.insert(gguf);
    }
    for (name, tensor) in &file.tensors {
        if !is_ignorable(name) && !known.contains(*name) {
            problems.push(format!("  unexpected: {name} {:?}", tensor.shape));
        }
    }
    problems
}

fn report(mut problems: Vec<String>) -> String {
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    problems.truncate(MOST_PROBLEMS);
    if more > 0 {
        problems.push(format!("  and {more} more"));
    }
    format!("the tensors do not fit the metadata:\n{}", problems.join("\n"))
}

/// The only GGUF file in `folder`, if weights in another format are not there.
///
/// # Errors
/// The folder cannot be read, or holds several GGUF files.
pub fn only_file(folder: &Path) -> Result<Option<PathBuf>, ModelError> {
    if ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).exists()) {
        return Ok(None);
    }
    let read = |source| ModelError::Read { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if has_extension(&path) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.len() > 1 {
        let names: Vec<_> = files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        let reason = format!("it holds {} GGUF files ({}); give the path of one", files.len(), names.join(", "));
        return Err(ModelError::UnknownModel { name: folder.display().to_string(), reason });
    }
    Ok(files.pop())
}

/// Whether a path's name ends in `.gguf`.
pub fn has_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}
