//! The cache's file: a digest, then what cubecl writes of each kernel, one after another. It is replaced as a whole, so that
//! whoever reads it finds an old one or a new one, and one that is damaged counts as none.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

const MAGIC: &[u8] = b"numalign kernels 1\n";

/// Beyond this nothing is added: a build's kernels are a few megabytes.
const MOST_BYTES: usize = 256 << 20;

/// The kernels in `path`; none where there is no such file, or where it is damaged.
pub fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let whole = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    let Some(rest) = whole.ok().and_then(|_| bytes.strip_prefix(MAGIC)) else {
        return Vec::new();
    };
    let Some((digest, kernels)) = rest.split_at_checked(blake3::OUT_LEN) else {
        return Vec::new();
    };
    if blake3::hash(kernels).as_bytes() != digest {
        tracing::warn!("{} is damaged; its kernels are compiled again", path.display());
        return Vec::new();
    }
    kernels.to_vec()
}

/// Adds `kernels` to those in `path`, whoever else does so at the same time.
///
/// # Errors
/// The folder cannot be written to.
pub fn append(path: &Path, kernels: &[u8]) -> std::io::Result<()> {
    let lock = File::create(path.with_extension("lock"))?;
    // Released when it is closed.
    lock.lock()?;
    let mut all = read(path);
    if all.len().saturating_add(kernels.len()) > MOST_BYTES {
        return Ok(());
    }
    all.extend_from_slice(kernels);
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = File::create(&new)?;
    file.write_all(MAGIC)?;
    file.write_all(blake3::hash(&all).as_bytes())?;
    file.write_all(&all)?;
    std::fs::rename(&new, path)
}

/// A folder that nobody else can read or write, with those above it.
///
/// # Errors
/// It cannot be made.
pub fn private_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_several_processes_come_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels");
        assert!(read(&path).is_empty());
        std::thread::scope(|scope| {
            for letter in b'a'..=b'h' {
                let path = &path;
                scope.spawn(move || append(path, &[letter; 1000]).unwrap());
            }
        });
        let mut found = read(&path);
        found.sort_unstable();
        let wanted: Vec<u8> = (b'a'..=b'h').flat_map(|letter| [letter; 1000]).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_damaged_file_counts_as_none_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels");
        append(&path, b"first").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..20], b"", b"numalign kernels 1\n"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(read(&path).is_empty(), "{damaged:?}");
        }
        let mut flipped = whole.clone();
        flipped[MAGIC.len() + blake3::OUT_LEN] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert!(read(&path).is_empty());
        append(&path, b"second").unwrap();
        assert_eq!(read(&path), b"second");
    }
}
