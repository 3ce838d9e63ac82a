//! Why access cannot be set up, or was refused.

use std::net::IpAddr;
use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is a value of its message")]
pub enum AccessError {
    /// The address of a coordinator is malformed.
    #[error("`{url}` is not a coordinator's address: {reason}")]
    Address { url: String, reason: String },
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// Strangers could reach the port.
    #[error("listening on {address} without a join token would let anybody into the run")]
    Exposed { address: IpAddr },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// A token that cannot be one.
    #[error("the join token in {origin} {reason}")]
    Token { origin: String, reason: String },
    /// A PEM file that cannot be used.
    #[error("{path}: {reason}")]
    Pem { path: PathBuf, reason: String },
    /// The other side refused this client, or is not the expected one: trying again would not help.
    #[error("{reason}")]
    Refused { reason: String, hint: String },
}

impl AccessError {
    /// True if the command line or a file it names is at fault, not the other side.
    pub fn is_usage(&self) -> bool {
        !matches!(self, AccessError::Refused { .. })
    }

    /// What the person at the keyboard can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            AccessError::Address { .. } => Some("an address looks like http://127.0.0.1:7400".to_owned()),
            AccessError::Usage(_) => None,
            AccessError::Exposed { .. } => Some(
                "set NUMALIGN_TOKEN or give --token-file FILE here and on every worker, or accept the risk with --insecure"
                    .to_owned(),
            ),
            AccessError::Read { .. } => Some("check the path and its permissions".to_owned()),
            AccessError::Token { .. } => Some("for example: head -c 32 /dev/urandom | base64 > token".to_owned()),
            AccessError::Pem { .. } => Some("`numalign cert --out DIR HOST` makes a CA and certificates".to_owned()),
            AccessError::Refused { hint, .. } => Some(hint.clone()),
        }
    }
}
