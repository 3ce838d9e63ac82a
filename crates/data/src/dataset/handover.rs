//! A dataset as one file, for another process of this program: the rows' contents, then where each ends, then the rest.
//! Whoever starts a coordinator hands it the file as an open descriptor, so that the table is read once.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::store::RowStore;
use super::{Dataset, Skipped};

/// Six counts and the digest, at the end of the file.
const FOOTER_BYTES: usize = 6 * 8 + blake3::OUT_LEN;

impl Dataset {
    /// Writes it into a file without a name.
    ///
    /// # Errors
    /// The disk refuses it.
    pub fn to_file(&self) -> io::Result<File> {
        let mut file = self.store.content_file()?;
        let content = self.store.content_bytes();
        file.seek(SeekFrom::Start(content))?;
        let numbers = self.numbers.as_deref().unwrap_or_default();
        let skipped = self.skipped.as_ref().map_or("", |skipped| skipped.first.as_str());
        let mut writer = BufWriter::new(&mut file);
        for end in self.store.ends() {
            writer.write_all(&end.to_le_bytes())?;
        }
        for place in self.train.iter().chain(&self.held_out).chain(numbers) {
            writer.write_all(&place.to_le_bytes())?;
        }
        writer.write_all(skipped.as_bytes())?;
        let counts = [
            content,
            self.store.len() as u64,
            self.train.len() as u64,
            self.held_out.len() as u64,
            skipped.len() as u64,
            self.skipped.as_ref().map_or(0, |skipped| skipped.rows),
        ];
        for count in counts {
            writer.write_all(&count.to_le_bytes())?;
        }
        writer.write_all(self.digest.as_bytes())?;
        writer.flush()?;
        drop(writer);
        Ok(file)
    }

    /// The inverse of [`Dataset::to_file`].
    ///
    /// # Errors
    /// The file cannot be read, or is none of that kind.
    pub fn from_file(mut file: File) -> io::Result<Dataset> {
        let length = file.metadata()?.len();
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, length.saturating_sub(FOOTER_BYTES as u64))?;
        let (counts, digest) = footer.split_at(6 * 8);
        let count = |place: usize| u64_of(&counts[8 * place..]);
        let (content, rows, train, held_out, text, skipped) =
            (count(0), count(1), count(2), count(3), count(4), count(5));
        let numbers = if skipped > 0 { rows } else { 0 };
        let places = u128::from(train) + u128::from(held_out) + u128::from(numbers);
        let expected =
            u128::from(content) + 8 * u128::from(rows) + 4 * places + u128::from(text) + FOOTER_BYTES as u128;
        if expected != u128::from(length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the rows that were handed over are not whole"));
        }
        file.seek(SeekFrom::Start(content))?;
        let mut reader = BufReader::new(&file);
        let ends = read_list::<8, u64>(&mut reader, rows, u64::from_le_bytes)?;
        let mut places = |count| read_list::<4, u32>(&mut reader, count, u32::from_le_bytes);
        let (train, held_out, numbers) = (places(train)?, places(held_out)?, places(numbers)?);
        let mut first = vec![0; text as usize];
        reader.read_exact(&mut first)?;
        let first = String::from_utf8_lossy(&first).into_owned();
        drop(reader);
        let mut hash = [0; blake3::OUT_LEN];
        hash.copy_from_slice(digest);
        Ok(Dataset {
            store: RowStore::of_file(file, content, ends)?,
            train,
            held_out,
            numbers: (skipped > 0).then_some(numbers),
            skipped: (skipped > 0).then_some(Skipped { rows: skipped, first }),
            digest: blake3::Hash::from_bytes(hash),
        })
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(value)
}

fn read_list<const BYTES: usize, T>(
    reader: &mut impl Read,
    count: u64,
    of: impl Fn([u8; BYTES]) -> T,
) -> io::Result<Vec<T>> {
    let mut list = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let mut bytes = [0; BYTES];
        reader.read_exact(&mut bytes)?;
        list.push(of(bytes));
    }
    Ok(list)
}
