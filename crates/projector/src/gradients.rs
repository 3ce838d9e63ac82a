//! The rows that one rank computed of a unit, and their canonical sum where it computed all of them.

use crate::reduction::{RowError, Rows};

/// One flattened gradient per micro-batch computed by this rank: the micro-batch's index in the unit, then
/// [`Layout::row_len`](crate::Layout::row_len) floats, the gradient of every trainable number and the micro-batch's share
/// of the loss. Evaluations put their error sums in rows of the same length, chunks of the solver's rounds the features
/// of their samples, `[samples, k·d+1]`.
pub type MicroBatchGradients = Vec<(usize, Vec<f32>)>;

/// The canonical sum `[row_len]` of `micro_batches` rows that are all here.
///
/// # Errors
/// A row that is missing, comes twice with other bits, or has another length than `row_len`.
pub fn canonical_sum(rows: MicroBatchGradients, micro_batches: usize, row_len: usize) -> Result<Vec<f32>, RowError> {
    let mut all = Rows::new(micro_batches, row_len);
    for (micro_batch, row) in rows {
        all.insert(micro_batch, row)?;
    }
    all.sum()
}
