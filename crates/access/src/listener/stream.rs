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

use super::table::{ConnectionId, Shared};

/// An entry in the connection table; dropping it removes the entry.
pub(super) struct ConnectionPermit {
    pub(super) id: ConnectionId,
    pub(super) address: SocketAddr,
    pub(super) shared: Arc<Shared>,
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

/// A connection that is ready for HTTP/2.
pub struct Connection {
    pub(super) stream: Stream,
}

/// Plain or encrypted.
pub(super) enum Stream {
    Plain(CancellableStream),
    Tls(Box<TlsStream<CancellableStream>>),
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
    shared: Arc<Shared>,
}

impl Peer {
    /// Marks the connection as authenticated. False if as many as allowed are open already.
    pub fn admit(&self) -> bool {
        self.shared.lock().admit(self.id, &self.shared.limits)
    }

    /// Logs that a call on this connection was refused.
    pub fn log_refusal(&self, why: &str) {
        self.shared.log.warn(&format!("refused {}: {why}", self.address));
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let (permit, encrypted) = match &self.stream {
            Stream::Plain(stream) => (&stream.permit, false),
            Stream::Tls(stream) => (&stream.get_ref().0.permit, true),
        };
        let private = encrypted || permit.shared.tls.is_none();
        Peer { id: permit.id, address: permit.address, private, shared: permit.shared.clone() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, from),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, from),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, from),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, from),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
