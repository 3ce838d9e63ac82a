//! What the service tells the driver.

use numalign_protocol as proto;
use tokio::sync::oneshot;

use super::outbox::Outbox;
use crate::machine::{Event, JoinRequest, MemberId};

/// What the service sends to the driver.
pub enum Call {
    /// A worker connected; the outbox sends to it.
    Connected(MemberId, JoinRequest, Outbox),
    /// Anything else that the machine decides about.
    Event(Event),
    /// A member's heartbeat.
    Heartbeat(MemberId, proto::Heartbeat),
    /// The worker's model can take the samples that it was sent, or what is wrong with the first that it cannot.
    SamplesChecked(MemberId, Result<(), (u64, String)>),
    /// A worker cannot go on because of this sample: its index, and what is wrong with it.
    SampleFailed(MemberId, u64, String),
    /// Somebody asks for the status.
    Status(oneshot::Sender<proto::StatusReply>),
}
