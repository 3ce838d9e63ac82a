//! The door to the port: accepts connections, does the TLS handshakes, and bounds how many strangers may stand in it.
//! Started by [`crate::run`]; [`crate::guard`] tells it who is no stranger.
//!
//! A connection is *unknown* until a call on it is let in. Unknown ones are few and short-lived: when there is no room for
//! another, the oldest is dropped, so that thousands of silent connections keep nobody out who speaks at once. A
//! dropped connection costs nothing more: its descriptor and everything the HTTP library holds for it go with it.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use numalign_access::ServerTls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::complaints::Complaints;

/// How many connections there may be, and how long one may stay unknown.
#[derive(Debug, Clone, Copy)]
pub struct GateLimits {
    /// Connections on which no call was let in yet.
    pub unknown: usize,
    /// Connections of workers and of whoever else was let in.
    pub known: usize,
    /// A connection that is unknown for longer is dropped: handshake, preface and first call must fit in.
    pub first_call: Duration,
}

impl GateLimits {
    /// Room for every worker to knock at once and to be known twice (a lost connection lingers while its worker comes
    /// back), and for some who only ask.
    pub fn for_workers(max_workers: usize) -> Self {
        Self { unknown: 256 + max_workers, known: 2 * max_workers + 64, first_call: Duration::from_secs(10) }
    }

    /// File descriptors that all of this may need, with some for files and the runtime.
    pub fn descriptors(&self) -> u64 {
        (self.unknown + self.known) as u64 + RESERVED
    }

    /// The same within `descriptors` file descriptors, so that no number of connections keeps a checkpoint from being
    /// opened.
    pub fn within(self, descriptors: u64) -> Self {
        if self.descriptors() <= descriptors {
            return self;
        }
        let spare = descriptors.saturating_sub(RESERVED) as usize;
        let unknown = self.unknown.min(spare / 4).max(1);
        Self { unknown, known: self.known.min(spare.saturating_sub(unknown)).max(1), ..self }
    }
}

/// Descriptors for checkpoints, the log, the runtime, and connections on their way in or out.
const RESERVED: u64 = 48;

/// Cut connections that may be open still when the next one is accepted.
const MOST_LINGERING: usize = 16;

/// A connection's number, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Dropping it cuts the connection.
type Cut = oneshot::Sender<()>;

/// The connections there are; pure but for the channels it hands out.
#[derive(Default)]
struct Table {
    next: u64,
    /// In the order in which they came.
    unknown: BTreeMap<ConnectionId, (Instant, Cut)>,
    known: HashMap<ConnectionId, Cut>,
    /// Sockets that are open, those too that were cut and are about to close.
    open: usize,
}

impl Table {
    /// A new connection; the oldest unknown one goes where there is no room.
    fn enter(&mut self, now: Instant, limits: &GateLimits) -> (ConnectionId, oneshot::Receiver<()>) {
        while self.unknown.len() >= limits.unknown.max(1) {
            self.drop_oldest();
        }
        let id = ConnectionId(self.next);
        self.next += 1;
        self.open += 1;
        let (cut, receiver) = oneshot::channel();
        self.unknown.insert(id, (now, cut));
        (id, receiver)
    }

    fn drop_oldest(&mut self) {
        self.unknown.pop_first();
    }

    /// A call on it was let in. False when there is no room for another known one, or when it was dropped just now.
    fn admit(&mut self, id: ConnectionId, limits: &GateLimits) -> bool {
        if self.known.contains_key(&id) {
            return true;
        }
        if self.known.len() >= limits.known {
            return false;
        }
        let Some((_, cut)) = self.unknown.remove(&id) else {
            return false;
        };
        self.known.insert(id, cut);
        true
    }

    /// Sockets that were cut but are still open.
    fn lingering(&self) -> usize {
        self.open.saturating_sub(self.unknown.len() + self.known.len())
    }

    /// Its socket is closed.
    fn leave(&mut self, id: ConnectionId) {
        self.open = self.open.saturating_sub(1);
        self.unknown.remove(&id);
        self.known.remove(&id);
    }

