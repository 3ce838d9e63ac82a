//! The coordinator's state machine: rules one by one, and properties of a simulation.

mod admission;
mod commits;
mod fixtures;
mod generations;
mod harness;
mod properties;
mod rollbacks;
mod simulation;
mod stalls;
mod suspects;
