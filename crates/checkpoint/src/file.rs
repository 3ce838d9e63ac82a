//! The bytes of a checkpoint: a safetensors file with four projector tensors, the layer norms that train, moments,
//! the same tensors at the best evaluation if there were evaluations, and metadata.
//!
//! Nothing inside depends on the clock or on how the run was carried out, and every map is sorted, so equal runs give
//! equal bytes. `file_digest` (BLAKE3 over all tensors and all other metadata) guards the whole file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use numalign_config::{Arithmetic, Choice, LoadedProjections, Recipe, Solver, Stage};
use numalign_projector::bytes::le_bytes;
use numalign_projector::{Evaluations, InputEncoder, Layout, NormTensor, State, Sums, Trained};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::history::{self, BEST_PREFIX};
use crate::solver_state;
use crate::tensor::{Tensor, TensorMap, read_tensors};

const FORMAT: &str = "numalign-checkpoint";
const VERSION: &str = "1";

/// What the names of layer norms begin with, before the model's own name.
const NORMS_PREFIX: &str = "layer_norms.";

/// Checkpoints are tens of KB; a file beyond this is something else.
const MOST_BYTES: u64 = 256 << 20;

/// What to say of a file that [`Identity::lacks_tokenizer`].
pub const NO_TOKENIZER: &str =
    "an older build wrote it, without the tokenizer's fingerprint: whether the tokenizer is the same is not checked";

/// What a checkpoint says about where its state came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// Everything that determines the result.
    pub recipe: Recipe,
    /// Hex fingerprint of the frozen model.
    pub base_fingerprint: String,
    /// Hex fingerprint of its tokenizer. None in stage `nn`, which reads no text, and in files of builds that did not write
    /// it.
    pub tokenizer_fingerprint: Option<String>,
    /// To what the factors of the frozen model's products were rounded. Stored where they were.
    pub arithmetic: Arithmetic,
    /// The frozen model's layer norms, if they train: as many numbers as the state has of them.
    pub layer_norms: Vec<NormTensor>,
    /// Hex digest of the data file's content, if there is one.
    pub dataset_digest: Option<String>,
    /// The two parts of the run's data, if rows of it are held out.
    pub split: Option<SplitDigests>,
    /// Hex digest of the projectors the run started from (`model_path_load`), if there are some.
    pub loaded_digest: Option<String>,
}

/// The rows that a run trains on and those that it is evaluated on. Digests are hex BLAKE3 over the rows' contents in file
/// order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitDigests {
    /// Rows that are trained on.
    pub train_rows: u64,
    /// Their digest.
    pub train_digest: String,
    /// Rows that are evaluated on.
    pub held_out_rows: u64,
    /// Their digest.
    pub held_out_digest: String,
    /// They are a file of their own (`dataset.eval_file`), not a share of the training file.
    pub held_out_file: bool,
}

/// A committed state and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where the state came from.
    pub identity: Identity,
    /// The committed state.
    pub state: State,
    /// Running digest over every committed sample, in hex.
    pub sample_digest: String,
    /// What the solver's round in progress has added up; none between rounds, before a round's first chunk, and where
    /// [`Checkpoint::stores_sums`] says so.
    pub sums: Option<Sums>,
}

impl Identity {
    /// Whether texts were read and nothing says by which tokenizer: an older build wrote the file.
    pub fn lacks_tokenizer(&self) -> bool {
        self.recipe.stage != Stage::Nn && self.tokenizer_fingerprint.is_none()
    }
}

impl Checkpoint {
    /// Samples consumed so far.
    pub fn samples(&self) -> u64 {
        self.state.step() * self.identity.recipe.batch_size as u64
    }

    /// Whether the sums of a round in progress are stored; otherwise a run that goes on gathers the round again.
    pub fn stores_sums(&self) -> bool {
        solver_state::stores_sums(&self.identity.recipe, self.state.layout())
    }

