//! The port: who may open a connection, for how long it may be silent, and what is served on it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use numalign_access::listener::{Connection, Listener, ListenerLimits, Peer};
use numalign_access::{ServerTls, Token};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::address::url;
use crate::board::Board;
use crate::guard::Guard;
use crate::moving::Moving;
use crate::routes::router;

/// Connections at once: without an answered request, and with one.
const LIMITS: ListenerLimits =
    ListenerLimits { unknown: 64, known: 64, health_checks: 0, first_call: Duration::from_secs(10) };
/// A connection on which nothing moves for this long is closed. Event streams move more often.
const SILENCE: Duration = Duration::from_secs(30);

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Strangers could read along.
    #[error("the page on {0} would be open to anybody who reaches it")]
    Exposed(SocketAddr),
    /// The socket is of no use.
    #[error("the page cannot be served: {0}")]
    Socket(#[from] io::Error),
}

/// What the page demands of who asks.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Asked for beyond loopback.
    pub token: Option<Token>,
    /// The page speaks TLS with this.
    pub tls: Option<ServerTls>,
    /// Names of this machine, besides `localhost` and addresses.
    pub names: Vec<String>,
    /// On loopback the token is asked for as well.
    pub token_everywhere: bool,
}

/// Serves `board` on `socket`, which does not block, until the runtime ends; answers with the URL.
///
/// # Errors
/// The socket is reachable from elsewhere and no token is there, or the socket is broken.
pub fn serve(socket: std::net::TcpListener, access: Access, board: Arc<Board>) -> Result<String, ServerError> {
    let address = socket.local_addr()?;
    let is_local = is_loopback(address.ip());
    if !is_local && access.token.is_none() {
        return Err(ServerError::Exposed(address));
    }
    let url = url(address, access.tls.is_some());
    let token = access.token.filter(|_| !is_local || access.token_everywhere);
    let guard = Guard { token, names: access.names };
    let incoming = Listener::for_http1(LIMITS, access.tls).incoming(TcpListener::from_std(socket)?);
    let service = router(board, guard).into_make_service_with_connect_info::<Caller>();
    tokio::spawn(async move { axum::serve(Incoming(incoming), service).await });
    Ok(url)
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The connections that come in.
struct Incoming(ReceiverStream<io::Result<Connection>>);

/// Who is at the other end of a connection.
#[derive(Clone)]
pub(crate) struct Caller(pub(crate) Peer);

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.address.fmt(f)
    }
}

impl axum::serve::Listener for Incoming {
    type Io = Moving<Connection>;
    type Addr = Caller;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.next().await {
                Some(Ok(connection)) => {
                    let caller = Caller(connection.peer());
                    return (Moving::new(connection, SILENCE), caller);
                }
                Some(Err(_)) => {}
                // The listener ended, with the runtime.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Connected<IncomingStream<'_, Incoming>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Incoming>) -> Self {
        stream.remote_addr().clone()
    }
}
