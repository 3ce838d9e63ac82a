//! Threads beside the driver: whatever takes long never holds back a heartbeat.

pub mod checkpoint_writer;
pub mod probe;
pub mod sample_check;
pub mod solver;
