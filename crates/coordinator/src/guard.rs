//! Who may call: checks token and encryption before a call's first byte is decoded, keeps members to the connection that
//! they joined on, and bounds the size of messages. Put around the service by [`crate::run`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use numalign_access::Token;
use numalign_access::client::HINT;
use numalign_access::token::HEADER;
use numalign_config::{CollectiveChoice, Solver};
use numalign_protocol::coordinator_server::CoordinatorServer;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use crate::gate::{ConnectionId, Peer};
use crate::machine::MemberId;
use crate::reduce::Reducer;
use crate::service::Handle;

/// Hello and reports carry a state: 12 bytes per trainable number, known only once a model has set the hidden size.
const LARGEST_CONTROL: usize = 16 << 20;

/// Numbers of one sample's features, at most: beyond every model that numalign loads.
const WIDEST: usize = 16 << 10;

/// Credits and questions.
const LARGEST_SMALL: usize = 4 << 10;

/// Lets calls in, or refuses them in words on both sides.
#[derive(Clone)]
pub struct Guard {
    token: Option<Token>,
    /// Everybody may ask; a valid token only makes the connection a known one.
    open: bool,
}

impl Guard {
    /// In front of the coordinator's own service.
    pub fn strict(token: Option<Token>) -> Self {
        Self { token, open: false }
    }

    /// In front of the health service.
    pub fn open(token: Option<Token>) -> Self {
        Self { token, open: true }
    }

    fn judge(&self, request: &Request<()>) -> Result<(), Status> {
        let Some(peer) = request.extensions().get::<Peer>() else {
            return Err(Status::internal("the connection did not come through the gate"));
        };
        let verdict = verdict(self.token.as_ref(), peer.private, request.metadata());
        let verdict = verdict.and_then(|()| match peer.admit() {
            true => Ok(()),
            false => Err(Refusal::Full),
        });
        if let (Err(refusal), false) = (&verdict, self.open) {
            peer.complain(refusal.words());
        }
        verdict.map_err(Refusal::status)
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match self.judge(&request) {
            Err(status) if !self.open => Err(status),
            _ => Ok(request),
        }
    }
}

/// Why a call is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Unencrypted,
    NoToken,
    WrongToken,
    Full,
}

impl Refusal {
    fn words(self) -> &'static str {
        match self {
            Refusal::Unencrypted => "this coordinator takes TLS connections only, and this one is not encrypted",
            Refusal::NoToken => "no join token came with the call, and this run has one",
            Refusal::WrongToken => "the join token is not this run's",
            Refusal::Full => "as many connections are open as this run's max_workers allows",
        }
    }

    fn status(self) -> Status {
        let (code, hint) = match self {
            Refusal::Unencrypted => (Code::Unauthenticated, Some("use an https:// address, with --tls-ca FILE")),
            // The client knows what to say about tokens.
            Refusal::NoToken | Refusal::WrongToken => (Code::Unauthenticated, None),
            Refusal::Full => (Code::ResourceExhausted, None),
        };
        let mut metadata = MetadataMap::new();
        if let Some(hint) = hint.and_then(|hint| hint.parse().ok()) {
            metadata.insert(HINT, hint);
        }
        Status::with_metadata(code, self.words(), metadata)
    }
}

/// The pure decision.
fn verdict(token: Option<&Token>, private: bool, metadata: &MetadataMap) -> Result<(), Refusal> {
    if !private {
        return Err(Refusal::Unencrypted);
    }
    let Some(token) = token else {
        return Ok(());
    };
    match metadata.get(HEADER) {
        None => Err(Refusal::NoToken),
        Some(header) if token.is_presented_by(header) => Ok(()),
        Some(_) => Err(Refusal::WrongToken),
    }
}

/// The connection that each member joined on. Its work and its rows are taken from there alone, so nobody else can speak
/// for it by guessing its number.
#[derive(Default)]
pub struct Homes {
    homes: Mutex<HashMap<MemberId, ConnectionId>>,
}

