//! Rows one after another, each found by its place: in memory, or beyond some megabytes in a temporary file without a name,
//! so that a shuffled order over a large file costs neither memory nor a second decoding.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};

use crate::sample::{Input, Sample};

/// Bytes that are kept in memory.
const IN_MEMORY: usize = 64 << 20;

/// Bytes of a mapped file that may stay in memory.
const RESIDENT: usize = 32 << 20;

/// Bytes that the system reads around a byte that is asked for.
const READ_AROUND: usize = 64 << 10;

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
        let Some(file) = self.file else {
            return Ok(RowStore { bytes: Bytes::Memory(self.memory), ends: self.ends, touched: AtomicUsize::new(0) });
        };
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let length = self.ends.last().copied().unwrap_or(0);
        RowStore::mapped(file, length, self.ends)
    }
}

/// Rows by their places, counted from 0.
#[derive(Debug)]
pub(super) struct RowStore {
    bytes: Bytes,
    ends: Vec<u64>,
    /// Of a mapped file, since its pages were given back last.
    touched: AtomicUsize,
}

#[derive(Debug)]
enum Bytes {
    Memory(Vec<u8>),
    Mapped { map: Mmap, file: File },
}

impl RowStore {
    /// The rows that `file` begins with: `length` bytes, each row up to its end.
    pub(super) fn of_file(file: File, length: u64, ends: Vec<u64>) -> io::Result<Self> {
        let is_ascending = ends.windows(2).all(|pair| pair[0] <= pair[1]);
        if !is_ascending || ends.last().is_none_or(|last| *last != length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the rows' places contradict each other"));
        }
        if length > IN_MEMORY as u64 {
            return Self::mapped(file, length, ends);
        }
        let mut memory = vec![0; length as usize];
        file.read_exact_at(&mut memory, 0)?;
        Ok(Self { bytes: Bytes::Memory(memory), ends, touched: AtomicUsize::new(0) })
    }

    fn mapped(file: File, length: u64, ends: Vec<u64>) -> io::Result<Self> {
        // SAFETY: the file has no name, and who has it open only ever appends to it.
        let map = unsafe { MmapOptions::new().len(length as usize).map(&file) }?;
        Ok(Self { bytes: Bytes::Mapped { map, file }, ends, touched: AtomicUsize::new(0) })
    }

    /// A file without a name that begins with the rows.
    pub(super) fn content_file(&self) -> io::Result<File> {
        match &self.bytes {
            Bytes::Mapped { file, .. } => file.try_clone(),
            Bytes::Memory(bytes) => {
                let mut file = tempfile::tempfile()?;
                file.write_all(bytes)?;
                Ok(file)
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all rows.
    pub(super) fn content_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Where each row ends.
    pub(super) fn ends(&self) -> &[u64] {
        &self.ends
    }

    /// The bytes of a row, as they were pushed.
    pub(super) fn content(&self, place: usize) -> &[u8] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        let bytes: &[u8] = match &self.bytes {
            Bytes::Memory(bytes) => bytes,
            Bytes::Mapped { map, .. } => {
                self.give_back(map, (self.ends[place] - start) as usize);
                map
            }
        };
        &bytes[start as usize..self.ends[place] as usize]
    }

    /// Gives a mapped file's pages back now and then: they are read again where they are asked for, and a run over a large
    /// file does not come to hold all of it.
    fn give_back(&self, map: &Mmap, bytes: usize) {
        let more = bytes.max(READ_AROUND);
        if self.touched.fetch_add(more, Ordering::Relaxed) + more < RESIDENT {
            return;
        }
        self.touched.store(0, Ordering::Relaxed);
        // SAFETY: the map is of a file and read-only, so that what is given back is read from the file again. Where the
        // system refuses the advice, it only costs memory.
        let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
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
