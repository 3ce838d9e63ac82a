//! TLS from PEM files: what a coordinator shows and demands, what a client shows and demands.
//!
//! Only the CA that the user names is trusted: a run's certificates come from its own CA, never from the public ones.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, CertificateError, RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::error::AccessError;
use crate::warnings;

/// Far more than any chain or key needs.
const MAX_FILE: u64 = 1 << 20;

/// The files given by `--tls-cert`, `--tls-key` and `--tls-ca`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// The CA that the other side's certificate must come from.
    pub ca: Option<PathBuf>,
}

/// What a coordinator with TLS does at each handshake.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// Clients have to show a certificate.
    pub mutual: bool,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("mutual", &self.mutual).finish_non_exhaustive()
    }
}

/// What a client with TLS shows and demands.
#[derive(Clone)]
pub struct ClientTls {
    config: ClientTlsConfig,
    /// The file of the CA that the coordinator's certificate must come from.
    pub ca: PathBuf,
    /// The client shows a certificate.
    pub identity: bool,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("ca", &self.ca).field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A certificate chain with its key, checked to belong together.
struct OwnIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pem: (Vec<u8>, Vec<u8>),
}

impl TlsFiles {
    /// A coordinator's side: `None` if no file is given; mutual TLS if a CA is.
    ///
    /// # Errors
    /// A file is missing, unreadable or does not fit the others.
    pub fn server(&self) -> Result<Option<ServerTls>, AccessError> {
        let Some(identity) = self.identity()? else {
            if self.ca.is_some() {
                return Err(AccessError::Usage(
                    "--tls-ca alone is not enough: a coordinator with TLS needs --tls-cert and --tls-key".to_owned(),
                ));
            }
            return Ok(None);
        };
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| AccessError::Usage(error.to_string()))?;
        let builder = match &self.ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let (roots, _) = authority(path)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| pem_error(path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let path = self.cert.as_deref().unwrap_or(Path::new("--tls-cert"));
        let mut config = builder
            .with_single_cert(identity.chain, identity.key)
            .map_err(|error| pem_error(path, format!("it cannot be used: {error}")))?;
        config.alpn_protocols.push(b"h2".to_vec());
        Ok(Some(ServerTls { config: Arc::new(config), mutual: self.ca.is_some() }))
    }

    /// A client's side: `None` if no file is given; with a client certificate if there is one.
    ///
    /// # Errors
    /// A file is missing, unreadable or does not fit the others.
    pub fn client(&self) -> Result<Option<ClientTls>, AccessError> {
        let identity = self.identity()?;
        let Some(ca) = &self.ca else {
            if identity.is_some() {
                return Err(AccessError::Usage(
                    "--tls-cert and --tls-key need --tls-ca too: the CA that the coordinator's certificate comes from"
                        .to_owned(),
                ));
            }
            return Ok(None);
        };
        let (_, pem) = authority(ca)?;
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        let shown = identity.is_some();
        if let Some(identity) = identity {
            config = config.identity(Identity::from_pem(identity.pem.0, identity.pem.1));
        }
        Ok(Some(ClientTls { config, ca: ca.clone(), identity: shown }))
    }

    /// What is unwise about these files: a key that everybody can read, an own certificate that has expired.
    pub fn warnings(&self) -> Vec<String> {
        let mut list = Vec::new();
        list.extend(self.key.as_deref().and_then(warnings::of_secret_file));
        if let Some(path) = &self.cert
            && let Ok(chain) = read(path).and_then(|pem| certificates(path, &pem))
        {
            list.extend(chain.first().and_then(|own| warnings::of_certificate(path, own, SystemTime::now())));
        }
        list
    }

    fn identity(&self) -> Result<Option<OwnIdentity>, AccessError> {
        let (cert, key) = match (&self.cert, &self.key) {
            (None, None) => return Ok(None),
            (Some(cert), Some(key)) => (cert, key),
            (Some(_), None) => return Err(AccessError::Usage("--tls-cert needs --tls-key too".to_owned())),
            (None, Some(_)) => return Err(AccessError::Usage("--tls-key needs --tls-cert too".to_owned())),
        };
        let (cert_pem, key_pem) = (read(cert)?, read(key)?);
        let chain = certificates(cert, &cert_pem)?;
        let secret = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|error| pem_error(key, format!("no private key in it: {error}")))?;
        let signer = provider()
            .key_provider
            .load_private_key(secret.clone_key())
            .map_err(|error| pem_error(key, format!("its private key is of no use: {error}")))?;
        match rustls::sign::CertifiedKey::new(chain.clone(), signer).keys_match() {
            // A key that cannot tell is found out at the handshake.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(pem_error(key, format!("it is not the key of the certificate in {}", cert.display())));
            }
            Err(error) => return Err(pem_error(cert, format!("its certificate cannot be read: {error}"))),
        }
        Ok(Some(OwnIdentity { chain, key: secret, pem: (cert_pem, key_pem) }))
    }
}

