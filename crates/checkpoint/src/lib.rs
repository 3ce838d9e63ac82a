//! One consolidated safetensors file per checkpoint: projectors, optimizer, and everything that says what they are.
//!
//! Files are small (tens of KB; in the middle of a solver's round some MB),
//! so they are handled whole in memory.

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod audited;
mod bare;
pub mod error;
pub mod file;
pub mod folder;
mod history;
pub mod rollback;
mod solver_state;
mod temporary;
mod tensor;

pub use audited::{Audited, AuditedMachine};
pub use bare::BareProjectors;
pub use error::CheckpointError;
pub use file::{Checkpoint, Identity, NO_TOKENIZER, SplitDigests};
pub use folder::{CONFIGURATION, RunFolder, open_regular, write_atomically, write_private};
pub use rollback::is_void;
pub use temporary::remove_abandoned;
