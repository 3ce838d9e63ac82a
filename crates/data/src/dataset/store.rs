//! Rows one after another, each found by its place: in memory, or beyond some megabytes in a temporary file without a name,
//! so that a shuffled order over a large file costs neither memory nor a second decoding.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use crate::sample::{Input, Sample};

/// Bytes that are kept in memory.
const IN_MEMORY: usize = 64 << 20;

/// Rows while they are written.
pub(super) struct RowWriter {
    memory: Vec<u8>,
    file: Option<BufWriter<File>>,
    ends: Vec<u64>,
    in_memory: usize,
}

impl RowWriter {
    pub(super) fn new() -> Self {
        Self::keeping(IN_MEMORY)
    }

    fn keeping(in_memory: usize) -> Self {
        Self { memory: Vec::new(), file: None, ends: Vec::new(), in_memory }
    }

    /// Adds a row: [`Sample::content_bytes`].
    pub(super) fn push(&mut self, content: &[u8]) -> io::Result<()> {
        let end = self.ends.last().copied().unwrap_or(0) + content.len() as u64;
        self.ends.push(end);
        if self.file.is_none() {
            if self.memory.len() + content.len() <= self.in_memory {
                self.memory.extend(content);
                return Ok(());
            }
            let mut file = BufWriter::new(tempfile::tempfile()?);
            file.write_all(&std::mem::take(&mut self.memory))?;
            self.file = Some(file);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(content))
    }

    pub(super) fn finish(self) -> io::Result<RowStore> {
        let bytes = match self.file {
            None => Bytes::Memory(self.memory),
            Some(file) => {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                // SAFETY: the file has no name, so that no other program can change or shorten it.
                Bytes::Mapped(unsafe { memmap2::Mmap::map(&file) }?)
            }
        };
        Ok(RowStore { bytes, ends: self.ends })
    }
}

/// Rows by their places, counted from 0.
#[derive(Debug)]
pub(super) struct RowStore {
    bytes: Bytes,
    ends: Vec<u64>,
}

#[derive(Debug)]
enum Bytes {
    Memory(Vec<u8>),
    Mapped(memmap2::Mmap),
}

impl RowStore {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a row, as they were pushed.
    pub(super) fn content(&self, place: usize) -> &[u8] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        let bytes: &[u8] = match &self.bytes {
            Bytes::Memory(bytes) => bytes,
            Bytes::Mapped(bytes) => bytes,
        };
        &bytes[start as usize..self.ends[place] as usize]
    }

    /// The sample of a row, with the index 0.
    pub(super) fn sample(&self, place: usize) -> Sample {
        decoded(self.content(place))
    }
}

/// The inverse of [`Sample::content_bytes`].
fn decoded(content: &[u8]) -> Sample {
    let (head, target) = content.split_at(content.len() - 8);
    let input = match head {
        [0, value @ ..] => Input::Number(f64_of(value)),
        // A kind, a length, and the text itself.
        _ => Input::Text(String::from_utf8_lossy(head.get(9..).unwrap_or_default()).into_owned()),
    };
    Sample { index: 0, input, target: f64_of(target) }
}

fn f64_of(bytes: &[u8]) -> f64 {
    let mut bits = [0; 8];
    bits.copy_from_slice(&bytes[..8]);
    f64::from_le_bytes(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_memory_and_from_a_file() {
        let samples: Vec<Sample> = (0..50u32)
            .map(|row| Sample {
                index: 0,
                input: if row % 2 == 0 { Input::Number(row.into()) } else { Input::Text("é".repeat(row as usize)) },
                target: f64::from(row) / 7.0,
            })
            .collect();
        for in_memory in [0, 100, IN_MEMORY] {
            let mut writer = RowWriter::keeping(in_memory);
            for sample in &samples {
                writer.push(&sample.content_bytes()).unwrap();
            }
            let store = writer.finish().unwrap();
            assert_eq!(matches!(store.bytes, Bytes::Memory(_)), in_memory == IN_MEMORY);
            let back: Vec<Sample> = (0..store.len()).map(|place| store.sample(place)).collect();
            assert_eq!(back, samples);
        }
        assert_eq!(RowWriter::new().finish().unwrap().len(), 0);
    }
}
