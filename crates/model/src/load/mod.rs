//! Loads the model that `model_name` names onto a device.

use std::path::{Path, PathBuf};

use burn_flex::{Flex, FlexDevice};
use numalign_config::{Arithmetic, CpuArithmetic, DeviceChoice, Dtype};

use crate::arch::Architecture;
use crate::decoder::Decoder;
use crate::decoder::placement::Placement;
use crate::error::ModelError;
use crate::lm::{FrozenLm, PASS_POSITIONS};
use crate::ops::{FrozenOps, WeightStorage};
use crate::tokenizer::Tokenizer;

mod blocks;
pub mod budget;
mod byte_level;
mod devices;
mod folder_tokenizer;
pub mod gguf;
pub(crate) mod gpt2;
pub mod hub;
mod hub_env;
pub(crate) mod json;
pub(crate) mod llama;
mod misplaced;
pub mod name;
pub mod synthetic;
mod tensor_loader;
pub mod weights;

pub(crate) use devices::Devices;
pub use devices::{ModelDevice, choose_device, place_of};
pub use folder_tokenizer::folder_tokenizer;
use gguf::GgufModel;
use name::ModelName;
use synthetic::Synthetic;
use weights::{Safetensors, TensorSource, read_text};

const DEMO_CONFIG: &str = include_str!("../../assets/demo-gpt2/config.json");
const DEMO_TOKENIZER: &[u8] = include_bytes!("../../assets/demo-gpt2/tokenizer.json");
const DEMO_WEIGHTS: &[u8] = include_bytes!("../../assets/demo-gpt2/model.safetensors");

/// `config.json` and `tokenizer.json` beyond these sizes are refused.
const MOST_CONFIG: u64 = 1 << 20;
const MOST_TOKENIZER: u64 = 256 << 20;

/// Where a loaded model runs and whether its weights mean anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `model_name` as given.
    pub name: String,
    /// `trained` or `random`.
    pub weights: &'static str,
    /// The device, such as `cpu (avx512, 2 threads)`.
    pub device: String,
    /// To what the factors of products are rounded there.
    pub arithmetic: Arithmetic,
}

/// A frozen model, ready for use.
pub struct FrozenModel {
    /// The model.
    pub lm: Box<dyn FrozenLm>,
    /// Where it is.
    pub place: ModelDevice,
    /// For people.
    pub description: Description,
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// The device, or the first of several.
    pub device: DeviceChoice,
    /// Devices over which the blocks are spread, from `device` on.
    pub devices: usize,
    /// Whether gradients will be asked for.
    pub backward: bool,
    /// The type of weights and tables.
    pub dtype: Dtype,
    /// To what a CPU rounds the factors of products.
    pub arithmetic: CpuArithmetic,
    /// Products without rounded factors, on a GPU too.
    pub exact_f32: bool,
    /// Positions of the largest pass that will be asked for; the estimate of memory counts its activations.
    pub positions: usize,
}

impl LoadOptions {
    /// Weights in `f32` on one device, for short texts.
    pub fn new(device: DeviceChoice, backward: bool) -> Self {
        Self {
            device,
            devices: 1,
            backward,
            dtype: Dtype::F32,
            arithmetic: CpuArithmetic::F32,
            exact_f32: false,
            positions: 64,
        }
    }
}

/// Loads `name` onto `device`. With `backward` false no gradient can be asked for.
///
/// # Errors
/// As [`load_with`].
pub fn load(name: &str, device: DeviceChoice, backward: bool) -> Result<FrozenModel, ModelError> {
    load_with(name, LoadOptions::new(device, backward))
}

/// Loads `name`; refuses a model that does not fit into free memory before any weight is read.
///
/// # Errors
/// An unknown name, a device that cannot be used, too little memory, or files that cannot be read or are damaged.
pub fn load_with(name: &str, options: LoadOptions) -> Result<FrozenModel, ModelError> {
    let parsed = ModelName::parse(name)?;
    let devices = Devices::resolve(options.device, options.devices)?;
    let weights = match parsed {
        ModelName::Synthetic { .. } => "random",
        _ => "trained",
    };
    let parts = parts(&parsed)?;
    blocks::check(options.dtype, &parts.source.kinds(), devices.place())?;
    let arithmetic = devices.arithmetic(options.dtype, options.arithmetic, options.exact_f32)?;
    let storage = WeightStorage { backward: options.backward, dtype: options.dtype, arithmetic };
    let layers = parts.architecture.layers();
    let share = parts.architecture.footprint().share(devices.sharing());
    let memories = devices.free_memory()?;
    for free in &memories {
        budget::check(name, &share, storage, options.positions, free)?;
    }
    let passes = memories.iter().map(|free| budget::pass_positions(&share, storage, free));
    let pass_positions = passes.min().unwrap_or(PASS_POSITIONS);
    let mut device = devices.describe(layers);
    if options.dtype != Dtype::F32 {
        device.push_str(&format!(", weights in {}", options.dtype));
    }
    if arithmetic != Arithmetic::F32 {
        device.push_str(&format!(", products in {arithmetic}"));
        if devices.place() == ModelDevice::Cpu && !crate::kernels::bf16::has_instruction() {
            device.push_str(" without AVX512-BF16: slower than f32, with the same results");
        }
    }
    let lm = place(parts, &devices, storage, pass_positions)?;
    devices.announce(&device);
    let place = devices.place();
    Ok(FrozenModel { lm, place, description: Description { name: name.to_owned(), weights, device, arithmetic } })
}

