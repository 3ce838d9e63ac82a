//! How the rows of a batch divide into sequences.

use crate::kernels::attention::Span;

/// Sequences up to this length count as short.
const SHORT: usize = 16;

/// What kind of rows a product is for. How many rows a pass has depends on how the work is spread over workers, and must
/// change no bit; the length of their sequences does not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// Of short sequences: there are few in most passes, so that a product's time is that of reading the weight.
    Short,
    /// Of long ones: there are many.
    Long,
}

/// Sequences laid one after another, and which of their rows the present step works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequences {
    lengths: Vec<usize>,
    /// Queries are the last positions only.
    last_only: bool,
}

impl Sequences {
    /// All positions of sequences with these lengths; each at least 1.
    pub fn all(lengths: Vec<usize>) -> Self {
        Self { lengths, last_only: false }
    }

    /// The same sequences, with one query each: its last position.
    pub fn last_positions(&self) -> Self {
        Self { lengths: self.lengths.clone(), last_only: true }
    }

    /// Positions of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// `of_sequence`'s entry for each row.
    pub fn of_each_row(&self, of_sequence: &[usize]) -> Vec<usize> {
        let mut rows = Vec::with_capacity(self.rows());
        for (entry, length) in of_sequence.iter().zip(&self.lengths) {
            rows.extend(std::iter::repeat_n(*entry, *length));
        }
        rows
    }

    /// Position of each query within its sequence.
    pub fn query_positions(&self) -> Vec<usize> {
        let mut positions = Vec::with_capacity(self.rows());
        for length in &self.lengths {
            positions.extend(if self.last_only { length - 1..*length } else { 0..*length });
        }
        positions
    }

    /// What kind of rows these are.
    pub fn kind(&self) -> RowKind {
        match self.lengths.iter().max() {
            Some(longest) if *longest > SHORT => RowKind::Long,
            _ => RowKind::Short,
        }
    }

    /// How many sequences there are.
    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Rows of keys and values.
    pub fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// True when every sequence has one position, so that attention passes values through.
    pub fn single_positions(&self) -> bool {
        self.lengths.iter().all(|length| *length == 1)
    }

    /// The common length, if there is one.
    pub fn uniform_length(&self) -> Option<usize> {
        let first = *self.lengths.first()?;
        self.lengths.iter().all(|length| *length == first).then_some(first)
    }

    /// True when only the last position of each sequence is a query.
    pub fn last_only(&self) -> bool {
        self.last_only
    }

    /// Row of each sequence's last position.
    pub fn last_rows(&self) -> Vec<usize> {
        let mut rows = Vec::with_capacity(self.lengths.len());
        let mut end = 0;
        for length in &self.lengths {
            end += length;
            rows.push(end - 1);
        }
        rows
    }

    /// Row ranges for the attention kernel.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::with_capacity(self.lengths.len());
        let mut keys_from = 0;
        for (i, &length) in self.lengths.iter().enumerate() {
            let (queries_from, queries) = if self.last_only { (i, 1) } else { (keys_from, length) };
            spans.push(Span { keys_from, length, queries_from, queries });
            keys_from += length;
        }
        spans
    }
}
