//! What is fuzzed and how its inputs are changed, shared by the libFuzzer programs in `fuzz_targets/` and by the test that
//! replays the kept seeds on stable Rust. `README.md` says how to run them.

#![warn(missing_docs)]
#![warn(clippy::missing_errors_doc)]

pub mod structure;
pub mod targets;