impl ServerTls {
    /// The same for HTTP/1.1, as browsers and scrapers speak it: clients are offered that instead of HTTP/2.
    pub fn for_http1(&self) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { config: Arc::new(config), mutual: self.mutual }
    }

    /// The configuration of the handshakes.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

impl ClientTls {
    /// The configuration of the handshakes.
    pub fn config(&self) -> ClientTlsConfig {
        self.config.clone()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn pem_error(path: &Path, reason: impl fmt::Display) -> AccessError {
    AccessError::Pem { path: path.to_owned(), reason: reason.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    let failed = |source| AccessError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(pem_error(path, format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        chain.push(certificate.map_err(|error| pem_error(path, format!("it is not PEM: {error}")))?);
    }
    if chain.is_empty() {
        return Err(pem_error(path, "no certificate in it"));
    }
    Ok(chain)
}

/// The certificates of a CA file, as trusted roots and as they stand in it.
fn authority(path: &Path) -> Result<(RootCertStore, Vec<u8>), AccessError> {
    let pem = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, &pem)? {
        roots.add(certificate).map_err(|error| pem_error(path, format!("it is no CA certificate: {error}")))?;
    }
    Ok((roots, pem))
}

/// What is wrong with the other side's certificate, for people.
pub fn certificate_words(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "it is not signed by that CA".to_owned(),
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("it has expired {} days ago", time.as_secs().saturating_sub(not_after.as_secs()) / 86_400)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; look at both clocks".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| bare_name(name)).collect();
            format!("it is not for {} but for {}", expected.to_str(), names.join(", "))
        }
        other => other.to_string(),
    }
}

/// `DnsName("host")` and `IpAddress(10.0.0.1)`, as the library shows them, without the kind.
fn bare_name(shown: &str) -> &str {
    let inner = shown.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(shown).trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_people_write_them() {
        assert_eq!(bare_name("DnsName(\"a.test\")"), "a.test");
        assert_eq!(bare_name("IpAddress(10.0.0.1)"), "10.0.0.1");
        assert_eq!(bare_name("a.test"), "a.test");
    }

    /// A CA, a certificate of it, the certificate's key, and another key; as PEM files in a folder.
    fn files(folder: &Path) -> TlsFiles {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
        let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join("ca"), ca_cert.pem()).unwrap();
        std::fs::write(folder.join("cert"), leaf.pem()).unwrap();
        std::fs::write(folder.join("key"), key.serialize_pem()).unwrap();
        std::fs::write(folder.join("other-key"), ca_key.serialize_pem()).unwrap();
        let at = |name: &str| Some(folder.join(name));
        TlsFiles { cert: at("cert"), key: at("key"), ca: at("ca") }
    }

    #[test]
    fn each_side_takes_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let all = files(folder.path());
        assert!(all.server().unwrap().unwrap().mutual);
        let own = TlsFiles { ca: None, ..all.clone() };
        assert!(!own.server().unwrap().unwrap().mutual);
        assert!(all.client().unwrap().unwrap().identity);
        let ca = TlsFiles { ca: all.ca, ..TlsFiles::default() };
        assert!(!ca.client().unwrap().unwrap().identity);
        assert!(TlsFiles::default().server().unwrap().is_none());
        assert!(TlsFiles::default().client().unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = files(folder.path());
        let at = |name: &str| Some(folder.path().join(name));
        std::fs::write(folder.path().join("text"), "hello\n").unwrap();
        let broken = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
        std::fs::write(folder.path().join("broken"), broken).unwrap();
        let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(folder.path().join("empty"), empty).unwrap();
        let cases = [
            (TlsFiles { key: None, ..good.clone() }, "--tls-key"),
            (TlsFiles { cert: None, ..good.clone() }, "--tls-cert"),
            (TlsFiles { cert: at("none"), ..good.clone() }, "none"),
            (TlsFiles { cert: at("text"), ..good.clone() }, "no certificate"),
            (TlsFiles { cert: at("broken"), ..good.clone() }, "not PEM"),
            (TlsFiles { key: at("text"), ..good.clone() }, "no private key"),
            (TlsFiles { key: at("cert"), ..good.clone() }, "no private key"),
            (TlsFiles { key: at("other-key"), ..good.clone() }, "not the key of the certificate"),
            (TlsFiles { ca: at("empty"), ..good.clone() }, "no CA certificate"),
            (TlsFiles { ca: Some("/dev/zero".into()), ..good.clone() }, "larger than"),
        ];
        for (files, said) in cases {
            let server = files.server().unwrap_err();
            let client = files.client().unwrap_err();
            assert!(server.to_string().contains(said), "{server}");
            assert!(client.to_string().contains(said), "{client}");
            assert!(server.is_usage() && client.is_usage());
        }
        let only_ca = TlsFiles { cert: None, key: None, ..good.clone() };
        assert!(only_ca.server().unwrap_err().to_string().contains("--tls-cert"));
        let no_ca = TlsFiles { ca: None, ..good };
        assert!(no_ca.client().unwrap_err().to_string().contains("--tls-ca"));
    }
}
