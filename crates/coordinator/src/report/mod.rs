//! What people and tools learn of a run: console, `metrics.jsonl`, `numalign status`, and the failures so far.

pub mod console;
pub mod failures;
mod lines;
pub mod losses;
pub mod metrics;
pub mod record;
pub mod status;
pub mod untold;
