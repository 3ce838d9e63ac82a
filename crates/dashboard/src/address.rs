//! The value of `--http`: where the page is served, if anywhere.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// What `--http` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAddress {
    /// Nowhere.
    Off,
    /// On `HOST:PORT`; port 0 is any free one.
    On(String),
}

impl HttpAddress {
    /// Loopback, on any free port.
    pub fn loopback() -> Self {
        Self::On("127.0.0.1:0".to_owned())
    }

    /// `off`, `HOST:PORT` or `:PORT`.
    pub fn of(text: &str) -> Self {
        match text {
            "off" => Self::Off,
            address => Self::On(address.to_owned()),
        }
    }

    /// A socket that listens there; `:PORT` means every address of this machine. None for `off`.
    ///
    /// # Errors
    /// The address is malformed, not this machine's, or taken.
    pub fn bind(&self) -> io::Result<Option<TcpListener>> {
        let Self::On(address) = self else {
            return Ok(None);
        };
        let socket = match address.strip_prefix(':').map(str::parse::<u16>) {
            // Where there is IPv6, that socket takes IPv4 too.
            Some(Ok(port)) => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?,
            _ => TcpListener::bind(address)?,
        };
        socket.set_nonblocking(true)?;
        Ok(Some(socket))
    }
}

impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(address) => f.write_str(address),
        }
    }
}

/// The URL that a browser on this machine opens.
pub fn url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let host = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    format!("{scheme}://{}/", SocketAddr::new(host, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_opens_nothing_and_an_address_does() {
        assert!(HttpAddress::of("off").bind().unwrap().is_none());
        let socket = HttpAddress::loopback().bind().unwrap().unwrap();
        let address = socket.local_addr().unwrap();
        assert!(address.ip().is_loopback() && address.port() != 0);
        assert_eq!(url(address, false), format!("http://{address}/"));
        assert!(HttpAddress::of(&address.to_string()).bind().is_err(), "it is taken");
        assert!(HttpAddress::of("nonsense").bind().is_err());
    }

    #[test]
    fn every_address_is_opened_on_loopback() {
        assert_eq!(url("[::]:80".parse().unwrap(), true), "https://127.0.0.1:80/");
    }
}
