//! Who may ask: the names under which this port may be addressed, other sites' pages, and the token. Pure.
//!
//! The page changes nothing, so what is guarded is what it tells. Without a token only names count that no stranger's
//! domain can take: an address of this machine, `localhost`, the machine's own name. Otherwise a web page could point a
//! domain of its own at 127.0.0.1 and read along (DNS rebinding).

use std::net::IpAddr;

use numalign_access::Token;

/// What of a request matters here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// The `Host` header.
    pub host: Option<&'a str>,
    /// The `Origin` header.
    pub origin: Option<&'a str>,
    /// The `Authorization` header.
    pub authorization: Option<&'a [u8]>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its `Host` header names nothing that this port goes by.
    Host,
    /// A page of another site made it.
    Origin,
    /// It presents no token.
    NoToken,
    /// It presents another token.
    WrongToken,
}

/// Who may ask at one port.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// What a request has to present; none on loopback.
    pub token: Option<Token>,
    /// Names of this machine, besides `localhost` and addresses.
    pub names: Vec<String>,
}

impl Guard {
    /// Whether a request may be answered.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(&self, asked: Asked<'_>) -> Result<(), Refusal> {
        self.check_place(asked)?;
        let Some(token) = &self.token else {
            return Ok(());
        };
        let Some(header) = asked.authorization else {
            return Err(Refusal::NoToken);
        };
        match presented(header) {
            Some(secret) if token.is(&secret) => Ok(()),
            _ => Err(Refusal::WrongToken),
        }
    }

    /// Host and origin alone: all that a health check has to get right.
    ///
    /// # Errors
    /// Why the request is refused.
    pub fn check_place(&self, asked: Asked<'_>) -> Result<(), Refusal> {
        let host = asked.host.ok_or(Refusal::Host)?;
        if self.token.is_none() && !self.is_known(name_of(host)) {
            return Err(Refusal::Host);
        }
        let is_foreign = |origin: &str| origin.split_once("://").is_none_or(|(_, authority)| authority != host);
        if asked.origin.is_some_and(is_foreign) {
            return Err(Refusal::Origin);
        }
        Ok(())
    }

    fn is_known(&self, name: &str) -> bool {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// The host of `host:port`.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// The secret in an `Authorization` header: of scheme `Bearer`, or the password of scheme `Basic`, which browsers ask for.
fn presented(header: &[u8]) -> Option<Vec<u8>> {
    if let Some(token) = header.strip_prefix(b"Bearer ") {
        return Some(token.to_vec());
    }
    let pair = from_base64(header.strip_prefix(b"Basic ")?)?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Bytes of a base64 text (RFC 4648, section 4).
pub fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(host: &'a str, origin: Option<&'a str>, authorization: Option<&'a str>) -> Asked<'a> {
        Asked { host: Some(host), origin, authorization: authorization.map(str::as_bytes) }
    }

    #[test]
    fn without_a_token_only_names_of_this_machine_count() {
        let guard = Guard { token: None, names: vec!["node-1".to_owned()] };
        for host in ["127.0.0.1:4000", "localhost", "LOCALHOST:80", "[::1]:80", "10.0.0.7", "node-1:8080"] {
            assert_eq!(guard.admit(asked(host, None, None)), Ok(()), "{host}");
        }
        for host in ["evil.example:4000", "localhost.evil.example", "", "127.0.0.1.evil.example", "node-1@x"] {
            assert_eq!(guard.admit(asked(host, None, None)), Err(Refusal::Host), "{host}");
        }
        assert_eq!(guard.admit(Asked::default()), Err(Refusal::Host));
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let guard = Guard::default();
        let at = |origin| guard.admit(asked("127.0.0.1:4000", Some(origin), None));
        assert_eq!(at("http://127.0.0.1:4000"), Ok(()));
        for origin in ["http://evil.example", "http://127.0.0.1:4001", "null", ""] {
            assert_eq!(at(origin), Err(Refusal::Origin), "{origin}");
        }
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_password() {
        let guard = Guard { token: Some(Token::new("s3cret", "a test").unwrap()), names: Vec::new() };
        let with = |header| guard.admit(asked("any.name:1", None, header));
        assert_eq!(with(Some("Bearer s3cret")), Ok(()));
        // `watch:s3cret` and `:s3cret`
        assert_eq!(with(Some("Basic d2F0Y2g6czNjcmV0")), Ok(()));
        assert_eq!(with(Some("Basic OnMzY3JldA==")), Ok(()));
        assert_eq!(with(None), Err(Refusal::NoToken));
        for wrong in ["Bearer s3cre", "Bearer ", "Basic d2F0Y2g=", "Basic !", "s3cret", ""] {
            assert_eq!(with(Some(wrong)), Err(Refusal::WrongToken), "{wrong}");
        }
    }
}
