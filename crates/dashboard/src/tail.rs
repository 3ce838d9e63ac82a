//! Reads a file of lines as it grows, and notices when it was written anew.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::OFlags;

/// A longer line is none of ours.
const LONGEST_LINE: usize = 16 << 10;

/// What a [`Tail`] finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The file is another one than before, or shorter: what was read so far no longer counts.
    Reset,
    /// One whole line, without its end.
    Line(&'a str),
}

/// A file of lines, and how far it was read.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    /// Device and inode of the file that was read.
    identity: Option<(u64, u64)>,
    offset: u64,
    partial: Vec<u8>,
}

impl Tail {
    /// Of a file that need not exist yet.
    pub fn of(path: PathBuf) -> Self {
        Self { path, identity: None, offset: 0, partial: Vec::new() }
    }

    /// Hands on what came since the last call. A last line without an end waits for it.
    ///
    /// # Errors
    /// The file cannot be read; the next call goes on.
    pub fn read(&mut self, mut take: impl FnMut(Piece<'_>)) -> io::Result<()> {
        // A pipe in its place must not block.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.forget(None, &mut take);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let identity = (metadata.dev(), metadata.ino());
        if self.identity != Some(identity) || metadata.len() < self.offset {
            self.forget(Some(identity), &mut take);
        }
        if metadata.len() == self.offset {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.offset))?;
        self.lines(file, &mut take)
    }

    /// The next call begins at the start of the file, as the first one did.
    pub fn rewind(&mut self) {
        *self = Self::of(std::mem::take(&mut self.path));
    }

    fn forget(&mut self, identity: Option<(u64, u64)>, take: &mut impl FnMut(Piece<'_>)) {
        if self.identity.is_some() {
            take(Piece::Reset);
        }
        self.identity = identity;
        self.offset = 0;
        self.partial.clear();
    }

    fn lines(&mut self, mut file: File, take: &mut impl FnMut(Piece<'_>)) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.offset += count as u64;
            let mut rest = &buffer[..count];
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                self.keep(&rest[..end]);
                if let Ok(line) = std::str::from_utf8(&self.partial)
                    && self.partial.len() <= LONGEST_LINE
                {
                    take(Piece::Line(line));
                }
                self.partial.clear();
                rest = &rest[end + 1..];
            }
            self.keep(rest);
        }
    }

    /// Adds to the line in progress; of one that is too long no more than shows that.
    fn keep(&mut self, bytes: &[u8]) {
        let room = (LONGEST_LINE + 1).saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn read(tail: &mut Tail) -> Vec<String> {
        let mut found = Vec::new();
        tail.read(|piece| {
            found.push(match piece {
                Piece::Reset => "RESET".to_owned(),
                Piece::Line(line) => line.to_owned(),
            });
        })
        .unwrap();
        found
    }

    fn append(path: &Path, text: &str) {
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn whole_lines_come_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut tail = Tail::of(path.clone());
        assert!(read(&mut tail).is_empty());
        append(&path, "one\ntw");
        assert_eq!(read(&mut tail), ["one"]);
        append(&path, "o\n\nlast");
        assert_eq!(read(&mut tail), ["two", ""]);
        assert!(read(&mut tail).is_empty());
    }

    #[test]
    fn a_file_that_was_written_anew_begins_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        append(&path, "one\ntwo\n");
        let mut tail = Tail::of(path.clone());
        assert_eq!(read(&mut tail), ["one", "two"]);
        let other = folder.path().join("other");
        append(&other, "one\n");
        std::fs::rename(&other, &path).unwrap();
        append(&path, "three\n");
        assert_eq!(read(&mut tail), ["RESET", "one", "three"]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(&mut tail), ["RESET"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&mut tail), ["RESET"]);
        assert!(read(&mut tail).is_empty());
    }

    #[test]
    fn lines_without_end_take_no_memory_and_pipes_do_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        append(&path, &"x".repeat(1 << 20));
        append(&path, "\nshort\n");
        let mut tail = Tail::of(path.clone());
        assert_eq!(read(&mut tail), ["short"]);
        assert!(tail.partial.capacity() <= 4 * LONGEST_LINE);
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        assert!(tail.read(|_| {}).is_err());
    }
}
