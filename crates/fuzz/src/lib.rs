//! Fuzzing on stable Rust: seeds are mutated, blindly and by their structure, and given to everything that reads a file or
//! a message. A panic is the only failure; whatever is refused must be refused as an error.
//!
//! `cargo test` replays the kept seeds and runs a short campaign of each target; the binary runs long ones
//! (`cargo run -p numalign-fuzz -- --target all --executions 2000000`): the development profile is optimised, and checks for
//! overflow too. There is no coverage feedback on
//! stable: an input that is answered in words not heard before is kept and mutated further instead.
//!
//! Reading order: [`targets`] (what is fuzzed) → [`campaign`] (the loop) → [`mutate`] and [`structure`] (the mutations).

pub mod campaign;
pub mod mutate;
pub mod structure;
pub mod targets;
