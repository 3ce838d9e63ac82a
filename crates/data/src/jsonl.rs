//! JSONL files: one `{"input": …, "output": …}` per line, both a string or a number.
//!
//! [`read_file`] reads a file, [`write_line`] writes one line of it. Lines end with LF or CRLF, the last one with or without; a byte order mark
//! at the start is skipped; a blank line is refused.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use numalign_config::Stage;

use crate::error::DataError;
use crate::sample::{Input, Sample};
use crate::text::excerpt;

mod line;

pub use line::{MOST_LINE_BYTES, parse_line, write_line};

/// Characters of a bad line that an error message shows.
const SHOWN_CHARS: usize = 60;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The samples of a file, in file order.
#[derive(Debug, Clone)]
pub struct FileSamples {
    /// The inputs of stage `nn`; empty in the others.
    numbers: Vec<f64>,
    /// The inputs of the other stages one after another, and where each ends; empty in `nn`.
    texts: String,
    text_ends: Vec<usize>,
    targets: Vec<f64>,
    digest: blake3::Hash,
}

impl FileSamples {
    /// Samples in the file.
    #[allow(clippy::len_without_is_empty, reason = "a file without samples is refused")]
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// The sample of line `line` (counted from 0, below [`FileSamples::len`]) under the stream index `index`.
    pub fn sample(&self, line: usize, index: u64) -> Sample {
        let input = match self.numbers.get(line) {
            Some(value) => Input::Number(*value),
            None => {
                let start = if line == 0 { 0 } else { self.text_ends[line - 1] };
                Input::Text(self.texts[start..self.text_ends[line]].to_string())
            }
        };
        Sample { index, input, target: self.targets[line] }
    }

    /// BLAKE3 over [`Sample::content_bytes`] of every line in file order: what the file says, however it is
    /// formatted.
    pub fn digest(&self) -> blake3::Hash {
        self.digest
    }

    fn push(&mut self, sample: Sample) {
        match sample.input {
            Input::Number(value) => self.numbers.push(value),
            Input::Text(text) => {
                self.texts.push_str(&text);
                self.text_ends.push(self.texts.len());
            }
        }
        self.targets.push(sample.target);
    }
}

/// Reads the samples of a file for `stage`.
///
/// # Errors
/// A file that cannot be read or holds nothing, or the first bad line, with its number and what is wrong with it.
pub fn read_file(path: &Path, stage: Stage) -> Result<FileSamples, DataError> {
    let io_error = |source| DataError::Io { path: path.to_path_buf(), source };
    regular(path)
        .and_then(|()| File::open(path))
        .map_err(io_error)
        .and_then(|file| read_lines(BufReader::new(file), path, stage))
}

/// A run reads its data again when it is continued, which a pipe does not allow; opening one may wait without end.
fn regular(path: &Path) -> std::io::Result<()> {
    let kind = std::fs::metadata(path)?.file_type();
    let what = match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a device",
        () => return Ok(()),
    };
    let message = format!(
        "it is {what}, which gives its lines once, and a run may have to read them again; write them to a file"
    );
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message))
}

/// As [`read_file`], from any reader; `path` only names it in errors.
///
/// # Errors
/// As [`read_file`].
pub fn read_lines(mut reader: impl BufRead, path: &Path, stage: Stage) -> Result<FileSamples, DataError> {
    let io_error = |source| DataError::Io { path: path.to_path_buf(), source };
    let mut samples = FileSamples {
        numbers: Vec::new(),
        texts: String::new(),
        text_ends: Vec::new(),
        targets: Vec::new(),
        digest: blake3::hash(b""),
    };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::new();
    let mut line = 0;
    while read_line(&mut reader, &mut buffer).map_err(io_error)? {
        line += 1;
        let mut content = without_line_ending(&buffer);
        if line == 1 {
            content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
            if buffer == BYTE_ORDER_MARK {
                break;
            }
        }
        let sample = parse_line(content, stage).map_err(|problem| DataError::BadLine {
            path: path.to_path_buf(),
            line,
            problem,
            excerpt: line_excerpt(content),
        })?;
        hasher.update(&sample.content_bytes());
        samples.push(sample);
    }
    if samples.targets.is_empty() {
        return Err(DataError::EmptyFile { path: path.to_path_buf() });
    }
    samples.digest = hasher.finalize();
    Ok(samples)
}

/// Reads the next line with its ending into `buffer`; false at the end. Of a line that is too long, only as much
/// is read as shows that it is.
fn read_line(reader: &mut impl BufRead, buffer: &mut Vec<u8>) -> std::io::Result<bool> {
    let longest = BYTE_ORDER_MARK.len() + MOST_LINE_BYTES + b"\r\n".len();
    buffer.clear();
    Ok(reader.take(longest as u64).read_until(b'\n', buffer)? > 0)
}

