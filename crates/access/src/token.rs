//! The join token: one secret, shared by a run's coordinator and workers.
//!
//! It travels as `authorization: Bearer TOKEN` with every call. It is never printed, never part of the configuration or
//! of a checkpoint, and never on a command line.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};

use crate::error::AccessError;

/// The metadata key of every call.
pub const HEADER: &str = "authorization";

/// What stands before the token in the header.
const SCHEME: &str = "Bearer ";

/// Fits into one header.
const MAX_LENGTH: usize = 1024;

/// A join token: 1 to 1024 visible ASCII characters.
#[derive(Clone)]
pub struct Token {
    text: Arc<str>,
    digest: blake3::Hash,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// A token, without the blanks and line ends around it; `origin` says where it is from, for messages.
    ///
    /// # Errors
    /// It is empty, too long, or has characters that a header cannot carry. The message does not repeat it.
    pub fn new(text: &str, origin: &str) -> Result<Self, AccessError> {
        let wrong = |reason: String| AccessError::Token { origin: origin.to_owned(), reason };
        let text = text.trim();
        if text.is_empty() {
            return Err(wrong("is empty".to_owned()));
        }
        if text.len() > MAX_LENGTH {
            return Err(wrong(format!("has {} bytes, more than {MAX_LENGTH}", text.len())));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("has characters other than visible ASCII".to_owned()));
        }
        Ok(Self { text: text.into(), digest: blake3::hash(text.as_bytes()) })
    }

    /// A new token that nobody can guess: 32 bytes of the kernel's randomness, in hex.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn random() -> Result<Self, AccessError> {
        let path = Path::new("/dev/urandom");
        let failed = |source| AccessError::Read { path: path.to_owned(), source };
        let mut bytes = [0; 32];
        std::fs::File::open(path).map_err(failed)?.read_exact(&mut bytes).map_err(failed)?;
        Self::new(&blake3::Hash::from_bytes(bytes).to_hex(), "a random token")
    }

    /// The token that is the whole content of a file.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold a token.
    pub fn read(path: &Path) -> Result<Self, AccessError> {
        let failed = |source| AccessError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        // A little more than the longest, so that too long a file is noticed and /dev/zero ends.
        let limit = 2 * MAX_LENGTH as u64;
        std::fs::File::open(path).map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
        let origin = path.display().to_string();
        let text = String::from_utf8(bytes)
            .map_err(|_| AccessError::Token { origin: origin.clone(), reason: "is not text".to_owned() })?;
        Self::new(&text, &origin)
    }

    /// The secret itself, for the environment of child processes.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The value of [`HEADER`] that presents this token.
    pub fn header(&self) -> Option<MetadataValue<Ascii>> {
        let mut value = MetadataValue::try_from(format!("{SCHEME}{}", self.text)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Whether `header` presents this token. Digests are compared in constant time, so a guess learns nothing from how
    /// long the answer takes.
    pub fn is_presented_by(&self, header: &MetadataValue<Ascii>) -> bool {
        header.as_bytes().strip_prefix(SCHEME.as_bytes()).is_some_and(|presented| self.is(presented))
    }

    /// Whether `presented` is this token, in constant time too.
    pub fn is(&self, presented: &[u8]) -> bool {
        blake3::hash(presented) == self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> MetadataValue<Ascii> {
        MetadataValue::try_from(text).unwrap()
    }

    #[test]
    fn a_token_opens_for_itself_alone() {
        let token = Token::new("s3cret /+=", "a test").unwrap_err();
        assert!(!token.to_string().contains("s3cret"), "{token}");
        let token = Token::new("s3cret/+=\n", "a test").unwrap();
        assert!(token.is_presented_by(&token.header().unwrap()));
        assert!(token.is_presented_by(&header("Bearer s3cret/+=")));
        for wrong in ["", "Bearer", "Bearer ", "Bearer s3cret", "Bearer s3cret/+==", "bearer s3cret/+=", "s3cret/+="] {
            assert!(!token.is_presented_by(&header(wrong)), "{wrong}");
        }
        assert_eq!(format!("{token:?} {:?}", token.header()), "Token(…) Some(Sensitive)");
    }

    #[test]
    fn random_tokens_differ() {
        let (first, second) = (Token::random().unwrap(), Token::random().unwrap());
        assert_eq!(first.reveal().len(), 64);
        assert_ne!(first.reveal(), second.reveal());
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_it() {
        let long = "x".repeat(MAX_LENGTH + 1);
        for (text, said) in
            [("", "empty"), (" \n", "empty"), ("pass word", "visible"), ("größe", "visible"), (&long, "1025")]
        {
            let refusal = Token::new(text, "NUMALIGN_TOKEN").unwrap_err().to_string();
            assert!(refusal.contains(said) && refusal.contains("NUMALIGN_TOKEN"), "{refusal}");
            assert!(!refusal.contains("pass word") && !refusal.contains("xxx"), "{refusal}");
        }
    }

    #[test]
    fn files_are_read_and_bad_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "abc\n").unwrap();
        assert_eq!(Token::read(&path).unwrap().reveal(), "abc");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(Token::read(&path).unwrap_err().to_string().contains("not text"));
        assert!(Token::read(Path::new("/dev/zero")).is_err());
        assert!(Token::read(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
