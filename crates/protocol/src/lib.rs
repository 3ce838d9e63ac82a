//! The protocol between coordinator and workers: messages and service, generated from `proto/numalign.proto`, and the one
//! home of their codecs.
//!
//! [`checked`] is how they travel: with a digest behind each message.
//!
//! The rule for conversions: [`codec`] turns bytes into plain values and back, [`convert`] turns messages into plain values
//! and back. Both know only types of this crate and of the standard library. A crate with a type of its own for a message
//! implements `From` and `TryFrom` beside that type.

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod checked;
pub mod codec;
pub mod convert;
mod damage;

/// The generated types; `proto/numalign.proto` documents them.
mod messages {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    tonic::include_proto!("numalign.v1");
}

pub use checked::take_damaged;
pub use codec::CodecError;
pub use convert::Timing;
pub use messages::*;

/// The proto, compiled: a serialised `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/numalign.bin"));

/// Raised whenever a message changes its meaning; coordinator and worker must agree.
pub const PROTOCOL: u32 = 8;
