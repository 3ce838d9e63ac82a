//! A port of a run, the coordinator's or that of its page: accepts connections, does the TLS handshakes, and bounds the connections that have not
//! authenticated yet.
//!
//! A connection is *unknown* until a call on it is authorised. Unknown ones are few and short-lived: when the table is
//! full the oldest is dropped, so thousands of silent connections keep nobody out who speaks at once. A dropped
//! connection costs nothing more: its descriptor and everything the HTTP library holds for it go with it.

mod guesses;
mod limits;
mod negotiate;
mod stream;
mod table;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::tls::ServerTls;
use negotiate::{Speaks, negotiate};
use stream::{CancellableStream, ConnectionPermit};
use table::Shared;

pub use guesses::Guesses;
pub use limits::ListenerLimits;
pub use stream::{Connection, Peer};
pub use table::ConnectionId;

/// Cancelled connections that may still be open when the next one is accepted.
const MAX_LINGERING: usize = 16;

/// A port of a run.
pub struct Listener {
    shared: Arc<Shared>,
}

impl Listener {
    /// A listener with these limits; with `tls` it does the handshakes.
    pub fn new(limits: ListenerLimits, tls: Option<ServerTls>) -> Self {
        Self { shared: Arc::new(Shared::new(limits, tls, Speaks::Grpc)) }
    }

    /// The same for a port that speaks HTTP/1.1.
    pub fn for_http1(limits: ListenerLimits, tls: Option<ServerTls>) -> Self {
        Self { shared: Arc::new(Shared::new(limits, tls.map(|tls| tls.for_http1()), Speaks::Http1)) }
    }

    /// The connections that come in from now on; they end with the stream.
    pub fn incoming(&self, socket: TcpListener) -> ReceiverStream<io::Result<Connection>> {
        let (ready, connections) = mpsc::channel(16);
        tokio::spawn(accept(self.shared.clone(), socket, ready));
        ReceiverStream::new(connections)
    }
}

/// Waits until the sockets of cancelled connections are closed but for a few, so that their number is bounded too: a
/// cancelled connection's task has to run once for that.
async fn wait_until_closed(shared: &Shared) {
    for _ in 0..100 {
        if shared.lock().lingering() <= MAX_LINGERING {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn register(shared: &Arc<Shared>, tcp: TcpStream, address: SocketAddr) -> CancellableStream {
    // Small messages must not wait for each other; a socket that cannot do it works all the same.
    let _ = tcp.set_nodelay(true);
    let (id, cancel) = shared.lock().insert(Instant::now(), &shared.limits);
    CancellableStream { tcp, cancel: Some(cancel), permit: ConnectionPermit { id, address, shared: shared.clone() } }
}

/// Accepts until nobody takes the connections any more.
async fn accept(shared: Arc<Shared>, socket: TcpListener, ready: mpsc::Sender<io::Result<Connection>>) {
    let mut tick = tokio::time::interval((shared.limits.first_call / 20).max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((tcp, address)) => {
                    let connection = register(&shared, tcp, address);
                    tokio::spawn(negotiate(shared.clone(), connection, ready.clone()));
                    wait_until_closed(&shared).await;
                }
                Err(error) => {
                    // Out of descriptors, mostly: drop the connection that has been silent longest.
                    shared.log.warn(&format!("cannot accept a connection: {error}"));
                    shared.lock().drop_oldest();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            _ = tick.tick() => {
                let dropped = shared.lock().drop_overdue(Instant::now(), &shared.limits);
                if dropped > 0 {
                    let seconds = shared.limits.first_call.as_secs_f64();
                    shared.log.warn(&format!("dropped {dropped} connections that made no call within {seconds} s"));
                }
            }
            () = ready.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream as Client;
    use tokio_stream::StreamExt;
    use tonic::transport::server::Connected;

    use super::*;

    const FEW: ListenerLimits =
        ListenerLimits { unknown: 3, known: 2, health_checks: 1, first_call: Duration::from_secs(10) };

    async fn listening(limits: ListenerLimits) -> (Listener, ReceiverStream<io::Result<Connection>>, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::new(limits, None);
        let incoming = listener.incoming(socket);
        (listener, incoming, address)
    }

    fn counts(listener: &Listener) -> (usize, usize) {
        let table = listener.shared.lock();
        (table.unknown.len(), table.known.len())
    }

    /// True when the other side ended it, within ten seconds.
    async fn ends(client: &mut Client) -> bool {
        let mut bytes = [0; 64];
        let read = async { while client.read(&mut bytes).await.is_ok_and(|count| count > 0) {} };
        tokio::time::timeout(Duration::from_secs(10), read).await.is_ok()
    }

    #[tokio::test]
    async fn silent_connections_are_dropped_and_one_that_speaks_comes_through() {
        let limits = ListenerLimits { unknown: 4, known: 2, health_checks: 1, first_call: Duration::from_secs(2) };
        let (listener, mut incoming, address) = listening(limits).await;
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(Client::connect(address).await.unwrap());
        }
        let mut speaker = Client::connect(address).await.unwrap();
        speaker.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut through = incoming.next().await.unwrap().unwrap();
        let peer = through.connect_info();
        assert!(peer.private && peer.admit());
        for client in &mut silent {
            assert!(ends(client).await, "a silent connection is still open");
        }
        // The known one outlives the limit on unknown ones.
        let mut bytes = [0; 24];
        through.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_eq!(counts(&listener), (0, 1));
        drop(through);
        assert_eq!(counts(&listener), (0, 0), "a closed connection gives its permit back");
    }

    #[tokio::test]
    async fn an_unknown_connection_is_cut_while_it_is_read() {
        let limits = ListenerLimits { first_call: Duration::from_millis(200), ..FEW };
        let (_listener, mut incoming, address) = listening(limits).await;
        let mut client = Client::connect(address).await.unwrap();
        client.write_all(b"PRI").await.unwrap();
        let mut connection = incoming.next().await.unwrap().unwrap();
        let mut bytes = Vec::new();
        let error = connection.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!((bytes.as_slice(), error.kind()), (&b"PRI"[..], io::ErrorKind::ConnectionAborted));
        assert!(connection.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn a_health_check_outlives_the_limit_on_unknown_connections() {
        let limits = ListenerLimits { first_call: Duration::from_millis(200), ..FEW };
        let (_listener, mut incoming, address) = listening(limits).await;
        let mut client = Client::connect(address).await.unwrap();
        client.write_all(b"PRI").await.unwrap();
        let mut connection = incoming.next().await.unwrap().unwrap();
        connection.connect_info().keep_health_check();
        let mut bytes = Vec::new();
        let read = connection.read_to_end(&mut bytes);
        assert!(tokio::time::timeout(Duration::from_secs(1), read).await.is_err(), "it is still open");
    }

    #[tokio::test]
    async fn what_is_not_grpc_does_not_come_through() {
        let (_listener, mut incoming, address) = listening(FEW).await;
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"\0"] {
            let mut client = Client::connect(address).await.unwrap();
            client.write_all(bytes).await.unwrap();
            assert!(ends(&mut client).await, "{bytes:?}");
        }
        let through = tokio::time::timeout(Duration::from_millis(50), incoming.next()).await;
        assert!(through.is_err(), "nothing came through");
    }
}
