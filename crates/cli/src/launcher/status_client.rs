//! The launcher's connection to its coordinator: asks how the run is.

use std::net::SocketAddr;
use std::time::Duration;

use numalign_access::{Client, ClientAccess, Credentials, Token};
use numalign_protocol::{StatusReply, StatusRequest};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::connect;
use crate::error::CliError;

/// A coordinator that does not answer in this time is busy or gone.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that is made when it is needed, and made again when it broke.
pub struct StatusClient {
    client: Client,
    health: HealthClient<InterceptedService<Channel, Credentials>>,
}

impl StatusClient {
    /// For the coordinator at `address`, which need not listen yet, and wants `token`. Needs the context of a runtime.
    pub fn new(address: SocketAddr, token: Option<Token>) -> Result<Self, CliError> {
        let access = ClientAccess { token, tls: None };
        let url = format!("http://{address}");
        let health = HealthClient::with_interceptor(access.endpoint(&url)?.connect_lazy(), access.credentials());
        Ok(Self { client: connect::lazy_client(&access, &url)?, health })
    }

    /// Whether the coordinator answers at all: this does not wait for the run.
    pub async fn is_alive(&mut self) -> bool {
        let answer = tokio::time::timeout(TIMEOUT, self.health.check(HealthCheckRequest::default())).await;
        answer.is_ok_and(|answer| answer.is_ok())
    }

    /// The run's status; none when the coordinator does not answer.
    pub async fn status(&mut self) -> Option<StatusReply> {
        let answer = tokio::time::timeout(TIMEOUT, self.client.status(StatusRequest {})).await;
        answer.ok()?.ok().map(tonic::Response::into_inner)
    }
}
