//! Slows calls on connections that presented wrong tokens.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use numalign_access::listener::Peer;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// A service whose callers wait after wrong tokens.
#[derive(Clone)]
pub struct SlowGuesses<S> {
    service: S,
}

impl<S> SlowGuesses<S> {
    /// Wraps the service that checks the token.
    pub fn new(service: S) -> Self {
        Self { service }
    }
}

impl<S: NamedService> NamedService for SlowGuesses<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for SlowGuesses<S>
where
    S: Service<http::Request<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        let Some(guesses) = peer.map(|peer| peer.guesses.clone()).filter(|guesses| guesses.are_slowed()) else {
            return Box::pin(self.service.call(request));
        };
        let mut service = self.service.clone();
        Box::pin(async move {
            guesses.wait().await;
            service.call(request).await
        })
    }
}
