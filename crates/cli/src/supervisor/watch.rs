//! What the launcher knows of the coordinator: asks its status over gRPC, from the launcher's one thread.

use std::net::SocketAddr;
use std::time::Duration;

use numalign_access::{Client, ClientAccess, Token};
use numalign_protocol::{StatusReply, StatusRequest};
use tokio::runtime::Runtime;

use crate::connect;
use crate::error::CliError;

/// A coordinator that does not answer in this time is busy or gone.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that is made when it is needed, and made again when it broke.
pub struct Watch {
    runtime: Runtime,
    client: Client,
}

impl Watch {
    /// For the coordinator at `address`, which need not listen yet, and wants `token`.
    pub fn new(address: SocketAddr, token: Option<Token>) -> Result<Self, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let access = ClientAccess { token, tls: None };
        let client = runtime.block_on(async { connect::lazy_client(&access, &format!("http://{address}")) })?;
        Ok(Self { runtime, client })
    }

    /// The run's status; none when the coordinator does not answer.
    pub fn status(&mut self) -> Option<StatusReply> {
        let client = &mut self.client;
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(TIMEOUT, client.status(StatusRequest {})).await });
        answer.ok()?.ok().map(tonic::Response::into_inner)
    }
}
