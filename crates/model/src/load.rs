//! Loads the model that `model_name` names onto a device. Called by the worker and the command line.

use std::path::{Path, PathBuf};

use burn_flex::{Flex, FlexDevice};
use numalign_config::DeviceChoice;

use crate::architecture::Gpt2Config;
use crate::error::ModelError;
use crate::gpt2;
use crate::hub;
use crate::lm::FrozenLm;
use crate::locate::ModelName;
use crate::synthetic::Synthetic;
use crate::tokenizer::Tokenizer;
use crate::weights::{Safetensors, TensorSource, read_text};

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

/// A frozen model, ready for use.
pub struct FrozenModel {
    pub lm: Box<dyn FrozenLm>,
    pub description: Description,
}

/// Loads `name` onto `device`. With `backward` false no gradient can be asked for and the memory is halved.
pub fn load(name: &str, device: DeviceChoice, backward: bool) -> Result<FrozenModel, ModelError> {
    let parsed = ModelName::parse(name)?;
    let device = resolve_device(device)?;
    let weights = match parsed {
        ModelName::Synthetic { .. } => "random",
        _ => "trained",
    };
    let parts = parts(&parsed)?;
    let lm = place(parts, &device, backward)?;
    Ok(FrozenModel { lm, description: Description { name: name.to_owned(), weights, device: device.to_string() } })
}

/// What [`load`] would load, without its weights: for checks and banners.
pub fn configuration(name: &str) -> Result<Gpt2Config, ModelError> {
    Ok(parts(&ModelName::parse(name)?)?.config)
}

struct Parts {
    config: Gpt2Config,
    source: Box<dyn TensorSource>,
    tokenizer: Tokenizer,
}

fn parts(name: &ModelName) -> Result<Parts, ModelError> {
    match name {
        ModelName::Demo => {
            let path = Path::new("embedded demo model");
            let config = Gpt2Config::parse(path, DEMO_CONFIG)?;
            let source = Safetensors::embedded("embedded demo model", DEMO_WEIGHTS)?;
            source.check(&config, path)?;
            let tokenizer = Tokenizer::from_json(path, DEMO_TOKENIZER)?;
            Ok(Parts { config, source: Box::new(source), tokenizer })
        }
        ModelName::Synthetic { size, seed } => {
            let Some(config) = Gpt2Config::named(size) else {
                return Err(ModelError::UnknownModel { name: size.clone(), reason: "not a size".to_owned() });
            };
            let source = Synthetic::new(&config, *seed);
            let tokenizer = Tokenizer::gpt2(config.vocab_size);
            Ok(Parts { config, source: Box::new(source), tokenizer })
        }
        ModelName::Folder(folder) => folder_parts(folder),
        ModelName::Hub(id) => folder_parts(&hub::folder_of(id)?),
    }
}

fn folder_parts(folder: &Path) -> Result<Parts, ModelError> {
    let path: PathBuf = folder.join("config.json");
    let config = Gpt2Config::parse(&path, &read_text(&path, MOST_CONFIG)?)?;
    let source = Safetensors::open_folder(folder)?;
    source.check(&config, folder)?;
    let path = folder.join("tokenizer.json");
    let tokenizer = if path.exists() {
        Tokenizer::from_json(&path, read_text(&path, MOST_TOKENIZER)?.as_bytes())?
    } else {
        Tokenizer::gpt2(config.vocab_size)
    };
    Ok(Parts { config, source: Box::new(source), tokenizer })
}

/// A device that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Device {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => {
                let isa = format!("{:?}", crate::kernels::dispatch::isa()).to_lowercase();
                let threads = rayon::current_num_threads();
                write!(f, "cpu ({isa}, {threads} thread{})", if threads == 1 { "" } else { "s" })
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

fn resolve_device(choice: DeviceChoice) -> Result<Device, ModelError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(auto_device()),
        DeviceChoice::Cuda(index) => cuda_device(index),
    }
}

#[cfg(not(feature = "cuda"))]
fn auto_device() -> Device {
    Device::Cpu
}

#[cfg(not(feature = "cuda"))]
fn cuda_device(index: Option<usize>) -> Result<Device, ModelError> {
    Err(ModelError::Device {
        device: index.map_or_else(|| "cuda".to_owned(), |index| format!("cuda:{index}")),
        reason: "this binary was built without CUDA (cargo build --release --features cuda)".to_owned(),
    })
}

#[cfg(feature = "cuda")]
fn auto_device() -> Device {
    match crate::cuda::find(None) {
        Ok(index) => Device::Cuda(index),
        Err(_) => Device::Cpu,
    }
}

#[cfg(feature = "cuda")]
fn cuda_device(index: Option<usize>) -> Result<Device, ModelError> {
    crate::cuda::find(index).map(Device::Cuda).map_err(|reason| ModelError::Device {
        device: index.map_or_else(|| "cuda".to_owned(), |index| format!("cuda:{index}")),
        reason,
    })
}

fn place(parts: Parts, device: &Device, backward: bool) -> Result<Box<dyn FrozenLm>, ModelError> {
    let Parts { config, source, tokenizer } = parts;
    Ok(match device {
        Device::Cpu => Box::new(gpt2::load::<Flex>(config, &*source, tokenizer, FlexDevice, backward)?),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => Box::new(gpt2::load::<crate::cuda::Cuda>(
            config,
            &*source,
            tokenizer,
            crate::cuda::device(*index),
            backward,
        )?),
    })
}
