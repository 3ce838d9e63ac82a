//! The network side: the gRPC service, who may call it, and the messages that go out.

pub mod auth;
pub mod call;
pub mod connections;
pub mod decode;
pub mod dispatch;
pub mod guesses;
pub mod message_limits;
pub mod outbox;
mod rank_stream;
pub mod reduce;
pub mod service;
