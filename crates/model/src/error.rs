//! Everything that can be wrong with a frozen model: its name, its files, or what it is asked to do.

use std::path::PathBuf;

use numalign_config::Dtype;
use numalign_gpu::GpuError;

/// Errors of this crate; each names the file, tensor or value concerned.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum ModelError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path}: unsupported model: {reason}")]
    Unsupported { path: PathBuf, reason: String },
    #[error("the weights in {path} do not fit its config.json:\n{problems}")]
    Weights { path: PathBuf, problems: String },
    #[error("{path} is {found}")]
    Misplaced {
        path: PathBuf,
        /// What lies there in the place of a model.
        found: String,
        /// What to do about it.
        advice: String,
    },
    #[error("tensor {tensor} holds {value} at index {index:?}")]
    NotFinite { tensor: String, index: Vec<usize>, value: f32 },
    #[error("unknown model `{name}`: {reason}")]
    UnknownModel { name: String, reason: String },
    #[error("cannot fetch `{name}` from the hub: {reason}")]
    Hub { name: String, reason: String },
    #[error("device `{device}` cannot be used: {reason}")]
    Device { device: String, reason: String },
    #[error("an operation failed on the device, so no later result of this process can be used: {reason}")]
    DeviceTask { reason: String },
    #[error("device `{device}` cannot be used: {source}")]
    Gpu { device: String, source: GpuError },
    #[error("dtype {dtype}: {reason}")]
    Dtype {
        dtype: Dtype,
        reason: String,
        /// The setting that would do.
        advice: String,
    },
    #[error("the model has no tokenizer: {reason}")]
    Tokenizer { reason: String },
    #[error("{positions} positions are more than the model's {most}")]
    TooLong { positions: usize, most: usize },
    #[error("token id {id} is not in the model's vocabulary of {vocabulary}")]
    UnknownToken { id: u32, vocabulary: usize },
    #[error("an input has no positions")]
    Empty,
    #[error("`{name}` needs {sizes}")]
    TooLarge {
        name: String,
        /// What is needed and what is free, in words.
        sizes: String,
        /// The setting that would fit.
        advice: String,
    },
    #[error("layer {layer} cannot be read: the model has blocks 1 to {layers}, and 0 for the embeddings")]
    NoSuchLayer { layer: usize, layers: usize },
    #[error("sequence {sequence} has no numbers whose positions could be read")]
    NothingToRead { sequence: usize },
    #[error("the norms' numbers do not fit the model: {reason}")]
    NormParameters { reason: String },
    #[error("the model's head is not its token table, and numalign loads no other head")]
    NoHead,
    #[error("embedding {row} of {rows} does not exist")]
    NoSuchEmbedding { row: usize, rows: usize },
}

impl ModelError {
    /// What the person at the keyboard can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ModelError::UnknownModel { .. } => Some(
                "model_name is `demo`, `synthetic:small|medium|large|xl|llama-7b[:seed]`, a folder with config.json and \
                 model.safetensors, a .gguf file, or a hub id such as openai-community/gpt2",
            ),
            ModelError::Hub { .. } => Some(
                "download the model on a machine with a network and set HF_HOME or HF_HUB_CACHE to its cache, or give \
                 model_name the path of a local folder; --model-name demo needs no network",
            ),
            ModelError::Weights { problems, .. } if problems.contains("lora_") => Some(
                "weights of an adapter are among them: merge them into the model with peft (merge_and_unload), and save that",
            ),
            ModelError::Weights { .. } | ModelError::Damaged { .. } => {
                Some("copy the model folder again from its source; numalign never writes to it")
            }
            ModelError::Misplaced { advice, .. } => Some(advice),
            ModelError::NotFinite { .. } => Some(
                "the weights are not a usable model: copy the folder again, or save it from a training that has not diverged",
            ),
            ModelError::Unsupported { .. } => {
                Some("numalign aligns GPT-2 and Llama-style models (model_type gpt2, llama, mistral, qwen2, qwen3)")
            }
            ModelError::Tokenizer { .. } => {
                Some("put the model's tokenizer.json, or its vocab.json and merges.txt, into its folder")
            }
            ModelError::TooLong { .. } => Some(
                "shorten the text or lower numeric_positions to what the model has positions for; with a sliding window \
                 (sliding_window in config.json) that is the window",
            ),
            ModelError::Gpu { source, .. } => Some(source.hint()),
            ModelError::Device { .. } => Some("use --device cpu, or --device auto to take what there is"),
            ModelError::DeviceTask { .. } => Some(
                "if memory ran out: see nvidia-smi for other processes, or take dtype bf16 or a smaller micro_batch_size; \
                 otherwise run numalign doctor",
            ),
            ModelError::Read { .. } => Some("check the path and its permissions"),
            ModelError::UnknownToken { .. } => Some("the tokenizer and the weights are of different models"),
            ModelError::TooLarge { advice, .. } | ModelError::Dtype { advice, .. } => Some(advice),
            ModelError::NoSuchLayer { .. } => {
                Some("layer counts blocks from 1; 0 is the embeddings, -1 the output of the final norm")
            }
            ModelError::NothingToRead { .. } => Some("mark a number in it ($$12.5&&), or read at `last` or `mean`"),
            ModelError::NormParameters { .. } => Some("the norms belong to another model than the one loaded"),
            ModelError::NoHead => Some("models with a tied head, such as GPT-2, can complete texts"),
            ModelError::Empty | ModelError::NoSuchEmbedding { .. } => None,
        }
    }
}