fn line_excerpt(content: &[u8]) -> String {
    // A character has at most four bytes.
    let start = &content[..content.len().min(4 * SHOWN_CHARS + 1)];
    excerpt(&String::from_utf8_lossy(start), SHOWN_CHARS)
}

fn without_line_ending(line: &[u8]) -> &[u8] {
    match line {
        [content @ .., b'\r', b'\n'] | [content @ .., b'\n'] => content,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LineProblem;
    use crate::generate::Generator;
    use crate::random::Domain;
    use crate::stream::test_recipe;
    use proptest::prelude::*;

    fn read(content: impl AsRef<[u8]>, stage: Stage) -> Result<FileSamples, DataError> {
        read_lines(content.as_ref(), Path::new("data.jsonl"), stage)
    }

    fn line(input: &str, output: &str) -> String {
        format!("{{\"input\": {input}, \"output\": {output}}}")
    }

    #[test]
    fn a_bad_line_is_named_with_file_and_number() {
        let content = format!("{}\n{{\"input\": 1}}\n", line("1", "1"));
        let message = read(content, Stage::Nn).unwrap_err().to_string();
        let expected = "data.jsonl, line 2: missing key \"output\"; the line begins \"{\\\"input\\\": 1}\"";
        assert_eq!(message, expected);
    }

    #[test]
    fn accepts_either_line_ending_and_a_byte_order_mark() {
        let (first, second) = (line("1", "2"), line("3", "4"));
        let plain = read(format!("{first}\n{second}\n"), Stage::Nn).unwrap();
        let variants = [
            format!("{first}\n{second}"),
            format!("{first}\r\n{second}\r\n"),
            format!("\u{feff}{first}\n{second}\r"),
            format!("{{ \"output\" : \"2\", \"input\": 1.0 }}\n{second}\n"),
        ];
        for variant in variants {
            let other = read(&variant, Stage::Nn).unwrap();
            assert_eq!((other.len(), other.digest()), (2, plain.digest()), "{variant}");
        }
        let swapped = read(format!("{second}\n{first}\n"), Stage::Nn).unwrap();
        assert_ne!(swapped.digest(), plain.digest());
    }

    #[test]
    fn refuses_blank_lines_and_files_without_samples() {
        let sample = line("1", "2");
        let cases = [(format!("{sample}\n\n"), 2), (format!("{sample}\n \t\r\n{sample}\n"), 2), ("\n".into(), 1)];
        for (content, number) in cases {
            let Err(DataError::BadLine { line, problem, .. }) = read(&content, Stage::Nn) else { panic!() };
            assert_eq!((line, problem), (number, LineProblem::Blank));
        }
        for content in ["", "\u{feff}"] {
            assert!(matches!(read(content, Stage::Nn), Err(DataError::EmptyFile { .. })));
        }
        let missing = read_file(Path::new("/no/such/file"), Stage::Nn);
        assert!(matches!(missing, Err(DataError::Io { .. })));
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read_file(folder.path(), Stage::Nn), Err(DataError::Io { .. })));
    }

    #[test]
    fn the_line_limit_is_exact_and_an_endless_line_is_not_read() {
        let overhead = line("\"\"", "1").len();
        let longest = line(&format!("\"{}\"", "x".repeat(MOST_LINE_BYTES - overhead)), "1");
        let samples = read(format!("\u{feff}{longest}\r\n{longest}\n"), Stage::Text).unwrap();
        assert_eq!(samples.len(), 2);
        let endless = BufReader::new(std::io::repeat(b'x'));
        let refused = read_lines(endless, Path::new("data.jsonl"), Stage::Text);
        let Err(DataError::BadLine { problem, excerpt, .. }) = refused else { panic!() };
        assert_eq!(problem, LineProblem::TooLong { limit: MOST_LINE_BYTES });
        assert!(excerpt.chars().count() <= SHOWN_CHARS + 1);
    }

    #[test]
    fn generated_samples_survive_a_file() {
        for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
            let generator = Generator::new(&test_recipe(stage), Domain::Train).unwrap();
            let written: Vec<Sample> = (0..200).map(|index| generator.sample(index)).collect();
            let content: String = written.iter().map(|sample| write_line(sample) + "\n").collect();
            let samples = read(content, stage).unwrap();
            for (place, sample) in written.into_iter().enumerate() {
                assert_eq!(samples.sample(place, sample.index), sample);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>, text in "[\\{\\}\\[\\]\":,$&0-9a-z \\n]{0,60}") {
            for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
                let _ = read(&bytes, stage);
                let _ = read(&text, stage);
            }
        }
    }
}
