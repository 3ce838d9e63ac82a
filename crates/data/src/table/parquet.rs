//! Parquet, as `pandas` and Hugging Face datasets write it: uncompressed, or with snappy, gzip or zstd.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;

use super::cell::Cell;
use super::error::TableError;
use super::{ReadRows, Row};
use crate::text::excerpt;

/// Characters of a nested value that are kept for messages.
const SHOWN_OF_NESTED: usize = 200;

/// The columns and rows of a Parquet file.
pub(super) fn rows(file: File, path: &Path) -> Result<(Arc<[String]>, Rows), TableError> {
    let refused = |reason| TableError::Parquet { path: path.to_path_buf(), reason };
    let opened =
        guarded(|| SerializedFileReader::new(file)).and_then(|reader| reader.map_err(|error| error.to_string()));
    let reader = opened.map_err(refused)?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<String> = schema.get_fields().iter().map(|field| field.name().to_string()).collect();
    for (place, name) in names.iter().enumerate() {
        if names[..place].contains(name) {
            return Err(refused(format!("two columns are called {name:?}")));
        }
    }
    let columns: Arc<[String]> = names.into();
    let rows = RowIter::from_file_into(Box::new(reader));
    Ok((columns.clone(), Rows { rows, path: path.to_path_buf(), columns, row: 0 }))
}

/// The rows of a Parquet file.
pub(super) struct Rows {
    rows: RowIter<'static>,
    path: PathBuf,
    columns: Arc<[String]>,
    row: u64,
}

impl ReadRows for Rows {
    fn next_row(&mut self) -> Result<Option<Row>, TableError> {
        let next = guarded(|| self.rows.next()).and_then(|row| row.transpose().map_err(|error| error.to_string()));
        let next = next.map_err(|reason| TableError::Parquet {
            path: self.path.clone(),
            reason: unread_compression(&reason).unwrap_or_else(|| format!("{reason} (behind row {})", self.row)),
        })?;
        let Some(row) = next else {
            return Ok(None);
        };
        self.row += 1;
        let cells = row.into_columns().into_iter().map(|(_, field)| cell(field)).collect();
        Ok(Some(Row { line: self.row, names: self.columns.clone(), cells }))
    }
}

/// The library calls a compression that it was built without a disabled feature.
fn unread_compression(reason: &str) -> Option<String> {
    let (_, name) = reason.split_once("Disabled feature at compile time: ")?;
    Some(format!("it is compressed with {name}; save it with snappy, gzip or zstd, or uncompressed"))
}

/// The library panics on some damaged files where it should refuse them.
fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| "it is damaged".to_string())
}

fn cell(field: Field) -> Cell {
    match field {
        Field::Null => Cell::Missing,
        Field::Bool(value) => Cell::Bool(value),
        Field::Byte(value) => Cell::Whole(value.into()),
        Field::Short(value) => Cell::Whole(value.into()),
        Field::Int(value) => Cell::Whole(value.into()),
        Field::Long(value) => Cell::Whole(value),
        Field::UByte(value) => Cell::Whole(value.into()),
        Field::UShort(value) => Cell::Whole(value.into()),
        Field::UInt(value) => Cell::Whole(value.into()),
        Field::ULong(value) => i64::try_from(value).map_or(Cell::Number(value as f64), Cell::Whole),
        Field::Float16(value) => Cell::Number(value.into()),
        // The decimal number that the writer had, not the digits of its binary neighbour.
        Field::Float(value) => Cell::Number(value.to_string().parse().unwrap_or(f64::from(value))),
        Field::Double(value) => Cell::Number(value),
        Field::Str(text) => Cell::Text(text),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Cell::Text(text.to_string()),
            Err(_) => Cell::Nested { kind: "bytes that are no text", shown: String::new() },
        },
        Field::ListInternal(_) | Field::MapInternal(_) => nested("a list", &field),
        Field::Group(_) => nested("an object", &field),
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Cell::Text(field.to_string()),
    }
}

fn nested(kind: &'static str, field: &Field) -> Cell {
    Cell::Nested { kind, shown: excerpt(&field.to_string(), SHOWN_OF_NESTED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unread_compression_is_told_in_words() {
        let said = unread_compression("Parquet error: Disabled feature at compile time: brotli").unwrap();
        assert!(said.contains("compressed with brotli; save it with snappy"), "{said}");
        assert_eq!(unread_compression("Corrupt footer"), None);
    }
}
