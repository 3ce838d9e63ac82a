//! Parquet that is written: the columns of another Parquet file, copied as they are stored there, or texts; and beside them
//! a column of numbers and one of texts that are added.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};

use super::error::TableError;

/// Rows of a row group, where no other file says how many.
const GROUP_ROWS: usize = 1 << 16;

/// The names of the columns that are added; those of these names in the input are left out.
#[derive(Debug, Clone, Copy)]
pub struct AddedColumns {
    /// The numbers.
    pub number: &'static str,
    /// The texts.
    pub text: &'static str,
}

/// Writes a Parquet file, row by row.
pub struct ParquetWriter {
    writer: SerializedFileWriter<File>,
    path: PathBuf,
    kept: Kept,
    numbers: Vec<Option<f64>>,
    texts: Vec<Option<String>>,
}

/// What stands beside the added columns.
enum Kept {
    /// The texts of each column, of the rows that are not written yet.
    Texts(Vec<Vec<Option<String>>>),
    /// Columns of another file, by their numbers among its stored columns, in row groups of which some are written.
    Stored { source: File, columns: Vec<usize>, groups: std::vec::IntoIter<RowGroupMetaData> },
}

impl ParquetWriter {
    /// Writes `columns` of texts to `path`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn of_texts(path: &Path, columns: &[String], added: AddedColumns) -> std::result::Result<Self, TableError> {
        let fields = columns.iter().map(|name| text_column(name)).collect::<Result<Vec<_>>>();
        let kept = Kept::Texts(vec![Vec::new(); columns.len()]);
        fields.and_then(|fields| Self::create(path, fields, kept, added)).map_err(failed(path))
    }

    /// Writes the rows of the Parquet file `source` to `path`.
    ///
    /// # Errors
    /// The file cannot be made, or `source` not be read.
    pub fn of_file(path: &Path, source: &Path, added: AddedColumns) -> std::result::Result<Self, TableError> {
        let opened = || -> Result<Self> {
            let file = File::open(source)?;
            let reader = SerializedFileReader::new(file.try_clone()?)?;
            let metadata = reader.metadata();
            let is_kept = |name: &str| name != added.number && name != added.text;
            let schema = metadata.file_metadata().schema_descr();
            let columns = (0..schema.num_columns()).filter(|place| is_kept(schema.get_column_root(*place).name()));
            let columns = columns.collect();
            let fields = schema.root_schema().get_fields().iter().filter(|field| is_kept(field.name())).cloned();
            let mut groups = metadata.row_groups().to_vec();
            groups.retain(|group| group.num_rows() > 0);
            Self::create(
                path,
                fields.collect(),
                Kept::Stored { source: file, columns, groups: groups.into_iter() },
                added,
            )
        };
        opened().map_err(failed(path))
    }

    fn create(path: &Path, mut fields: Vec<TypePtr>, kept: Kept, added: AddedColumns) -> Result<Self> {
        let number = Type::primitive_type_builder(added.number, Physical::DOUBLE);
        fields.push(Arc::new(number.with_repetition(Repetition::OPTIONAL).build()?));
        fields.push(text_column(added.text)?);
        let schema = Type::group_type_builder("schema").with_fields(fields).build()?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .build();
        let writer = SerializedFileWriter::new(File::create(path)?, Arc::new(schema), Arc::new(properties))?;
        Ok(Self { writer, path: path.to_path_buf(), kept, numbers: Vec::new(), texts: Vec::new() })
    }

    /// Adds a row: its texts, where the columns are texts, and the values of the added columns.
    ///
    /// # Errors
    /// The disk refuses it.
    pub fn push(
        &mut self,
        texts: Vec<Option<String>>,
        number: Option<f64>,
        text: Option<String>,
    ) -> std::result::Result<(), TableError> {
        self.numbers.push(number);
        self.texts.push(text);
        let most = match &mut self.kept {
            Kept::Texts(columns) => {
                for (column, text) in columns.iter_mut().zip(texts) {
                    column.push(text);
                }
                GROUP_ROWS
            }
            Kept::Stored { groups, .. } => {
                groups.as_slice().first().map_or(GROUP_ROWS, |group| group.num_rows() as usize)
            }
        };
        if self.numbers.len() < most {
            return Ok(());
        }
        self.write_group().map_err(failed(&self.path))
    }

    /// Writes what is left, and the end of the file.
    ///
    /// # Errors
    /// The disk refuses it.
    pub fn finish(mut self) -> std::result::Result<(), TableError> {
        let path = self.path.clone();
        let finished = || -> Result<()> {
            if !self.numbers.is_empty() {
                self.write_group()?;
            }
            self.writer.close().map(|_| ())
        };
        finished().map_err(failed(&path))
    }

    fn write_group(&mut self) -> Result<()> {
        let mut group = self.writer.next_row_group()?;
        match &mut self.kept {
            Kept::Texts(columns) => {
                for column in columns {
                    write_texts(&mut group, &std::mem::take(column))?;
                }
            }
            Kept::Stored { source, columns, groups } => {
                let shorter = || ParquetError::General("the input has become shorter".to_owned());
                let stored = groups.next().ok_or_else(shorter)?;
                for place in columns {
                    let metadata = stored.column(*place).clone();
                    let stored = ColumnCloseResult {
                        bytes_written: metadata.compressed_size() as u64,
                        rows_written: stored.num_rows() as u64,
                        metadata,
                        bloom_filter: None,
                        column_index: None,
                        offset_index: None,
                    };
                    group.append_column(source, stored)?;
                }
            }
        }
        let levels: Vec<i16> = self.numbers.iter().map(|number| i16::from(number.is_some())).collect();
        let numbers: Vec<f64> = std::mem::take(&mut self.numbers).into_iter().flatten().collect();
        let mut column = group.next_column()?.ok_or_else(no_column)?;
        column.typed::<DoubleType>().write_batch(&numbers, Some(&levels), None)?;
        column.close()?;
        write_texts(&mut group, &std::mem::take(&mut self.texts))?;
        group.close().map(|_| ())
    }
}