/// What [`load`] would load, without its weights: for checks and banners.
///
/// # Errors
/// An unknown name, or files that cannot be read or are damaged.
pub fn configuration(name: &str) -> Result<Architecture, ModelError> {
    Ok(parts(&ModelName::parse(name)?)?.architecture)
}

struct Parts {
    architecture: Architecture,
    source: Box<dyn TensorSource>,
    tokenizer: Tokenizer,
}

fn parts(name: &ModelName) -> Result<Parts, ModelError> {
    match name {
        ModelName::Demo => {
            let path = Path::new("embedded demo model");
            let architecture = Architecture::parse(path, DEMO_CONFIG)?;
            let source = Safetensors::embedded("embedded demo model", DEMO_WEIGHTS)?;
            source.check(&architecture.tensors(), path)?;
            let tokenizer = Tokenizer::from_json(path, DEMO_TOKENIZER)?;
            Ok(Parts { architecture, source: Box::new(source), tokenizer })
        }
        ModelName::Synthetic { size, seed } => {
            let Some(architecture) = synthetic::architecture(size) else {
                return Err(ModelError::UnknownModel { name: size.clone(), reason: "not a size".to_owned() });
            };
            let source = Synthetic::new(&architecture, *seed);
            let tokenizer = match &architecture {
                Architecture::Gpt2(config) => Tokenizer::gpt2(config.vocab_size),
                Architecture::Llama(_) => Tokenizer::Missing("random weights in Llama's shapes have none".to_owned()),
            };
            Ok(Parts { architecture, source: Box::new(source), tokenizer })
        }
        ModelName::Folder(folder) => folder_parts(folder, None),
        ModelName::Gguf(file) => gguf_parts(file),
        ModelName::Hub(name) => folder_parts(&hub::folder_of(name)?, Some(&name.id)),
    }
}

fn folder_parts(folder: &Path, hub_id: Option<&str>) -> Result<Parts, ModelError> {
    let path: PathBuf = folder.join("config.json");
    if !path.exists()
        && let Some(other) = misplaced::adapter(folder).or_else(|| misplaced::cache_of_hub(folder))
    {
        return Err(other);
    }
    let architecture = Architecture::parse(&path, &read_text(&path, MOST_CONFIG)?)?;
    let source = Safetensors::open_folder(folder)?;
    source.check(&architecture.tensors(), folder)?;
    let tokenizer = folder_tokenizer(folder, &architecture, hub_id)?;
    Ok(Parts { architecture, source: Box::new(source), tokenizer })
}

/// A `tokenizer.json` beside the file comes before the tokenizer in it.
fn gguf_parts(file: &Path) -> Result<Parts, ModelError> {
    let path = file.with_file_name("tokenizer.json");
    let beside = match path.exists() {
        true => Some(Tokenizer::from_json(&path, read_text(&path, MOST_TOKENIZER)?.as_bytes())?),
        false => None,
    };
    let GgufModel { architecture, tensors, tokenizer } = gguf::open(file, beside)?;
    Ok(Parts { architecture, source: Box::new(tensors), tokenizer })
}

fn place(
    parts: Parts,
    devices: &Devices,
    storage: WeightStorage,
    pass_positions: usize,
) -> Result<Box<dyn FrozenLm>, ModelError> {
    let layers = parts.architecture.layers();
    Ok(match devices {
        Devices::Cpu { count } => {
            let placement = Placement::spread(vec![FlexDevice; *count], layers, true)?;
            Box::new(decoder::<Flex>(parts, placement, storage)?.passing(pass_positions))
        }
        #[cfg(feature = "cuda")]
        Devices::Cuda { first, count } => {
            let all = (*first..first + count).map(crate::ops::cuda::device).collect();
            let placement = Placement::spread(all, layers, false)?;
            Box::new(decoder::<crate::ops::cuda::Cuda>(parts, placement, storage)?.passing(pass_positions))
        }
    })
}

fn decoder<B: FrozenOps>(
    parts: Parts,
    placement: Placement<B>,
    storage: WeightStorage,
) -> Result<Decoder<B>, ModelError> {
    let Parts { architecture, source, tokenizer } = parts;
    match architecture {
        Architecture::Gpt2(config) => gpt2::load(config, &*source, tokenizer, placement, storage),
        Architecture::Llama(config) => llama::load(config, &*source, tokenizer, placement, storage),
    }
}
