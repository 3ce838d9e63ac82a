//! From an accepted socket to a stream that is ready for HTTP: the first byte says which protocol the client speaks,
//! then comes the TLS handshake if there is one, or a polite close.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::stream::{CancellableStream, Connection};
use super::table::Shared;
use crate::tls::ServerTls;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// gRPC over HTTP/2.
    Grpc,
    /// What browsers speak.
    Http1,
}

/// What a connection's first byte says.
#[derive(Debug, PartialEq, Eq)]
enum SniffedProtocol {
    /// A TLS handshake record.
    Tls,
    /// HTTP/2's preface `PRI * HTTP/2.0`, or the method of a request to a port that speaks HTTP/1.1.
    Http,
    Other,
}

impl SniffedProtocol {
    fn of(first: u8, speaks: Speaks) -> Self {
        match (first, speaks) {
            (0x16, _) => SniffedProtocol::Tls,
            (b'P', Speaks::Grpc) | (b'A'..=b'Z', Speaks::Http1) => SniffedProtocol::Http,
            _ => SniffedProtocol::Other,
        }
    }
}

/// Waits for the first byte, does the handshake if it begins one, and hands the connection on.
pub(super) async fn negotiate(
    shared: Arc<Shared>,
    mut connection: CancellableStream,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let address = connection.permit.address;
    let Ok(Some(first)) = connection.peek().await else {
        // It closed or was dropped before it sent anything.
        return;
    };
    let connection = match (SniffedProtocol::of(first, shared.speaks), &shared.tls) {
        (SniffedProtocol::Tls, Some(tls)) => match handshake(tls, connection).await {
            Ok(stream) => Connection::encrypted(stream),
            Err(why) => return shared.log.warn(&format!("refused {address}: {why}")),
        },
        (SniffedProtocol::Http, Some(_)) if shared.speaks == Speaks::Http1 => {
            // A browser shows this; it may have gone.
            let _ = connection.write_all(NOT_PLAIN).await;
            return close_gracefully(connection).await;
        }
        // With TLS, a plain connection serves the health service alone, as orchestrators' probes need it.
        (SniffedProtocol::Http, _) => Connection::plain(connection),
        (SniffedProtocol::Tls, None) => {
            shared.log.warn(&format!("refused {address}: it speaks TLS, this coordinator does not (--tls-cert)"));
            // Any reply that is not TLS makes the client's library report that; the client may have gone.
            let _ = connection.write_all(NOT_TLS).await;
            return close_gracefully(connection).await;
        }
        (SniffedProtocol::Other, _) => {
            let spoken = if shared.speaks == Speaks::Grpc { "gRPC" } else { "HTTP" };
            shared.log.warn(&format!("refused {address}: what it sends is not {spoken}"));
            return;
        }
    };
    // The server is stopping when nobody takes it.
    let _ = ready.send(Ok(connection)).await;
}

/// The answer to a request without TLS on a port that demands it.
const NOT_PLAIN: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 35\r\nconnection: close\
    \r\n\r\nthis port speaks TLS: use https://\n";

/// An empty HTTP/2 SETTINGS frame.
const NOT_TLS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn handshake(tls: &ServerTls, connection: CancellableStream) -> Result<TlsStream<CancellableStream>, String> {
    match TlsAcceptor::from(tls.config()).accept(connection).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, connection)) => {
            close_gracefully(connection).await;
            Err(format!("the TLS handshake failed: {error}"))
        }
    }
}

/// Keeps reading for a moment: a socket closed with unread bytes is reset, and the peer would lose our last message.
async fn close_gracefully(mut connection: CancellableStream) {
    // It may have gone.
    let _ = connection.shutdown().await;
    let drain = async {
        let mut unread = [0; 1024];
        while connection.read(&mut unread).await.is_ok_and(|count| count > 0) {}
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), drain).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_takes_what_it_speaks() {
        for (first, grpc, http1) in [
            (b'P', SniffedProtocol::Http, SniffedProtocol::Http),
            (b'G', SniffedProtocol::Other, SniffedProtocol::Http),
            (0x16, SniffedProtocol::Tls, SniffedProtocol::Tls),
            (b'\n', SniffedProtocol::Other, SniffedProtocol::Other),
        ] {
            assert_eq!(SniffedProtocol::of(first, Speaks::Grpc), grpc, "{first}");
            assert_eq!(SniffedProtocol::of(first, Speaks::Http1), http1, "{first}");
        }
    }
}
