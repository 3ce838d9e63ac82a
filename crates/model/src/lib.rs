//! Frozen language models in Burn: loading Hugging Face folders, tokenising, the forward pass, and the
//! gradient of the embeddings. Used by the worker and by the command line; the coordinator never imports it.
//!
//! Reading order: [`lm`] (the interface) → [`gpt2`] → [`ops`] → [`kernels`]; [`load`] for how a model gets here.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod architecture;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod gpt2;
pub mod hub;
pub mod kernels;
pub mod lm;
pub mod load;
pub mod locate;
pub mod ops;
pub mod sequences;
pub mod synthetic;
pub mod tokenizer;
pub mod weights;

pub use error::ModelError;
pub use lm::{FrozenLm, LmInput, Piece};
pub use load::{Description, FrozenModel, load};
