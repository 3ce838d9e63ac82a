//! Threads beside the driver: whatever takes long never holds back a heartbeat.

pub mod checkpoint_writer;
mod memory;
pub mod probe;
pub mod probe_needs;
pub mod sample_check;
pub mod solver;
