//! The one way a client reaches a coordinator: address, TLS, token, and what a failure means.

use std::error::Error;
use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

use numalign_protocol::coordinator_client::CoordinatorClient;
use tokio_rustls::rustls;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::error::AccessError;
use crate::tls::{ClientTls, certificate_words};
use crate::token::{HEADER, Token};

/// A connected client; it presents the token with every call.
pub type Client = CoordinatorClient<InterceptedService<Channel, Credentials>>;

/// Metadata key under which a refusing coordinator says what to do.
pub const HINT: &str = "numalign-hint";

/// Largest message taken from a coordinator: a state, or the status of many workers, with room to spare.
const MAX_MESSAGE: usize = 64 << 20;

const TOKEN_HINT: &str = "give the coordinator and every worker the same token: NUMALIGN_TOKEN or --token-file FILE";

/// Puts the token into each call's metadata.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    header: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert(HEADER, header.clone());
        }
        Ok(request)
    }
}

/// What a client presents and whom it trusts. The default presents nothing.
#[derive(Debug, Clone, Default)]
pub struct ClientAccess {
    /// Presented with every call.
    pub token: Option<Token>,
    /// For `https://` addresses.
    pub tls: Option<ClientTls>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Unconnected {
    /// Trying again may help: nothing listens, or something that is not a coordinator.
    Lost(String),
    /// Trying again would not help.
    Refused(AccessError),
}

/// An IPv6 address gets the brackets that a URL wants: `http://::1:7400` is `http://[::1]:7400`.
fn with_brackets(url: &str) -> String {
    let bare = url.split_once("://").and_then(|(scheme, rest)| {
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
        host.parse::<Ipv6Addr>().ok().map(|host| format!("{scheme}://[{host}]:{port}"))
    });
    bare.unwrap_or_else(|| url.to_owned())
}

impl ClientAccess {
    /// The endpoint of `http://HOST:PORT`, or of `https://HOST:PORT` with a CA.
    ///
    /// # Errors
    /// The address is malformed, or its scheme does not match the TLS settings.
    pub fn endpoint(&self, url: &str) -> Result<Endpoint, AccessError> {
        let wrong = |reason: String| AccessError::Address { url: url.to_owned(), reason };
        if url.contains('%') {
            return Err(wrong("an IPv6 address goes without its zone (%…): take one that needs none".to_owned()));
        }
        let mut endpoint = Endpoint::from_shared(with_brackets(url)).map_err(|error| wrong(error.to_string()))?;
        match (endpoint.uri().scheme_str(), &self.tls) {
            (Some("http"), None) => {}
            (Some("https"), Some(tls)) => {
                endpoint = endpoint.tls_config(tls.config()).map_err(|error| wrong(chain(&error)))?;
            }
            (Some("https"), None) => return Err(wrong("https:// needs --tls-ca FILE".to_owned())),
            (Some("http"), Some(_)) => {
                return Err(wrong("with --tls-ca it has to begin with https://, or nothing is encrypted".to_owned()));
            }
            _ => return Err(wrong("it does not begin with http:// or https://".to_owned())),
        }
        if endpoint.uri().port_u16().is_none() {
            return Err(wrong("it has no port".to_owned()));
        }
        Ok(endpoint
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true))
    }

