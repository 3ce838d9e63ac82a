//! The trainable state as plain `f32` on the host: layout, encoders, losses, canonical reduction, Adam, schedule, digest,
//! and the least-squares solution of the output projector.
//!
//! Used by the coordinator (which commits states), the workers (which compute them) and the checkpoint
//! (which stores them). No tensor library: the state is `3d+1` floats (more with `fourier` and trained layer norms), and every operation on it is a plain loop
//! in a fixed order, so equal inputs give equal bytes on every machine.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod adam;
pub mod double_double;
pub mod encoding;
pub mod evaluations;
pub mod features;
pub mod gradients;
pub mod gram;
pub mod layer_norms;
pub mod layout;
pub mod least_squares;
pub mod loss;
pub mod reduction;
pub mod schedule;
pub mod solve;
pub mod state;

pub use encoding::{Encoding, InputEncoder};
pub use evaluations::{ErrorSums, Evaluation, Evaluations};
pub use features::{Features, FeaturesError};
pub use gradients::{MicroBatchGradients, canonical_sum};
pub use layer_norms::NormTensor;
pub use layout::{Layout, TensorSpec};
pub use least_squares::{Fit, FitError, Sums};
pub use loss::LossFunction;
pub use reduction::{RowError, Rows};
pub use solve::{Round, SolveState, Solved};
pub use state::{State, StateDigest, StateError, Trained};
