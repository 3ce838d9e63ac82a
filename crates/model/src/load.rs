//! Loads the model that `model_name` names onto a device. Called by the worker and the command line.

use std::path::{Path, PathBuf};

use burn_flex::{Flex, FlexDevice};
use numalign_config::{DeviceChoice, Dtype};

use crate::architecture::{Architecture, Gpt2Config};
use crate::decoder::Decoder;
use crate::error::ModelError;
use crate::gguf::{self, GgufModel};
use crate::lm::FrozenLm;
use crate::loading::Holding;
use crate::locate::ModelName;
use crate::ops::FrozenOps;
use crate::placement::{self, Placement};
use crate::synthetic::Synthetic;
use crate::tokenizer::Tokenizer;
use crate::weights::{Safetensors, TensorSource, read_text};
use crate::{budget, gpt2, hub, llama};

const DEMO_CONFIG: &str = include_str!("../assets/demo-gpt2/config.json");
const DEMO_TOKENIZER: &[u8] = include_bytes!("../assets/demo-gpt2/tokenizer.json");
const DEMO_WEIGHTS: &[u8] = include_bytes!("../assets/demo-gpt2/model.safetensors");

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
    /// The device in words, such as `cpu (avx512, 2 threads)`.
    pub device: String,
}

/// Where a model's weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Cpu,
    /// On GPUs from `first` on, numbered among the visible ones.
    Cuda {
        first: usize,
    },
}

/// A frozen model, ready for use.
pub struct FrozenModel {
    pub lm: Box<dyn FrozenLm>,
    pub place: Place,
    pub description: Description,
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    pub device: DeviceChoice,
    /// Devices over which the blocks are spread, from `device` on.
    pub devices: usize,
    /// False where no gradient will be asked for, which halves the memory on the CPU.
    pub backward: bool,
    pub dtype: Dtype,
    /// Positions of the largest pass that will be asked for; the estimate of memory counts its activations.
    pub positions: usize,
}

impl LoadOptions {
    /// Weights in `f32` on one device, for short texts.
    pub fn new(device: DeviceChoice, backward: bool) -> Self {
        Self { device, devices: 1, backward, dtype: Dtype::F32, positions: 64 }
    }
}

/// Loads `name` onto `device`. With `backward` false no gradient can be asked for and the memory is halved.
pub fn load(name: &str, device: DeviceChoice, backward: bool) -> Result<FrozenModel, ModelError> {
    load_with(name, LoadOptions::new(device, backward))
}

/// Loads `name`; refuses a model that does not fit into free memory before any weight is read.
pub fn load_with(name: &str, options: LoadOptions) -> Result<FrozenModel, ModelError> {
    let parsed = ModelName::parse(name)?;
    let devices = Devices::resolve(options.device, options.devices)?;
    let weights = match parsed {
        ModelName::Synthetic { .. } => "random",
        _ => "trained",
    };
    let parts = parts(&parsed)?;
    let holding = Holding { backward: options.backward, dtype: options.dtype };
    let layers = parts.architecture.layers();
    for free in devices.free_memory()? {
        let share = parts.architecture.footprint().share(devices.sharing());
        budget::check(name, &share, holding, options.positions, &free)?;
    }
    let mut device = devices.describe(layers);
    if options.dtype != Dtype::F32 {
        device.push_str(&format!(", weights in {}", options.dtype));
    }
    let lm = place(parts, &devices, holding)?;
    devices.announce(&device);
    let place = devices.place();
    Ok(FrozenModel { lm, place, description: Description { name: name.to_owned(), weights, device } })
}

/// The device that a worker takes: the local rank chooses among the visible GPUs, `per_worker` to each. `cuda` never
/// becomes the CPU; `auto` says why it does, and shares GPUs where there are more workers.
pub fn choose_device(choice: DeviceChoice, local_rank: Option<usize>, per_worker: usize) -> DeviceChoice {
    let rank = local_rank.unwrap_or(0);
    match choice {
        DeviceChoice::Cpu | DeviceChoice::Cuda(Some(_)) => choice,
        DeviceChoice::Cuda(None) => {
            DeviceChoice::Cuda(Some(first_gpu(rank, per_worker, numalign_gpu::driver::visible_gpus())))
        }
        DeviceChoice::Auto => Devices::auto(rank, per_worker),
    }
}

