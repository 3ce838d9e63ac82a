//! The trainable state as plain `f32` on the host: layout, encoders, losses, canonical reduction, Adam, schedule, digest,
//! and the least-squares solution of the output projector.
//!
//! No tensor library: the state is `3d+1` floats (more with `fourier` and trained layer norms), and every operation on it
//! is a plain loop in a fixed order, so equal inputs give equal bytes on every machine.
//!
//! Reading order: [`layout`] (where each number lies) → [`state`] → [`reduction`] (rows to one sum) → [`adam`] and
//! [`schedule`] (the update) → [`solver`].

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod adam;
pub mod bytes;
pub mod encoding;
pub mod evaluations;
pub mod gradients;
pub mod layout;
pub mod linear;
pub mod loss;
pub mod reduction;
pub mod schedule;
pub mod solver;
pub mod state;
pub mod trained;

pub use bytes::digest_of;
pub use encoding::{Encoding, InputEncoder};
pub use evaluations::{ErrorSums, Evaluation, Evaluations};
pub use gradients::{MicroBatchGradients, canonical_sum};
pub use layout::{Layout, NormTensor, TensorSpec};
pub use loss::LossFunction;
pub use reduction::{RowError, Rows};
pub use solver::features::{Features, FeaturesError};
pub use solver::gram::Gram;
pub use solver::least_squares::{Fit, FitError, Sums};
pub use solver::probe;
pub use solver::progress::{Round, SolveState, Solved};
pub use state::{State, StateDigest, StateError};
pub use trained::Trained;
