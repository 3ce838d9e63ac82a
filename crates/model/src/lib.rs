//! Frozen language models in Burn: loading Hugging Face folders, tokenising, the forward pass, and the
//! gradient of the embeddings. Used by the worker and by the command line; the coordinator never imports it.
//!
//! Reading order: [`lm`] (the interface) → [`decoder`] → [`block`] → [`ops`] → [`kernels`]; [`load`], [`gpt2`] and
//! [`llama`] for how a model gets here.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod architecture;
pub mod block;
pub mod budget;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decode;
pub mod decoder;
pub mod error;
pub mod gguf;
pub mod gpt2;
pub mod hub;
pub mod kernels;
pub mod llama;
pub mod lm;
pub mod load;
pub mod loading;
pub mod locate;
pub mod measure;
pub mod norms;
pub mod ops;
pub mod placement;
pub mod read;
pub mod reference;
pub mod sequences;
pub mod synthetic;
pub mod table;
pub mod tokenizer;
pub mod weights;

pub use error::ModelError;
pub use lm::{FrozenLm, LmInput, Piece};
pub use load::{Description, FrozenModel, LoadOptions, load, load_with};
pub use norms::{NormGradients, NormParameter};
pub use read::{Read, ReadAt};
