//! The output projector as the solution of a least-squares problem: what a round gathers ([`features`]), adds up ([`gram`],
//! in about 106 bits by [`double_double`]) and solves ([`least_squares`], with a ridge that is chosen by samples held out or by
//! cross-validation), how far a run is with it ([`progress`]), and which of several places it should read ([`probe`]).

mod centred;
mod cholesky;
pub mod double_double;
pub mod features;
mod folds;
pub mod gram;
mod lanes;
pub mod least_squares;
pub mod probe;
pub mod progress;
mod ridge;
