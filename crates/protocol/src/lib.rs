//! The protocol's messages and service, generated from `proto/numalign.proto`.
//! Spoken by the coordinator, the workers and `numalign status`.

#![allow(clippy::all)]

tonic::include_proto!("numalign.v1");

/// Raised whenever a message changes its meaning; coordinator and worker must agree.
pub const PROTOCOL: u32 = 5;
