//! Frozen language models in Burn: loading Hugging Face folders, tokenising, the forward pass, and the gradient of the
//! embeddings.
//!
//! Reading order: [`lm`] (the interface) → [`decoder`] → [`decoder::block`] → [`ops`] → [`kernels`]; [`load`] and [`arch`]
//! for how a model gets here.

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod arch;
pub mod decoder;
pub mod error;
pub mod greedy;
#[cfg(any(test, feature = "cuda"))]
mod kernel_cache;
pub mod kernels;
pub mod lm;
pub mod load;
pub mod measure;
pub mod ops;
pub mod reference;
pub mod tokenizer;

pub use error::ModelError;
pub use lm::{FrozenLm, LmInput, Piece, PooledRead, ReadPositions};
pub use load::{Description, FrozenModel, LoadOptions, load, load_with};
pub use ops::norms::{NormGradients, NormParameter};