impl Homes {
    fn lock(&self) -> MutexGuard<'_, HashMap<MemberId, ConnectionId>> {
        // Single insertions and removals: sound after a panic elsewhere.
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection of a call.
    pub fn connection_of<T>(request: &Request<T>) -> Result<ConnectionId, Status> {
        match request.extensions().get::<Peer>() {
            Some(peer) => Ok(peer.id),
            None => Err(Status::internal("the connection did not come through the gate")),
        }
    }

    pub fn settle(&self, member: MemberId, connection: ConnectionId) {
        self.lock().insert(member, connection);
    }

    pub fn leave(&self, member: MemberId) {
        self.lock().remove(&member);
    }

    /// Refuses a call that speaks for a member of another connection.
    pub fn check(&self, member: MemberId, connection: ConnectionId) -> Result<(), Status> {
        match self.lock().get(&member) {
            Some(home) if *home == connection => Ok(()),
            // The word of a worker that was dismissed is a late one, not an attack: the same answer serves both.
            _ => Err(Status::failed_precondition(format!("member {} did not join on this connection", member.0))),
        }
    }
}

/// The service with a limit on the size of each message, by the kind of call.
#[derive(Clone)]
pub struct Bounded {
    service: CoordinatorServer<Handle>,
    reducer: Arc<Reducer>,
    largest_control: usize,
}

impl Bounded {
    pub fn new(handle: Handle) -> Self {
        let (reducer, config) = (handle.0.reducer.clone(), &handle.0.config);
        // Over NCCL rank 0's report of a chunk brings the features of the whole batch.
        let may_bring_features =
            config.recipe.solver != Solver::Adam && config.run.collective != CollectiveChoice::Grpc;
        let features = if may_bring_features { 4 * WIDEST * config.recipe.batch_size } else { 0 };
        let largest_control = LARGEST_CONTROL.saturating_add(features);
        Self { service: CoordinatorServer::new(handle), reducer, largest_control }
    }

    fn largest(&self, path: &str) -> usize {
        match path.rsplit('/').next() {
            Some("Control") => self.largest_control,
            Some("Reduce") => self.reducer.largest_contribution(),
            _ => LARGEST_SMALL,
        }
    }
}

impl NamedService for Bounded {
    const NAME: &'static str = <CoordinatorServer<Handle> as NamedService>::NAME;
}

impl tonic::codegen::Service<http::Request<Body>> for Bounded {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let largest = self.largest(request.uri().path());
        let mut service = self.service.clone().max_decoding_message_size(largest);
        tonic::codegen::Service::call(&mut service, request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_and_encryption_decide() {
        let token = Token::new("secret", "a test").unwrap();
        let with = |header: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(HEADER, header.parse().unwrap());
            metadata
        };
        let nothing = MetadataMap::new();
        assert_eq!(verdict(None, true, &nothing), Ok(()));
        assert_eq!(verdict(None, true, &with("Bearer whatever")), Ok(()), "a run without a token asks for none");
        assert_eq!(verdict(Some(&token), true, &nothing), Err(Refusal::NoToken));
        assert_eq!(verdict(Some(&token), true, &with("Bearer secre")), Err(Refusal::WrongToken));
        assert_eq!(verdict(Some(&token), true, &with("Bearer secret")), Ok(()));
        assert_eq!(verdict(Some(&token), false, &with("Bearer secret")), Err(Refusal::Unencrypted));
        assert_eq!(verdict(None, false, &nothing), Err(Refusal::Unencrypted));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let status = Refusal::Unencrypted.status();
        assert!(status.metadata().get(HINT).unwrap().to_str().unwrap().contains("https://"));
        for refusal in [Refusal::Unencrypted, Refusal::NoToken, Refusal::WrongToken] {
            assert_eq!(refusal.status().code(), Code::Unauthenticated);
        }
    }

    #[test]
    fn a_member_speaks_from_its_own_connection_alone() {
        let homes = Homes::default();
        homes.settle(MemberId(1), ConnectionId(10));
        assert!(homes.check(MemberId(1), ConnectionId(10)).is_ok());
        assert!(homes.check(MemberId(1), ConnectionId(11)).is_err());
        assert!(homes.check(MemberId(2), ConnectionId(10)).is_err());
        homes.leave(MemberId(1));
        assert!(homes.check(MemberId(1), ConnectionId(10)).is_err());
    }
}