    /// Drops what was unknown for too long; how many that were.
    fn drop_overdue(&mut self, now: Instant, limits: &GateLimits) -> usize {
        let before = self.unknown.len();
        while let Some(oldest) = self.unknown.first_entry() {
            if now.saturating_duration_since(oldest.get().0) < limits.first_call {
                break;
            }
            oldest.remove();
        }
        before - self.unknown.len()
    }
}

/// Shared by all connections.
pub struct Gate {
    table: Mutex<Table>,
    limits: GateLimits,
    tls: Option<ServerTls>,
    pub complaints: Complaints,
}

impl Gate {
    pub fn new(limits: GateLimits, tls: Option<ServerTls>) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), limits, tls, complaints: Complaints::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is whole; a panic elsewhere leaves it sound.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections that come in from now on; they end with the stream.
    pub fn incoming(self: &Arc<Self>, listener: TcpListener) -> ReceiverStream<io::Result<Connection>> {
        let (ready, connections) = mpsc::channel(16);
        tokio::spawn(accept(self.clone(), listener, ready));
        ReceiverStream::new(connections)
    }

    /// Waits until the sockets of cut connections are closed but for a few, so that their number is bounded too: a cut
    /// connection's task has to run once for that.
    async fn let_cut_ones_go(&self) {
        for _ in 0..100 {
            if self.lock().lingering() <= MOST_LINGERING {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn enter(self: &Arc<Self>, tcp: TcpStream, address: SocketAddr) -> Guarded {
        // Small messages must not wait for each other; a socket that cannot do it works all the same.
        let _ = tcp.set_nodelay(true);
        let (id, cut) = self.lock().enter(Instant::now(), &self.limits);
        Guarded { tcp, cut: Some(cut), place: Place { id, address, gate: self.clone() } }
    }
}

/// Accepts until nobody takes the connections any more.
async fn accept(gate: Arc<Gate>, listener: TcpListener, ready: mpsc::Sender<io::Result<Connection>>) {
    let mut tick = tokio::time::interval((gate.limits.first_call / 20).max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, address)) => {
                    let connection = gate.enter(tcp, address);
                    tokio::spawn(greet(gate.clone(), connection, ready.clone()));
                    gate.let_cut_ones_go().await;
                }
                Err(error) => {
                    // Out of descriptors, mostly: the one that waits longest without a word makes room.
                    gate.complaints.tell(&format!("cannot accept a connection: {error}"));
                    gate.lock().drop_oldest();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            _ = tick.tick() => {
                let dropped = gate.lock().drop_overdue(Instant::now(), &gate.limits);
                if dropped > 0 {
                    let seconds = gate.limits.first_call.as_secs_f64();
                    gate.complaints.tell(&format!("dropped {dropped} connections that made no call within {seconds} s"));
                }
            }
            () = ready.closed() => return,
        }
    }
}

/// What a connection's first byte says.
#[derive(Debug, PartialEq, Eq)]
enum Speech {
    /// A TLS handshake record.
    Tls,
    /// HTTP/2's preface `PRI * HTTP/2.0`.
    Http2,
    Other,
}

impl Speech {
    fn of(first: u8) -> Self {
        match first {
            0x16 => Speech::Tls,
            b'P' => Speech::Http2,
            _ => Speech::Other,
        }
    }
}

/// Waits for the first byte, does the handshake where there is one, and hands the connection on.
async fn greet(gate: Arc<Gate>, mut connection: Guarded, ready: mpsc::Sender<io::Result<Connection>>) {
    let address = connection.place.address;
    let Ok(Some(first)) = connection.peek().await else {
        // It went, or it was dropped, without a word.
        return;
    };
    let stream = match (Speech::of(first), &gate.tls) {
        (Speech::Tls, Some(tls)) => match handshake(tls, connection).await {
            Ok(stream) => Stream::Tls(Box::new(stream)),
            Err(why) => return gate.complaints.tell(&format!("refused {address}: {why}")),
        },
        // With TLS, a plain connection serves the health service alone, as orchestrators' probes need it.
        (Speech::Http2, _) => Stream::Plain(connection),
        (Speech::Tls, None) => {
            gate.complaints.tell(&format!("refused {address}: it speaks TLS, this coordinator does not (--tls-cert)"));
            // Anything that is not TLS tells the client's library so; it may have gone.
            let _ = connection.write_all(NOT_TLS).await;
            return farewell(connection).await;
        }
        (Speech::Other, _) => {
            gate.complaints.tell(&format!("refused {address}: what it sends is not gRPC"));
            return;
        }
    };
    // The server is stopping when nobody takes it.
    let _ = ready.send(Ok(Connection { stream })).await;
}

