//! How the commands that only ask or simulate reach a coordinator. Used by `status`, by `launch`'s supervisor and by `worker` (the
//! address in the environment); the worker's own connection is in `numalign_worker::session`.

use std::time::Duration;

use numalign_wire::StatusRequest;
use numalign_wire::coordinator_client::CoordinatorClient;
use numalign_worker::session::{chain, endpoint};
use tonic::transport::Channel;

use crate::failure::Failure;

/// A status may name many workers and failures.
const MOST_STATUS: usize = 64 << 20;

/// A client of the coordinator at `url`.
pub async fn client(url: &str) -> Result<CoordinatorClient<Channel>, Failure> {
    let channel = endpoint(url)?.connect().await.map_err(|error| silent(url, &chain(&error)))?;
    Ok(CoordinatorClient::new(channel).max_decoding_message_size(MOST_STATUS))
}

/// A client that connects when it is first used, and again when the connection broke. Needs the runtime's context.
pub fn lazy_client(url: &str) -> Result<CoordinatorClient<Channel>, Failure> {
    Ok(CoordinatorClient::new(endpoint(url)?.connect_lazy()).max_decoding_message_size(MOST_STATUS))
}

/// What the coordinator at `url` says about its run, within `limit`.
pub async fn status(url: &str, limit: Duration) -> Result<numalign_wire::StatusReply, Failure> {
    let ask = async {
        let mut client = client(url).await?;
        let reply = client.status(StatusRequest {}).await.map_err(|status| silent(url, status.message()))?;
        Ok(reply.into_inner())
    };
    match tokio::time::timeout(limit, ask).await {
        Ok(answer) => answer,
        Err(_) => Err(silent(url, &format!("nothing came within {:.0} s", limit.as_secs_f64()))),
    }
}

fn silent(url: &str, reason: &str) -> Failure {
    Failure::new(format!("no coordinator answers at {url}: {reason}"))
        .with_hint("`numalign launch` and `numalign coordinator` print their address; give it with --coordinator")
}

/// The address that `MASTER_ADDR` and `MASTER_PORT` name, where both are set.
pub fn from_environment() -> Result<Option<String>, Failure> {
    match (std::env::var("MASTER_ADDR"), std::env::var("MASTER_PORT")) {
        (Ok(host), Ok(port)) => Ok(Some(format!("http://{host}:{port}"))),
        (Err(std::env::VarError::NotUnicode(_)), _) | (_, Err(std::env::VarError::NotUnicode(_))) => {
            Err(Failure::usage("MASTER_ADDR or MASTER_PORT is not UTF-8"))
        }
        _ => Ok(None),
    }
}
