//! Who may talk to whom: the join token, TLS from PEM files, how a client connects, and the coordinator's listener.
//!
//! Reading order: [`token`] → [`tls`] → [`client`] → [`listener`].

#![warn(missing_docs, clippy::missing_errors_doc)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod client;
pub mod error;
pub mod listener;
pub mod rate_limited_log;
pub mod tls;
pub mod token;
pub mod warnings;

use std::net::IpAddr;

pub use client::{Client, ClientAccess, Credentials};
pub use error::AccessError;
pub use listener::{Listener, ListenerLimits};
pub use tls::{ClientTls, ServerTls};
pub use token::Token;

/// What a coordinator demands of its clients. The default demands nothing.
#[derive(Debug, Clone, Default)]
pub struct ServerAccess {
    /// Every call but the health service's has to present it.
    pub token: Option<Token>,
    /// Connections must be encrypted with this.
    pub tls: Option<ServerTls>,
    /// Nobody gave the token: it is kept in the run's folder, where `status` of the same user finds it.
    pub publish_token: bool,
}

impl ServerAccess {
    /// Refuses to listen on an address that strangers can reach without a token, unless the user asked for that.
    ///
    /// # Errors
    /// [`AccessError::Exposed`].
    pub fn check_exposure(&self, listening: IpAddr, insecure: bool) -> Result<(), AccessError> {
        if listening.to_canonical().is_loopback() || self.token.is_some() || insecure {
            return Ok(());
        }
        Err(AccessError::Exposed { address: listening })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_open_without_a_token() {
        let open = ServerAccess::default();
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(open.check_exposure(address.parse().unwrap(), false).is_ok(), "{address}");
        }
        let closed =
            ServerAccess { token: Some(Token::new("secret", "a test").unwrap()), tls: None, publish_token: false };
        for address in ["0.0.0.0", "::", "10.0.0.1", "fe80::1", "::ffff:10.0.0.1"] {
            let address = address.parse().unwrap();
            let refusal = open.check_exposure(address, false).unwrap_err();
            assert!(refusal.hint().unwrap().contains("--insecure"), "{refusal}");
            assert!(refusal.hint().unwrap().contains("--token-file"), "{refusal}");
            assert!(open.check_exposure(address, true).is_ok());
            assert!(closed.check_exposure(address, false).is_ok());
        }
    }
}