/// An empty HTTP/2 SETTINGS frame.
const NOT_TLS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn handshake(tls: &ServerTls, connection: Guarded) -> Result<TlsStream<Guarded>, String> {
    match TlsAcceptor::from(tls.config()).accept(connection).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, connection)) => {
            farewell(connection).await;
            Err(format!("the TLS handshake failed: {error}"))
        }
    }
}

/// Reads on for a moment: a socket closed with unread bytes is reset, and the other side would lose our last words.
async fn farewell(mut connection: Guarded) {
    // It may have gone.
    let _ = connection.shutdown().await;
    let drain = async {
        let mut unread = [0; 1024];
        while connection.read(&mut unread).await.is_ok_and(|count| count > 0) {}
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), drain).await;
}

/// A connection's place in the table; dropping it gives the place back.
struct Place {
    id: ConnectionId,
    address: SocketAddr,
    gate: Arc<Gate>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.lock().leave(self.id);
    }
}

/// A socket that ends when the gate cuts it.
struct Guarded {
    tcp: TcpStream,
    /// None once it was cut.
    cut: Option<oneshot::Receiver<()>>,
    place: Place,
}

impl Guarded {
    /// The first byte, left where it is; none when the other side hung up.
    async fn peek(&mut self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let Some(cut) = &mut self.cut else {
            return Err(was_cut());
        };
        tokio::select! {
            peeked = self.tcp.peek(&mut first) => Ok((peeked? > 0).then_some(first[0])),
            _ = cut => {
                self.cut = None;
                Err(was_cut())
            }
        }
    }

    /// An error once the connection was cut; else the task is woken when it is.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(cut) = &mut self.cut {
            match Pin::new(cut).poll(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(_) => self.cut = None,
            }
        }
        Err(was_cut())
    }
}

fn was_cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "dropped by the gate")
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_read(context, into)
    }
}

impl AsyncWrite for Guarded {
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
    stream: Stream,
}

enum Stream {
    Plain(Guarded),
    Tls(Box<TlsStream<Guarded>>),
}

/// Who is at the other end: what every call knows about its connection.
#[derive(Clone)]
pub struct Peer {
    pub id: ConnectionId,
    pub address: SocketAddr,
    /// It is encrypted, or this coordinator does not ask for that.
    pub private: bool,
    gate: Arc<Gate>,
}

impl Peer {
    /// Takes the connection for a known one. False when there is no room for another.
    pub fn admit(&self) -> bool {
        self.gate.lock().admit(self.id, &self.gate.limits)
    }