    /// One attempt to connect; on success the coordinator has not answered anything yet.
    ///
    /// # Errors
    /// No connection, for now or for good.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Client, Unconnected> {
        let channel = endpoint.connect().await.map_err(|error| self.unconnected(&error))?;
        Ok(self.client(channel))
    }

    /// A client that connects with its first call, and again when the connection broke. Needs a runtime around it.
    pub fn connect_lazily(&self, endpoint: &Endpoint) -> Client {
        self.client(endpoint.connect_lazy())
    }

    /// What puts the token into each call.
    pub fn credentials(&self) -> Credentials {
        Credentials { header: self.token.as_ref().and_then(Token::header) }
    }

    fn client(&self, channel: Channel) -> Client {
        CoordinatorClient::with_interceptor(channel, self.credentials())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(usize::MAX)
    }

    /// What a failed attempt means.
    fn unconnected(&self, error: &(dyn Error + 'static)) -> Unconnected {
        match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(reason)) => {
                let ca = self.tls.as_ref().map_or_else(String::new, |tls| format!(" (CA: {})", tls.ca.display()));
                Unconnected::Refused(AccessError::Refused {
                    reason: format!("the coordinator's certificate is not accepted: {}{ca}", certificate_words(reason)),
                    hint: "give --tls-ca the CA that the coordinator's --tls-cert comes from, and the host name that is in it"
                        .to_owned(),
                })
            }
            Some(rustls::Error::InvalidMessage(_)) => Unconnected::Lost(
                "what listens there does not speak TLS; without TLS the address is http://".to_owned(),
            ),
            _ => Unconnected::Lost(chain(error)),
        }
    }

    /// The refusal in a call's failure, if trying again would not help.
    pub fn refusal(&self, status: &Status) -> Option<AccessError> {
        if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
            let hint = status.metadata().get(HINT).and_then(|hint| hint.to_str().ok()).unwrap_or(TOKEN_HINT);
            return Some(AccessError::Refused { reason: status.message().to_owned(), hint: hint.to_owned() });
        }
        // A client's certificate is judged after its own side of the handshake is done (TLS 1.3), so the verdict comes
        // with the first call. The libraries between hand it on as text alone.
        let text = format!("{} {}", status.message(), status_words(status));
        let alert = text.split("received fatal alert: ").nth(1)?;
        let alert: String = alert.chars().take_while(char::is_ascii_alphanumeric).collect();
        let (said, shown) = match alert.as_str() {
            "CertificateRequired" => ("demands a client certificate", "this side showed none"),
            "UnknownCA" | "BadCertificate" | "CertificateUnknown" | "DecryptError" | "UnsupportedCertificate" => {
                ("does not accept this side's certificate", "it is not from the coordinator's CA")
            }
            "CertificateExpired" => ("does not accept this side's certificate", "it has expired or is not valid yet"),
            "CertificateRevoked" => ("does not accept this side's certificate", "it was revoked"),
            _ => return None,
        };
        Some(AccessError::Refused {
            reason: format!("the coordinator {said}: {shown}"),
            hint: "give --tls-cert and --tls-key with a certificate from the CA that the coordinator has as --tls-ca"
                .to_owned(),
        })
    }
}

/// The TLS library's error among the causes, if there is one.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(present) = cause {
        if let Some(found) = present.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error hides what it carries from `source`.
        let carried = present.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = carried.and_then(|carried| carried.downcast_ref::<rustls::Error>()) {
            return Some(found);
        }
        cause = present.source();
    }
    None
}

/// A call's failure with its causes if the connection broke; else the coordinator's message.
pub fn status_words(status: &Status) -> String {
    match status.source() {
        Some(cause) => chain(cause),
        None => status.message().to_owned(),
    }
}

/// An error with its causes, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_scheme_a_port_and_tls_where_they_say_so() {
        let plain = ClientAccess::default();
        assert!(plain.endpoint("http://127.0.0.1:7400").is_ok());
        for (bare, bracketed) in
            [("http://::1:7400", "http://[::1]:7400/"), ("http://fd00::2:80/", "http://[fd00::2]:80/")]
        {
            assert_eq!(plain.endpoint(bare).unwrap().uri().to_string(), bracketed);
        }
        for (url, said) in [
            ("127.0.0.1:7400", "http://"),
            ("ftp://127.0.0.1:7400", "http://"),
            ("http://127.0.0.1", "no port"),
            ("http://fe80::1%eth0:7400", "without its zone"),
            ("https://127.0.0.1:7400", "--tls-ca"),
            ("", "address"),
        ] {
            let error = plain.endpoint(url).unwrap_err();
            assert!(error.to_string().contains(said), "{url}: {error}");
            assert!(error.is_usage());
        }
    }

    #[test]
    fn refusals_are_told_from_lost_connections() {
        let access = ClientAccess::default();
        let refusal = access.refusal(&Status::unauthenticated("no join token came with the call")).unwrap();
        assert!(refusal.to_string().contains("no join token"), "{refusal}");
        assert!(refusal.hint().unwrap().contains("NUMALIGN_TOKEN"));
        assert!(!refusal.is_usage());
        assert!(access.refusal(&Status::unavailable("the run is ending")).is_none());
        let alert = Status::unknown("h2 protocol error: received fatal alert: CertificateRequired (really)");
        assert!(access.refusal(&alert).unwrap().to_string().contains("demands a client certificate"));
        assert!(access.refusal(&Status::unknown("received fatal alert: HandshakeFailure")).is_none());
    }

    #[test]
    fn the_tls_librarys_error_is_found_inside_an_io_error() {
        let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = io::Error::new(io::ErrorKind::InvalidData, inner);
        match ClientAccess::default().unconnected(&error) {
            Unconnected::Refused(refused) => {
                assert!(refused.to_string().contains("not signed by that CA"), "{refused}")
            }
            Unconnected::Lost(reason) => panic!("{reason}"),
        }
        assert!(matches!(
            ClientAccess::default().unconnected(&io::Error::from(io::ErrorKind::ConnectionRefused)),
            Unconnected::Lost(_)
        ));
    }
}