/// The first GPU of a local rank. A process that sees only its own (SLURM's `--gpus-per-task`) counts from 0, whatever its
/// rank; every other rank past the end stays there, for the driver to refuse.
fn first_gpu(rank: usize, per_worker: usize, visible: usize) -> usize {
    if visible == per_worker { 0 } else { rank * per_worker }
}

/// What [`load`] would load, without its weights: for checks and banners.
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
            let Some(config) = Gpt2Config::named(size) else {
                return Err(ModelError::UnknownModel { name: size.clone(), reason: "not a size".to_owned() });
            };
            let source = Synthetic::new(&config, *seed);
            let tokenizer = Tokenizer::gpt2(config.vocab_size);
            Ok(Parts { architecture: Architecture::Gpt2(config), source: Box::new(source), tokenizer })
        }
        ModelName::Folder(folder) => folder_parts(folder),
        ModelName::Gguf(file) => gguf_parts(file),
        ModelName::Hub(id) => folder_parts(&hub::folder_of(id)?),
    }
}

fn folder_parts(folder: &Path) -> Result<Parts, ModelError> {
    let path: PathBuf = folder.join("config.json");
    let architecture = Architecture::parse(&path, &read_text(&path, MOST_CONFIG)?)?;
    let source = Safetensors::open_folder(folder)?;
    source.check(&architecture.tensors(), folder)?;
    let path = folder.join("tokenizer.json");
    let tokenizer = if path.exists() {
        Tokenizer::from_json(&path, read_text(&path, MOST_TOKENIZER)?.as_bytes())?
    } else if let Architecture::Gpt2(config) = &architecture {
        Tokenizer::gpt2(config.vocab_size)
    } else {
        Tokenizer::Missing("the folder has no tokenizer.json".to_owned())
    };
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

/// Devices that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Devices {
    /// The CPU, as so many devices.
    Cpu { count: usize },
    #[cfg(feature = "cuda")]
    Cuda { first: usize, count: usize },
}

