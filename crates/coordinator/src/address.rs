//! The address of a running coordinator, as a small file in its run's folder: `numalign status` finds it there.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use numalign_checkpoint::open_regular;

/// Name of the file in the run's folder.
pub const FILE_NAME: &str = "address";

/// Removed when the run ends; a coordinator that was killed leaves it.
pub struct AddressFile {
    path: PathBuf,
}

impl AddressFile {
    /// Writes where a client on this machine reaches the coordinator that listens on `address`. A failure is a warning:
    /// the run does not need the file.
    pub fn publish(folder: &Path, address: SocketAddr, tls: bool) -> Self {
        let path = folder.join(FILE_NAME);
        let written = open_regular(&path, false).and_then(|mut file| {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            file.set_len(0)?;
            writeln!(file, "{}", url(address, tls))
        });
        if let Err(error) = written {
            tracing::warn!("cannot write {}: {error}", path.display());
        }
        Self { path }
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        // It may be gone with its folder.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let host = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    format!("{scheme}://{}", SocketAddr::new(host, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_lasts_as_long_as_the_run() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(FILE_NAME);
        let file = AddressFile::publish(folder.path(), "0.0.0.0:7400".parse().expect("an address"), true);
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), "https://127.0.0.1:7400\n");
        assert_eq!(std::fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn an_address_is_one_that_can_be_dialled() {
        assert_eq!(url("10.0.0.1:80".parse().expect("an address"), false), "http://10.0.0.1:80");
        assert_eq!(url("[::]:80".parse().expect("an address"), false), "http://127.0.0.1:80");
    }
}
