//! The streams that a [`Listener`](super::Listener) hands to the HTTP/2 server: sockets that it can cancel at any time,
//! plain or behind TLS, and what a call learns about its connection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::guesses::Guesses;
use super::table::{ConnectionId, Shared};

/// An entry in the connection table; dropping it removes the entry.
pub(super) struct ConnectionPermit {
    pub(super) id: ConnectionId,
    pub(super) address: SocketAddr,
    pub(super) shared: Arc<Shared>,
}

impl ConnectionPermit {
    fn peer(&self, encrypted: bool) -> Peer {
        let private = encrypted || self.shared.tls.is_none();
        Peer { id: self.id, address: self.address, private, guesses: Arc::default(), shared: self.shared.clone() }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.shared.lock().remove(self.id);
    }
}

/// A socket that fails every read and write once the listener cancelled it.
pub(super) struct CancellableStream {
    pub(super) tcp: TcpStream,
    /// `None` once cancelled.
    pub(super) cancel: Option<oneshot::Receiver<()>>,
    pub(super) permit: ConnectionPermit,
}

impl CancellableStream {
    /// The first byte, left in the socket; `None` if the peer closed the connection.
    pub(super) async fn peek(&mut self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let Some(cancel) = &mut self.cancel else {
            return Err(cancelled());
        };
        tokio::select! {
            peeked = self.tcp.peek(&mut first) => Ok((peeked? > 0).then_some(first[0])),
            _ = cancel => {
                self.cancel = None;
                Err(cancelled())
            }
        }
    }

    /// Fails once the connection was cancelled; before that, the task is woken when it is.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(cancel) = &mut self.cancel {
            match Pin::new(cancel).poll(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(_) => self.cancel = None,
            }
        }
        Err(cancelled())
    }
}

fn cancelled() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "dropped by the listener")
}

impl AsyncRead for CancellableStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_read(context, into)
    }
}

impl AsyncWrite for CancellableStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// A connection that is ready for HTTP/2, plain or encrypted.
pub struct Connection {
    stream: Pin<Box<dyn Stream>>,
    peer: Peer,
}

/// What HTTP/2 needs of a stream.
trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

impl Connection {
    /// Without encryption.
    pub(super) fn plain(stream: CancellableStream) -> Self {
        let peer = stream.permit.peer(false);
        Self { stream: Box::pin(stream), peer }
    }

    /// What every call on it knows about it.
    pub fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// After a TLS handshake.
    pub(super) fn encrypted(stream: TlsStream<CancellableStream>) -> Self {
        let peer = stream.get_ref().0.permit.peer(true);
        Self { stream: Box::pin(stream), peer }
    }
}

/// What every call knows about its connection.
#[derive(Clone)]
pub struct Peer {
    /// Number of the connection.
    pub id: ConnectionId,
    /// Address of the other side.
    pub address: SocketAddr,
    /// The connection is encrypted, or this coordinator does not demand that.
    pub private: bool,
    /// Wrong tokens on this connection.
    pub guesses: Arc<Guesses>,
    shared: Arc<Shared>,
}

impl Peer {
    /// Marks the connection as authenticated. False if as many as allowed are open already.
    pub fn admit(&self) -> bool {
        self.shared.lock().admit(self.id, &self.shared.limits)
    }

    /// Keeps an unauthenticated connection that asked for the health of the service, if there are few of its kind.
    pub fn keep_health_check(&self) {
        self.shared.lock().keep_health_check(self.id, &self.shared.limits);
    }

    /// Logs that a call on this connection was refused.
    pub fn log_refusal(&self, why: &str) {
        self.shared.log.warn(&format!("refused {}: {why}", self.address));
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}