    /// BLAKE3 over the projectors (and layer norms, if they train) alone, in hex: what `loaded_digest` of a later run records.
    pub fn projector_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 projectors");
        hasher.update(le_bytes(self.state.parameters()));
        hasher.finalize().to_hex().to_string()
    }

    /// What `loaded_digest` of a run records that starts from these projectors: [`Checkpoint::projector_digest`], or a
    /// digest of the part that is taken.
    pub fn loaded_digest(&self, which: LoadedProjections) -> String {
        let layout = self.state.layout();
        let (name, taken) = match which {
            LoadedProjections::Both => return self.projector_digest(),
            LoadedProjections::Input => ("input", layout.input()),
            LoadedProjections::Output => ("output", layout.output()),
        };
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 part of the projectors");
        hasher.update(name.as_bytes());
        hasher.update(le_bytes(&self.state.parameters()[taken]));
        hasher.update(le_bytes(self.state.layer_norms()));
        hasher.finalize().to_hex().to_string()
    }

    /// All metadata but `file_digest`, sorted by key.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let recipe = &self.identity.recipe;
        let mut map = BTreeMap::new();
        let mut put = |key: &str, value: String| {
            map.insert(key.to_owned(), value);
        };
        put("format", FORMAT.to_owned());
        put("format_version", VERSION.to_owned());
        put("stage", recipe.stage.to_string());
        put("step", self.state.step().to_string());
        put("samples", self.samples().to_string());
        put("sample_digest", self.sample_digest.clone());
        put("state_digest", self.state.digest().to_hex());
        put("seed", recipe.seed.to_string());
        put("hidden_size", self.state.layout().hidden().to_string());
        if !recipe.taps.is_empty() {
            put("taps", serde_json::json!(recipe.taps).to_string());
        }
        put("encoder", InputEncoder::of(recipe).describe(recipe).to_string());
        put(
            "schedule",
            serde_json::json!({
                "lr": recipe.lr, "shl": recipe.shl, "lr_step_epochs": recipe.lr_step_epochs,
                "lr_gamma": recipe.lr_gamma, "steps_per_epoch": recipe.num_batches,
            })
            .to_string(),
        );
        put("base_model", recipe.model_name.clone());
        put("base_fingerprint", self.identity.base_fingerprint.clone());
        if let Some(tokenizer) = &self.identity.tokenizer_fingerprint {
            put("tokenizer_fingerprint", tokenizer.clone());
        }
        if self.identity.arithmetic != Arithmetic::F32 {
            put("arithmetic", self.identity.arithmetic.to_string());
        }
        put("config", recipe.digest_text());
        put("dataset_digest", self.identity.dataset_digest.clone().unwrap_or_default());
        if let Some(split) = &self.identity.split {
            put("split", serde_json::json!(split).to_string());
        }
        put("loaded_digest", self.identity.loaded_digest.clone().unwrap_or_default());
        put("history", history::list_to_json(self.state.evaluations()));
        if let Some(best) = self.state.evaluations().best() {
            put("best", history::to_json(best));
        }
        if let Some(state) = self.state.solve() {
            put("solve", solver_state::to_json(recipe, state));
        }
        if !self.identity.layer_norms.is_empty() {
            let names: Vec<&str> = self.identity.layer_norms.iter().map(|tensor| tensor.name.as_str()).collect();
            put("layer_norms", serde_json::json!(names).to_string());
        }
        map
    }

    /// Tensors in file order.
    fn tensors(&self) -> Vec<Tensor> {
        let layout = self.state.layout();
        let trained = Trained::by_adam(&self.identity.recipe);
        let mut list = Vec::new();
        for tensor in stored_ranges(layout, &self.identity.layer_norms) {
            let part = tensor.range.clone();
            if trained.covers(layout, &part) {
                for (kind, values) in [("exp_avg", self.state.exp_avg()), ("exp_avg_sq", self.state.exp_avg_sq())] {
                    let name = format!("optimizer.{kind}.{}", tensor.name);
                    list.push(Tensor::of_f32(name, tensor.shape.clone(), &values[part.clone()]));
                }
            }
            if let Some(best) = self.state.evaluations().best_parameters().get(part.clone()) {
                list.push(Tensor::of_f32(format!("{BEST_PREFIX}{}", tensor.name), tensor.shape.clone(), best));
            }
            let values = &self.state.parameters()[part];
            list.push(Tensor::of_f32(tensor.name, tensor.shape, values));
        }
        if let Some(sums) = &self.sums {
            list.extend(solver_state::tensors(sums));
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// The file's bytes. The same checkpoint always gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let tensors = self.tensors();
        let mut metadata = self.metadata();
        let mut data = Vec::new();
        // serde_json's map is sorted, so the header's bytes are determined by its content.
        let mut header = serde_json::Map::new();
        for tensor in &tensors {
            let start = data.len();
            data.extend_from_slice(&tensor.bytes);
            let (dtype, shape) = (tensor.dtype_name(), &tensor.shape);
            let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
            header.insert(tensor.name.clone(), entry);
        }
        let digest = file_digest(&metadata, tensors.iter());
        metadata.insert("file_digest".to_owned(), digest);
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        while !text.len().is_multiple_of(8) {
            text.push(b' ');
        }
        let mut bytes = Vec::with_capacity(8 + text.len() + data.len());
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&text);
        bytes.extend_from_slice(&data);
        bytes
    }

    /// How the file of `bytes`, which holds this checkpoint, differs from what numalign writes; none if it does not.
    pub fn rearranged(&self, bytes: &[u8]) -> Option<&'static str> {
        let own = self.to_bytes();
        if own == bytes {
            return None;
        }
        let order = |bytes: &[u8]| SafeTensors::read_metadata(bytes).map(|(_, header)| header.offset_keys());
        Some(match (order(bytes), order(&own)) {
            (Ok(theirs), Ok(ours)) if theirs != ours => "its tensors lie in another order",
            _ => "its header is written in another way",
        })
    }

    /// Reads and verifies a file. The content decides: a file that another program saved again is read too.
    ///
    /// # Errors
    /// A file that cannot be read, is no checkpoint, is damaged, or has another format version.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        Self::from_bytes(path, &read_whole(path)?)
    }

    /// Verifies the bytes of a file; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let foreign = |reason: String| CheckpointError::Foreign { path: path.to_owned(), reason };
        let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
        if bytes.is_empty() {
            return Err(damaged("the file is empty".to_owned()));
        }
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
            return Err(foreign("it is a PyTorch file (pickle)".to_owned()));
        }
        let (_, header) = SafeTensors::read_metadata(bytes)
            .map_err(|error| damaged(format!("not a whole safetensors file ({error})")))?;
        let Some(mut metadata) =
            header.metadata().as_ref().map(|map| map.clone().into_iter().collect::<BTreeMap<_, _>>())
        else {
            return Err(foreign("it has no metadata".to_owned()));
        };
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(foreign("its metadata does not say `format: numalign-checkpoint`".to_owned()));
        }
        let found = metadata.get("format_version").cloned().unwrap_or_default();
        if found != VERSION {
            return Err(CheckpointError::Version { path: path.to_owned(), found, known: VERSION });
        }
        let parsed = SafeTensors::deserialize(bytes).map_err(|error| damaged(error.to_string()))?;
        let tensors = read_tensors(&parsed, |_| true).map_err(damaged)?;
        let stored = metadata.remove("file_digest").unwrap_or_default();
        let computed = file_digest(&metadata, tensors.values());
        if stored != computed {
            return Err(damaged(format!("its content has digest {computed:.16}, its metadata says {stored:.16}")));
        }
        let checkpoint = assemble(&metadata, &tensors).map_err(damaged)?;
        // What was read must be all that would be written: nothing unknown hides in the file. Another program that saved it
        // again may have put its parts into another order.
        let written: TensorMap = checkpoint.tensors().into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        if checkpoint.metadata() != metadata || written != tensors {
            return Err(damaged("its parts contradict each other".to_owned()));
        }
        Ok(checkpoint)
    }
}

