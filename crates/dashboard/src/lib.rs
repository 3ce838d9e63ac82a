//! A page to watch a run: HTTP, Prometheus, TensorBoard.

#![warn(missing_docs)]
#![warn(clippy::missing_errors_doc)]