impl Devices {
    pub(crate) fn resolve(choice: DeviceChoice, count: usize) -> Result<Self, ModelError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::Cpu { count }),
            DeviceChoice::Auto => Self::resolve(Self::auto(0, count), count),
            DeviceChoice::Cuda(first) => Self::cuda(first, count),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn auto(_rank: usize, _count: usize) -> DeviceChoice {
        DeviceChoice::Cpu
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(first: Option<usize>, _count: usize) -> Result<Self, ModelError> {
        Err(ModelError::Device {
            device: first.map_or_else(|| "cuda".to_owned(), |index| format!("cuda:{index}")),
            reason: "this binary was built without CUDA (cargo build --release --features cuda)".to_owned(),
        })
    }

    #[cfg(feature = "cuda")]
    fn auto(rank: usize, count: usize) -> DeviceChoice {
        let places = numalign_gpu::driver::visible_gpus() / count.max(1);
        let first = rank % places.max(1) * count;
        match Self::cuda(Some(first), count) {
            Ok(_) => DeviceChoice::Cuda(Some(first)),
            Err(error) => {
                tracing::info!("device auto takes the CPU: {error}");
                DeviceChoice::Cpu
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(first: Option<usize>, count: usize) -> Result<Self, ModelError> {
        let find = |index: Option<usize>| {
            crate::cuda::find(index).map_err(|source| ModelError::Gpu {
                device: index.map_or_else(|| "cuda".to_owned(), |index| format!("cuda:{index}")),
                source,
            })
        };
        let first = find(first)?;
        for index in first + 1..first + count {
            find(Some(index))?;
        }
        Ok(Self::Cuda { first, count })
    }

    /// The memories that the model has to fit into; none where nothing is known.
    fn free_memory(&self) -> Result<Vec<budget::Free>, ModelError> {
        match self {
            Self::Cpu { .. } => Ok(budget::free_memory().into_iter().collect()),
            #[cfg(feature = "cuda")]
            Self::Cuda { first, count } => {
                let mut all = Vec::with_capacity(*count);
                for index in *first..first + count {
                    let source = format!("cuda:{index}");
                    let free = numalign_gpu::memory::free_bytes(index);
                    let bytes = free.map_err(|error| ModelError::Gpu { device: source.clone(), source: error })?;
                    all.push(budget::Free { bytes, source, home: budget::Home::Gpu });
                }
                Ok(all)
            }
        }
    }

    /// Memories over which the blocks are spread: the CPU's devices share one.
    fn sharing(&self) -> usize {
        match self {
            Self::Cpu { .. } => 1,
            #[cfg(feature = "cuda")]
            Self::Cuda { count, .. } => *count,
        }
    }

    /// A silent minute would look like a hang.
    fn announce(&self, _name: &str) {
        #[cfg(feature = "cuda")]
        if let Self::Cuda { .. } = self {
            tracing::info!("{_name}: kernels are compiled at their first use, which can take a minute");
        }
    }

    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Cpu { .. } => Place::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda { first, .. } => Place::Cuda { first: *first },
        }
    }

    /// In words, such as `cpu (avx512, 2 threads)`; with the stretches of blocks where there are several devices.
    fn describe(&self, layers: usize) -> String {
        let (text, count) = match self {
            Self::Cpu { count } => {
                let isa = format!("{:?}", crate::kernels::dispatch::isa()).to_lowercase();
                let threads = rayon::current_num_threads();
                let plural = if threads == 1 { "" } else { "s" };
                let times = if *count > 1 { format!("{count} × ") } else { String::new() };
                (format!("{times}cpu ({isa}, {threads} thread{plural})"), *count)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda { first, count: 1 } => (format!("cuda:{first}"), 1),
            #[cfg(feature = "cuda")]
            Self::Cuda { first, count } => (format!("cuda:{first}–{}", first + count - 1), *count),
        };
        if count == 1 {
            return text;
        }
        let stretches = placement::stretches(layers, count).into_iter();
        let blocks: Vec<String> = stretches.map(|blocks| format!("{}–{}", blocks.start + 1, blocks.end)).collect();
        format!("{text}, blocks {}", blocks.join(" | "))
    }
}

fn place(parts: Parts, devices: &Devices, holding: Holding) -> Result<Box<dyn FrozenLm>, ModelError> {
    let layers = parts.architecture.layers();
    Ok(match devices {
        Devices::Cpu { count } => {
            let placement = Placement::spread(vec![FlexDevice; *count], layers, true)?;
            Box::new(decoder::<Flex>(parts, placement, holding)?)
        }
        #[cfg(feature = "cuda")]
        Devices::Cuda { first, count } => {
            let all = (*first..first + count).map(crate::cuda::device).collect();
            let placement = Placement::spread(all, layers, false)?;
            Box::new(decoder::<crate::cuda::Cuda>(parts, placement, holding)?)
        }
    })
}

fn decoder<B: FrozenOps>(parts: Parts, placement: Placement<B>, holding: Holding) -> Result<Decoder<B>, ModelError> {
    let Parts { architecture, source, tokenizer } = parts;
    match architecture {
        Architecture::Gpt2(config) => gpt2::load(config, &*source, tokenizer, placement, holding),
        Architecture::Llama(config) => llama::load(config, &*source, tokenizer, placement, holding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_rank_has_its_own_gpus() {
        assert_eq!((0..3).map(|rank| first_gpu(rank, 1, 4)).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((first_gpu(3, 2, 8), first_gpu(1, 2, 8)), (6, 2));
        assert_eq!((first_gpu(3, 1, 1), first_gpu(5, 2, 2)), (0, 0), "it sees only its own");
        assert_eq!(first_gpu(2, 1, 2), 2, "the driver refuses it");
        assert_eq!(first_gpu(0, 1, 0), 0);
    }

    #[test]
    fn a_named_device_is_left_alone() {
        for choice in [DeviceChoice::Cpu, DeviceChoice::Cuda(Some(7))] {
            assert_eq!(choose_device(choice, Some(3), 1), choice);
        }
    }
}