/// The bytes of a file that is small enough to be a checkpoint.
pub(crate) fn read_whole(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
    let foreign = |reason: String| CheckpointError::Foreign { path: path.to_owned(), reason };
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        // A device or a pipe could be read without end.
        return Err(foreign("it is not a file".to_owned()));
    }
    let size = about.len();
    if size > MOST_BYTES {
        return Err(foreign(format!("{size} bytes are too many for one")));
    }
    std::fs::read(path).map_err(failed)
}

/// One tensor of the file and its range of the state.
struct StoredRange {
    name: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Projectors, then layer norms in the model's order.
fn stored_ranges(layout: Layout, norms: &[NormTensor]) -> Vec<StoredRange> {
    let mut list = Vec::new();
    for tensor in layout.tensors() {
        list.push(StoredRange { name: tensor.name.to_owned(), shape: tensor.shape, range: tensor.range });
    }
    let mut start = layout.layer_norms().start;
    for tensor in norms {
        let range = start..start + tensor.len;
        start = range.end;
        list.push(StoredRange { name: format!("{NORMS_PREFIX}{}", tensor.name), shape: vec![tensor.len], range });
    }
    list
}

fn assemble(metadata: &BTreeMap<String, String>, tensors: &TensorMap) -> Result<Checkpoint, String> {
    let text = |key: &str| metadata.get(key).cloned().ok_or_else(|| format!("{key} is missing"));
    let whole = |key: &str| -> Result<u64, String> {
        let value = text(key)?;
        value.parse().map_err(|_| format!("{key} is `{value}`"))
    };
    let recipe: Recipe =
        serde_json::from_str(&text("config")?).map_err(|error| format!("config cannot be read: {error}"))?;
    recipe.check().map_err(|error| format!("config is not valid: {error}"))?;
    let history = history::list_from_json(&text("history")?)?;
    let hidden = whole("hidden_size")? as usize;
    if tensors.get("input_projection.bias").is_none_or(|tensor| tensor.shape != [hidden]) {
        return Err(format!("input_projection.bias is missing or not [{hidden}]"));
    }
    let step = whole("step")?;
    if step > recipe.total_steps() {
        return Err(format!("step {step} is beyond the {} of its run", recipe.total_steps()));
    }
    let norms = read_layer_norms(metadata, tensors)?;
    if recipe.train_layer_norms == norms.is_empty() {
        return Err("its config and its layer norms contradict each other".to_owned());
    }
    let layout = Layout::of(&recipe, hidden, NormTensor::total_len(&norms));
    let trained = Trained::by_adam(&recipe);
    let zeros = vec![0.0f32; layout.len()];
    let mut parts = [zeros.clone(), zeros.clone(), zeros.clone(), zeros];
    for tensor in stored_ranges(layout, &norms) {
        let mut names = vec![(0, tensor.name.clone())];
        if trained.covers(layout, &tensor.range) {
            names.push((1, format!("optimizer.exp_avg.{}", tensor.name)));
            names.push((2, format!("optimizer.exp_avg_sq.{}", tensor.name)));
        }
        if !history.is_empty() {
            names.push((3, format!("{BEST_PREFIX}{}", tensor.name)));
        }
        for (part, name) in names {
            let Some(stored) = tensors.get(&name) else {
                return Err(format!("tensor {name} is missing"));
            };
            if stored.shape != tensor.shape {
                return Err(format!("tensor {name} is {:?}, not {:?}", stored.shape, tensor.shape));
            }
            let values = stored.f32s().ok_or_else(|| format!("tensor {name} is not f32"))?;
            parts[part][tensor.range.clone()].copy_from_slice(&values);
        }
    }
    let [parameters, exp_avg, exp_avg_sq, best] = parts;
    let best = if history.is_empty() { Vec::new() } else { best };
    let Some(evaluations) = Evaluations::restored(history, best, layout) else {
        return Err("its history and its best projectors contradict each other".to_owned());
    };
    let solve = match recipe.solver {
        Solver::Adam => None,
        Solver::Exact | Solver::Alternate => Some(solver_state::from_json(&text("solve")?)?),
    };
    let state = State::restored(layout, step, parameters, exp_avg, exp_avg_sq).with_solve(&recipe, solve);
    let state = state.with_evaluations(evaluations);
    let sums = solver_state::sums(&recipe, &state, tensors)?;
    let optional = |key: &str| text(key).map(|value| Some(value).filter(|value| !value.is_empty()));
    Ok(Checkpoint {
        identity: Identity {
            recipe,
            base_fingerprint: text("base_fingerprint")?,
            tokenizer_fingerprint: metadata.get("tokenizer_fingerprint").cloned(),
            arithmetic: read_arithmetic(metadata)?,
            layer_norms: norms,
            dataset_digest: optional("dataset_digest")?,
            split: read_split(metadata)?,
            loaded_digest: optional("loaded_digest")?,
        },
        state,
        sample_digest: text("sample_digest")?,
        sums,
    })
}

fn read_split(metadata: &BTreeMap<String, String>) -> Result<Option<SplitDigests>, String> {
    let split = metadata.get("split").map(|text| serde_json::from_str(text));
    split.transpose().map_err(|error| format!("split cannot be read: {error}"))
}

/// Exact where nothing is said; a file that says so explicitly is none of ours.
fn read_arithmetic(metadata: &BTreeMap<String, String>) -> Result<Arithmetic, String> {
    let Some(name) = metadata.get("arithmetic") else {
        return Ok(Arithmetic::F32);
    };
    let known = Arithmetic::ALL.iter().find(|known| known.name() == name);
    known.copied().ok_or_else(|| format!("its arithmetic `{name}` is not known"))
}

/// Names from the metadata, sizes from the tensors.
fn read_layer_norms(metadata: &BTreeMap<String, String>, tensors: &TensorMap) -> Result<Vec<NormTensor>, String> {
    let Some(text) = metadata.get("layer_norms") else {
        return Ok(Vec::new());
    };
    let names: Vec<String> =
        serde_json::from_str(text).map_err(|error| format!("layer_norms cannot be read: {error}"))?;
    let mut norms = Vec::with_capacity(names.len());
    for name in names {
        let Some(stored) = tensors.get(&format!("{NORMS_PREFIX}{name}")) else {
            return Err(format!("tensor {NORMS_PREFIX}{name} is missing"));
        };
        norms.push(NormTensor { name, len: stored.bytes.len() / 4 });
    }
    Ok(norms)
}

/// BLAKE3 over metadata (without `file_digest`) and tensors, each length-prefixed, in name order.
fn file_digest<'a>(metadata: &BTreeMap<String, String>, tensors: impl Iterator<Item = &'a Tensor>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 checkpoint file");
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (key, value) in metadata {
        field(key.as_bytes());
        field(value.as_bytes());
    }
    for tensor in tensors {
        field(tensor.name.as_bytes());
        let shape: Vec<u8> = tensor.shape.iter().flat_map(|n| (*n as u64).to_le_bytes()).collect();
        field(&shape);
        field(&tensor.bytes);
    }
    hasher.finalize().to_hex().to_string()
}
