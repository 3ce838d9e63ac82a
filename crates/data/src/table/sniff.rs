//! What a file is, before it is taken for a table.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use numalign_config::TableFormat;

/// A run reads its data again when it is continued, which a pipe does not allow; opening one may wait without end.
pub(super) fn regular(path: &Path) -> std::io::Result<()> {
    let kind = std::fs::metadata(path)?.file_type();
    let what = match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a device",
        () if kind.is_dir() => return Err(Error::new(ErrorKind::IsADirectory, "it is a folder; name the file in it")),
        () => return Ok(()),
    };
    let message = format!(
        "it is {what}, which gives its lines once, and a run may have to read them again; write them to a file"
    );
    Err(Error::new(ErrorKind::InvalidInput, message))
}

/// The format that a file's first bytes speak for.
pub(super) fn format(start: &[u8]) -> TableFormat {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    match text.first() {
        _ if start.starts_with(b"PAR1") => TableFormat::Parquet,
        Some(b'{' | b'[') | None => TableFormat::Jsonl,
        Some(_) => TableFormat::Csv,
    }
}

/// What the first bytes of a file say that it is, where that is neither JSONL nor CSV in UTF-8, and what to do with it.
pub(super) fn foreign(start: &[u8]) -> Option<&'static str> {
    const KNOWN: &[(&[u8], &str)] = &[
        (b"\xff\xfe", "in UTF-16; save it as UTF-8"),
        (b"\xfe\xff", "in UTF-16; save it as UTF-8"),
        (b"\x1f\x8b", "compressed with gzip; unpack it first (gunzip)"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first (zstd -d)"),
        (b"BZh", "compressed with bzip2; unpack it first (bunzip2)"),
        (b"\xfd7zXZ", "compressed with xz; unpack it first (unxz)"),
        (b"PK\x03\x04", "a zip archive or an Excel sheet; export it as CSV"),
        (b"\xd0\xcf\x11\xe0", "an old Excel sheet; export it as CSV"),
        (b"PAR1", "Parquet; name it .parquet, or set dataset.format to parquet"),
        (b"ARROW1", "Arrow; save it as Parquet"),
        (b"version https://git-lfs", "a pointer of Git LFS, not the file; fetch it with: git lfs pull"),
        (b"SQLite format 3", "an SQLite database; export the table as CSV"),
    ];
    let known = KNOWN.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, what)| *what);
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word));
    if begins(b"<!doctype") || begins(b"<html") {
        return Some("a web page, such as a login or an error; download the file itself");
    }
    // Two bytes for each character, without a mark at the start.
    let is_wide = |zero: usize| start.len() >= 8 && (0..4).all(|pair| start[2 * pair + zero] == 0);
    known.or_else(|| (is_wide(0) || is_wide(1)).then_some("in UTF-16; save it as UTF-8"))
}
