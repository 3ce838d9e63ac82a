//! NVIDIA's libraries as this machine has them: the driver, the run-time compiler with its headers, and where NCCL lies.
//! Everything is loaded at run time and by this crate alone, so a missing library is an error that names it, the
//! places tried and what to set. Nothing is linked, and the crate builds and runs where there is no GPU.
//!
//! cudarc, which Burn's backend loads the same libraries with, panics where
//! one is missing and never looks for `libnccl.so.2`: what is found here is loaded first, for every library of the process.
//!
//! Reading order: [`search`] (where to look) → [`library`] (load) → [`driver`] (what is asked) → [`memory`] (owned things); [`assignment`] (which
//! worker takes which GPU).

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod assignment;
pub mod driver;
pub mod error;
pub mod library;
pub mod memory;
pub mod search;
pub mod toolkit;

pub use driver::{Driver, Gpu};
pub use error::GpuError;