fn write_texts(group: &mut SerializedRowGroupWriter<'_, File>, texts: &[Option<String>]) -> Result<()> {
    let levels: Vec<i16> = texts.iter().map(|text| i16::from(text.is_some())).collect();
    let texts: Vec<ByteArray> = texts.iter().flatten().map(|text| ByteArray::from(text.as_str())).collect();
    let mut column = group.next_column()?.ok_or_else(no_column)?;
    column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None)?;
    column.close()
}

fn text_column(name: &str) -> Result<TypePtr> {
    let column = Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(Some(LogicalType::String))
        .with_converted_type(ConvertedType::UTF8);
    column.build().map(Arc::new)
}

fn no_column() -> ParquetError {
    ParquetError::General("a column too many".to_owned())
}

fn failed(path: &Path) -> impl Fn(ParquetError) -> TableError {
    move |error| TableError::Unwritable { path: path.to_path_buf(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::{Cell, Table, TableOptions};
    use super::*;

    const ADDED: AddedColumns = AddedColumns { number: "prediction", text: "error" };

    fn cells(path: &Path) -> Vec<Vec<(String, Cell)>> {
        let rows = Table::open(path, &TableOptions::default()).unwrap();
        rows.map(|row| row.unwrap().cells().map(|(name, cell)| (name.to_owned(), cell.clone())).collect()).collect()
    }

    fn cell(name: &str, cell: Cell) -> (String, Cell) {
        (name.to_owned(), cell)
    }

    #[test]
    fn texts_come_back_with_what_is_added_and_a_second_time_with_it_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first.parquet"), folder.path().join("second.parquet"));
        let mut writer = ParquetWriter::of_texts(&first, &["id".to_owned(), "é".to_owned()], ADDED).unwrap();
        // More rows than one group has.
        let count = GROUP_ROWS + 3;
        for row in 0..count {
            let texts = vec![Some(row.to_string()), (row % 2 == 0).then(|| "x".to_owned())];
            let error = (row == 1).then(|| "why".to_owned());
            writer.push(texts, (row != 1).then_some(row as f64 / 8.0), error).unwrap();
        }
        writer.finish().unwrap();
        let read = cells(&first);
        assert_eq!(read.len(), count);
        let expected = [
            cell("id", Cell::Text("1".to_owned())),
            cell("é", Cell::Missing),
            cell("prediction", Cell::Missing),
            cell("error", Cell::Text("why".to_owned())),
        ];
        assert_eq!(read[1], expected);
        assert_eq!(read[count - 1][2].1, Cell::Number((count - 1) as f64 / 8.0));

        let mut writer = ParquetWriter::of_file(&second, &first, ADDED).unwrap();
        for row in 0..count {
            writer.push(Vec::new(), Some(-(row as f64)), None).unwrap();
        }
        writer.finish().unwrap();
        let again = cells(&second);
        assert_eq!(again.len(), count);
        for row in [0, 1, GROUP_ROWS, count - 1] {
            assert_eq!(again[row][..2], read[row][..2]);
            let added = [cell("prediction", Cell::Number(-(row as f64))), cell("error", Cell::Missing)];
            assert_eq!(again[row][2..], added);
        }
    }

    #[test]
    fn a_file_without_rows_has_its_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.parquet");
        ParquetWriter::of_texts(&path, &["id".to_owned()], ADDED).unwrap().finish().unwrap();
        let table = Table::open(&path, &TableOptions::default()).unwrap();
        assert_eq!(table.columns().unwrap(), ["id", "prediction", "error"]);
        assert_eq!(table.count(), 0);
        let nowhere = folder.path().join("no/folder.parquet");
        let refused = ParquetWriter::of_texts(&nowhere, &[], ADDED).err().unwrap().to_string();
        assert!(refused.contains("cannot write") && refused.contains("folder.parquet"), "{refused}");
    }
}
