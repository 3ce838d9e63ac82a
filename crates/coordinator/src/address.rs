//! The address of a running coordinator, and a token that nobody gave it, as small files in its run's folder: `numalign
//! status` of the same user finds them there.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use numalign_access::Token;
use numalign_checkpoint::open_regular;

/// Name of the file in the run's folder.
pub const FILE_NAME: &str = "address";

/// Name of the file with the token.
pub const TOKEN_FILE_NAME: &str = "token";

/// A file that is removed when the run ends; a coordinator that was killed leaves it.
pub struct PublishedFile {
    path: PathBuf,
}

impl PublishedFile {
    /// Writes where a client on this machine reaches the coordinator that listens on `address`. A failure is a warning:
    /// the run does not need the file.
    pub fn address(folder: &Path, address: SocketAddr, tls: bool) -> Self {
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

    /// Writes a token that `launch` made where its user alone can read it. A failure is a warning too.
    pub fn token(folder: &Path, token: &Token) -> Self {
        let path = folder.join(TOKEN_FILE_NAME);
        // Another coordinator of the run may have left one; a link in its place is not followed.
        let _ = std::fs::remove_file(&path);
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{}", token.reveal()));
        if let Err(error) = written {
            tracing::warn!("cannot write {}: {error}; `numalign status` will need --token-file", path.display());
        }
        Self { path }
    }
}

impl Drop for PublishedFile {
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
        let file = PublishedFile::address(folder.path(), "0.0.0.0:7400".parse().expect("an address"), true);
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), "https://127.0.0.1:7400\n");
        assert_eq!(std::fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn the_token_replaces_what_lies_in_its_place_and_goes_with_the_run() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, elsewhere) = (folder.path().join(TOKEN_FILE_NAME), folder.path().join("elsewhere"));
        std::fs::write(&elsewhere, "mine").expect("a file");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("a link");
        let file = PublishedFile::token(folder.path(), &Token::new("secret", "a test").expect("a token"));
        assert_eq!(std::fs::read_to_string(&path).expect("the file"), "secret\n");
        assert_eq!(std::fs::symlink_metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&elsewhere).expect("the other file"), "mine");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn an_address_is_one_that_can_be_dialled() {
        assert_eq!(url("10.0.0.1:80".parse().expect("an address"), false), "http://10.0.0.1:80");
        assert_eq!(url("[::]:80".parse().expect("an address"), false), "http://127.0.0.1:80");
    }
}