    /// Tells the coordinator's log that a call from here was refused.
    pub fn complain(&self, why: &str) {
        self.gate.complaints.tell(&format!("refused {}: {why}", self.address));
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let (place, encrypted) = match &self.stream {
            Stream::Plain(guarded) => (&guarded.place, false),
            Stream::Tls(stream) => (&stream.get_ref().0.place, true),
        };
        let private = encrypted || place.gate.tls.is_none();
        Peer { id: place.id, address: place.address, private, gate: place.gate.clone() }
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream as Client;
    use tokio_stream::StreamExt;

    use super::*;

    const FEW: GateLimits = GateLimits { unknown: 3, known: 2, first_call: Duration::from_secs(10) };

    #[test]
    fn the_limits_fit_into_the_descriptors_there_are() {
        let wanted = GateLimits::for_workers(64);
        assert_eq!(wanted.within(1024).unknown, wanted.unknown);
        for descriptors in [64, 100, 200, 400] {
            let limits = wanted.within(descriptors);
            assert!(limits.descriptors() <= descriptors, "{descriptors}: {limits:?}");
            assert!(limits.unknown >= 1 && limits.known > limits.unknown, "{descriptors}: {limits:?}");
        }
    }

    #[test]
    fn the_oldest_unknown_connection_makes_room() {
        let mut table = Table::default();
        let now = Instant::now();
        let mut cuts: Vec<_> = (0..5).map(|_| table.enter(now, &FEW).1).collect();
        let gone: Vec<bool> =
            cuts.iter_mut().map(|cut| cut.try_recv() == Err(oneshot::error::TryRecvError::Closed)).collect();
        assert_eq!(gone, [true, true, false, false, false]);
    }

    #[test]
    fn a_known_connection_stays_and_their_number_is_bounded() {
        let mut table = Table::default();
        let now = Instant::now();
        let (first, mut cut) = table.enter(now, &FEW);
        let (second, _second_cut) = table.enter(now, &FEW);
        let (third, _third_cut) = table.enter(now, &FEW);
        assert!(table.admit(first, &FEW) && table.admit(second, &FEW));
        assert!(table.admit(first, &FEW), "once known, always known");
        assert!(!table.admit(third, &FEW), "there is room for two");
        for _ in 0..10 {
            let _ = table.enter(now, &FEW);
        }
        table.drop_overdue(now + FEW.first_call, &FEW);
        assert!(table.unknown.is_empty());
        assert_eq!(cut.try_recv(), Err(oneshot::error::TryRecvError::Empty), "nothing touches a known one");
        table.leave(first);
        assert_eq!(cut.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let (next, _next_cut) = table.enter(now, &FEW);
        assert!(table.admit(next, &FEW), "a place that was given back is free");
    }

    #[test]
    fn only_what_is_overdue_is_dropped() {
        let mut table = Table::default();
        let now = Instant::now();
        let (_, mut old) = table.enter(now, &FEW);
        let (_, mut young) = table.enter(now + Duration::from_secs(5), &FEW);
        assert_eq!(table.drop_overdue(now + Duration::from_secs(9), &FEW), 0);
        assert_eq!(table.drop_overdue(now + Duration::from_secs(10), &FEW), 1);
        assert_eq!(old.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(young.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }

    async fn listening(limits: GateLimits) -> (Arc<Gate>, ReceiverStream<io::Result<Connection>>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Gate::new(limits, None);
        let incoming = gate.incoming(listener);
        (gate, incoming, address)
    }

    fn counts(gate: &Gate) -> (usize, usize) {
        let table = gate.lock();
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
        let limits = GateLimits { unknown: 4, known: 2, first_call: Duration::from_secs(2) };
        let (gate, mut incoming, address) = listening(limits).await;
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
        assert_eq!(counts(&gate), (0, 1));
        drop(through);
        assert_eq!(counts(&gate), (0, 0), "a closed connection gives its place back");
    }

    #[tokio::test]
    async fn an_unknown_connection_is_cut_while_it_is_read() {
        let limits = GateLimits { first_call: Duration::from_millis(200), ..FEW };
        let (_gate, mut incoming, address) = listening(limits).await;
        let mut client = Client::connect(address).await.unwrap();
        client.write_all(b"PRI").await.unwrap();
        let mut connection = incoming.next().await.unwrap().unwrap();
        let mut bytes = Vec::new();
        let error = connection.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!((bytes.as_slice(), error.kind()), (&b"PRI"[..], io::ErrorKind::ConnectionAborted));
        assert!(connection.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn what_is_not_grpc_does_not_come_through() {
        let (_gate, mut incoming, address) = listening(FEW).await;
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"\0"] {
            let mut client = Client::connect(address).await.unwrap();
            client.write_all(bytes).await.unwrap();
            assert!(ends(&mut client).await, "{bytes:?}");
        }
        let through = tokio::time::timeout(Duration::from_millis(50), incoming.next()).await;
        assert!(through.is_err(), "nothing came through");
    }
}
