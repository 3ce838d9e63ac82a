//! What a [`PooledRead`] means for one batch: the blocks that run, and the mean over the rows that are read.

use crate::error::ModelError;
use crate::lm::{PooledRead, ReadPositions};

/// [`PooledRead`] applied to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolingPlan {
    /// Blocks that run.
    pub layers: usize,
    /// Whether the final norm is applied.
    pub final_norm: bool,
    /// Rows that are averaged for each sequence, ascending; `None` if the last block keeps the last positions only,
    /// so that its result is the read-out.
    rows: Option<Vec<Vec<usize>>>,
}

impl PoolingPlan {
    /// The plan for sequences of these lengths, laid one after another; `external` tells for each row whether an external
    /// embedding fills it.
    pub fn new(read: PooledRead, blocks: usize, lengths: &[usize], external: &[bool]) -> Result<Self, ModelError> {
        let layers = match read.layer {
            None => blocks,
            Some(layer) if (1..=blocks).contains(&layer) => layer,
            Some(layer) => return Err(ModelError::NoSuchLayer { layer, layers: blocks }),
        };
        let rows = match read.positions {
            ReadPositions::Last => None,
            ReadPositions::Mean | ReadPositions::Embeddings => {
                let mut rows = Vec::with_capacity(lengths.len());
                let mut start = 0;
                for (sequence, length) in lengths.iter().enumerate() {
                    let everything = read.positions == ReadPositions::Mean;
                    let wanted = (start..start + length).filter(|row| everything || external[*row]);
                    let of_sequence: Vec<usize> = wanted.collect();
                    start += length;
                    if of_sequence.is_empty() {
                        return Err(ModelError::NothingToRead { sequence });
                    }
                    rows.push(of_sequence);
                }
                Some(rows)
            }
        };
        Ok(Self { layers, final_norm: read.layer.is_none(), rows })
    }

    /// Whether the last block that runs keeps only the last position of each sequence.
    pub fn last_only(&self) -> bool {
        self.rows.is_none()
    }

    /// Read-outs `[sequences, d]` from what the stack returned: `[rows, d]`, or already `[sequences, d]`.
    /// Rows are added in ascending order, then divided by their number.
    pub fn pool(&self, hidden: Vec<f32>, d: usize) -> Vec<f32> {
        let Some(rows) = &self.rows else {
            return hidden;
        };
        let mut pooled = vec![0.0f32; rows.len() * d];
        for (out, rows) in pooled.chunks_exact_mut(d).zip(rows) {
            for row in rows {
                for (o, h) in out.iter_mut().zip(&hidden[row * d..(row + 1) * d]) {
                    *o += h;
                }
            }
            let count = rows.len() as f32;
            for o in out.iter_mut() {
                *o /= count;
            }
        }
        pooled
    }

    /// The gradient of what [`PoolingPlan::pool`] was given, from that of its result; `total` is the number of rows.
    pub fn spread(&self, grad: &[f32], d: usize, total: usize) -> Vec<f32> {
        let Some(rows) = &self.rows else {
            return grad.to_vec();
        };
        let mut out = vec![0.0f32; total * d];
        for (grad, rows) in grad.chunks_exact(d).zip(rows) {
            let count = rows.len() as f32;
            for row in rows {
                for (o, g) in out[row * d..(row + 1) * d].iter_mut().zip(grad) {
                    *o = g / count;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_taken_over_the_rows_that_are_read() {
        let read = PooledRead { positions: ReadPositions::Embeddings, layer: Some(1) };
        let external = [true, false, true, false, true];
        let plan = PoolingPlan::new(read, 2, &[3, 2], &external).unwrap();
        assert_eq!((plan.layers, plan.final_norm, plan.last_only()), (1, false, false));
        let hidden = vec![1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0, 5.0, 50.0];
        assert_eq!(plan.pool(hidden, 2), [2.0, 20.0, 5.0, 50.0]);
        let spread = plan.spread(&[2.0, 4.0, 1.0, 3.0], 2, 5);
        assert_eq!(spread, [1.0, 2.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 3.0]);
    }

    #[test]
    fn impossible_reads_are_errors() {
        let layer = |layer| PooledRead { positions: ReadPositions::Last, layer: Some(layer) };
        for wrong in [0, 3] {
            let error = PoolingPlan::new(layer(wrong), 2, &[1], &[true]).unwrap_err();
            assert!(matches!(error, ModelError::NoSuchLayer { layers: 2, .. }), "{error}");
        }
        let read = PooledRead { positions: ReadPositions::Embeddings, layer: None };
        let error = PoolingPlan::new(read, 2, &[1, 2], &[true, false, false]).unwrap_err();
        assert!(matches!(error, ModelError::NothingToRead { sequence: 1 }), "{error}");
    }
}
