//! Who may call: checks token and encryption before a call's first byte is decoded.

use numalign_access::Token;
use numalign_access::client::HINT;
use numalign_access::listener::Peer;
use numalign_access::token::HEADER;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

/// Authorises each call by its token and its connection.
#[derive(Clone)]
pub struct AuthInterceptor {
    token: Option<Token>,
    /// Every call passes; a valid token only marks the connection as authenticated.
    optional: bool,
}

impl AuthInterceptor {
    /// For the coordinator's own service.
    pub fn required(token: Option<Token>) -> Self {
        Self { token, optional: false }
    }

    /// For the health service, which answers everybody.
    pub fn optional(token: Option<Token>) -> Self {
        Self { token, optional: true }
    }

    fn authorize(&self, request: &Request<()>) -> Result<(), Status> {
        let Some(peer) = request.extensions().get::<Peer>() else {
            return Err(Status::internal("the connection did not come through the listener"));
        };
        let mut result = check(self.token.as_ref(), peer.private, request.metadata());
        if result.is_ok() && !peer.admit() {
            result = Err(AuthError::Full);
        }
        if matches!(result, Err(AuthError::WrongToken)) {
            peer.guesses.count();
        }
        match (&result, self.optional) {
            (Err(error), false) => peer.log_refusal(&error.to_string()),
            // A watch lasts as long as the service.
            (Err(_), true) => peer.keep_health_check(),
            (Ok(()), _) => {}
        }
        result.map_err(AuthError::status)
    }
}

impl Interceptor for AuthInterceptor {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match self.authorize(&request) {
            Err(status) if !self.optional => Err(status),
            _ => Ok(request),
        }
    }
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum AuthError {
    #[error("this coordinator takes TLS connections only, and this one is not encrypted")]
    Unencrypted,
    #[error("no join token came with the call, and this run has one")]
    NoToken,
    #[error("the join token is not this run's")]
    WrongToken,
    #[error("as many connections are open as this run's max_workers allows")]
    Full,
}

impl AuthError {
    fn status(self) -> Status {
        let (code, hint) = match self {
            AuthError::Unencrypted => (Code::Unauthenticated, Some("use an https:// address, with --tls-ca FILE")),
            // The client knows what to say about tokens.
            AuthError::NoToken | AuthError::WrongToken => (Code::Unauthenticated, None),
            AuthError::Full => (Code::ResourceExhausted, None),
        };
        let mut metadata = MetadataMap::new();
        if let Some(hint) = hint.and_then(|hint| hint.parse().ok()) {
            metadata.insert(HINT, hint);
        }
        Status::with_metadata(code, self.to_string(), metadata)
    }
}

/// The pure decision.
fn check(token: Option<&Token>, private: bool, metadata: &MetadataMap) -> Result<(), AuthError> {
    if !private {
        return Err(AuthError::Unencrypted);
    }
    let Some(token) = token else {
        return Ok(());
    };
    match metadata.get(HEADER) {
        None => Err(AuthError::NoToken),
        Some(header) if token.is_presented_by(header) => Ok(()),
        Some(_) => Err(AuthError::WrongToken),
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
        assert_eq!(check(None, true, &nothing), Ok(()));
        assert_eq!(check(None, true, &with("Bearer whatever")), Ok(()), "a run without a token asks for none");
        assert_eq!(check(Some(&token), true, &nothing), Err(AuthError::NoToken));
        assert_eq!(check(Some(&token), true, &with("Bearer secre")), Err(AuthError::WrongToken));
        assert_eq!(check(Some(&token), true, &with("Bearer secret")), Ok(()));
        assert_eq!(check(Some(&token), false, &with("Bearer secret")), Err(AuthError::Unencrypted));
        assert_eq!(check(None, false, &nothing), Err(AuthError::Unencrypted));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let status = AuthError::Unencrypted.status();
        assert!(status.metadata().get(HINT).unwrap().to_str().unwrap().contains("https://"));
        for refusal in [AuthError::Unencrypted, AuthError::NoToken, AuthError::WrongToken] {
            assert_eq!(refusal.status().code(), Code::Unauthenticated);
        }
    }
}
