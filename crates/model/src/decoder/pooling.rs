//! What [`PooledRead`]s mean for one batch: the blocks that run, and the mean over the rows that each of them reads.

use crate::error::ModelError;
use crate::lm::{PooledRead, ReadPositions};

/// [`PooledRead`]s applied to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolingPlan {
    /// Blocks that run.
    pub layers: usize,
    /// Whether the final norm is applied.
    pub final_norm: bool,
    /// Whether the last block that runs keeps only the last position of each sequence, so that its result is the
    /// read-out.
    pub last_only: bool,
    /// Sequences of the batch.
    sequences: usize,
    taps: Vec<Tap>,
}

/// One of the reads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tap {
    /// As [`PooledRead::layer`].
    layer: Option<usize>,
    /// Rows that are averaged for each sequence, ascending; `None` where the states hold the last positions only.
    rows: Option<Vec<Vec<usize>>>,
}

impl PoolingPlan {
    /// The plan for sequences of these lengths, laid one after another; `external` tells for each row whether an external
    /// embedding fills it.
    pub fn new(reads: &[PooledRead], blocks: usize, lengths: &[usize], external: &[bool]) -> Result<Self, ModelError> {
        let mut layers = 0;
        for read in reads {
            layers = layers.max(match read.layer {
                None => blocks,
                Some(layer) if layer <= blocks => layer,
                Some(layer) => return Err(ModelError::NoSuchLayer { layer, layers: blocks }),
            });
        }
        let final_norm = reads.iter().any(|read| read.layer.is_none());
        let is_deepest = |read: &PooledRead| read.layer.is_none_or(|layer| layer == layers);
        let keeps_last = |read: &PooledRead| read.positions == ReadPositions::Last;
        let last_only = layers > 0 && reads.iter().filter(|read| is_deepest(read)).all(keeps_last);
        let mut taps = Vec::with_capacity(reads.len());
        for read in reads {
            let rows = match last_only && is_deepest(read) {
                true => None,
                false => Some(rows_of(read.positions, lengths, external)?),
            };
            taps.push(Tap { layer: read.layer, rows });
        }
        Ok(Self { layers, final_norm, last_only, sequences: lengths.len(), taps })
    }

    /// Whether the states after block `layer` (`None`: after the final norm) are read.
    pub fn reads(&self, layer: Option<usize>) -> bool {
        self.taps.iter().any(|tap| tap.layer == layer)
    }

    /// Read-outs of all reads, `[sequences, reads · d]`, before any is made.
    pub fn unread(&self, d: usize) -> Vec<f32> {
        vec![0.0; self.sequences * self.taps.len() * d]
    }

    /// Puts into `pooled` ([`PoolingPlan::unread`]) what is read of the states after block `layer`: `[rows, d]`, or
    /// `[sequences, d]` where only the last positions were kept. Rows are added in ascending order, then divided by their
    /// number.
    pub fn pool(&self, layer: Option<usize>, states: &[f32], d: usize, pooled: &mut [f32]) {
        let width = self.taps.len() * d;
        for (place, tap) in self.taps.iter().enumerate().filter(|(_, tap)| tap.layer == layer) {
            for (sequence, out) in pooled.chunks_exact_mut(width).enumerate() {
                let out = &mut out[place * d..(place + 1) * d];
                let Some(rows) = &tap.rows else {
                    out.copy_from_slice(&states[sequence * d..(sequence + 1) * d]);
                    continue;
                };
                for row in &rows[sequence] {
                    for (o, h) in out.iter_mut().zip(&states[row * d..(row + 1) * d]) {
                        *o += h;
                    }
                }
                let count = rows[sequence].len() as f32;
                for o in out.iter_mut() {
                    *o /= count;
                }
            }
        }
    }

    /// The gradient of the states after block `layer` from that of all read-outs, `[sequences, reads · d]`: as many rows
    /// as [`PoolingPlan::pool`] was given, `total` where that is all of them. `None` where nothing is read there.
    pub fn spread(&self, layer: Option<usize>, grad: &[f32], d: usize, total: usize) -> Option<Vec<f32>> {
        let width = self.taps.len() * d;
        let mut out: Option<Vec<f32>> = None;
        for (place, tap) in self.taps.iter().enumerate().filter(|(_, tap)| tap.layer == layer) {
            let rows = if tap.rows.is_some() { total } else { self.sequences };
            let is_first = out.is_none();
            let out = out.get_or_insert_with(|| vec![0.0; rows * d]);
            for (sequence, grad) in grad.chunks_exact(width).enumerate() {
                let grad = &grad[place * d..(place + 1) * d];
                let alone = [sequence];
                let rows = tap.rows.as_ref().map_or(&alone[..], |rows| &rows[sequence]);
                let count = rows.len() as f32;
                for row in rows {
                    for (o, g) in out[row * d..(row + 1) * d].iter_mut().zip(grad) {
                        // Zero plus a negative zero would lose the sign.
                        *o = if is_first { g / count } else { *o + g / count };
                    }
                }
            }
        }
        out
    }
}

/// The rows of each sequence that are averaged.
fn rows_of(positions: ReadPositions, lengths: &[usize], external: &[bool]) -> Result<Vec<Vec<usize>>, ModelError> {
    let mut rows = Vec::with_capacity(lengths.len());
    let mut start = 0;
    for (sequence, length) in lengths.iter().enumerate() {
        let end = start + length;
        let of_sequence: Vec<usize> = match positions {
            ReadPositions::Last => (end - 1..end).collect(),
            ReadPositions::Mean => (start..end).collect(),
            ReadPositions::Embeddings => (start..end).filter(|row| external[*row]).collect(),
        };
        start = end;
        if of_sequence.is_empty() {
            return Err(ModelError::NothingToRead { sequence });
        }
        rows.push(of_sequence);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(positions: ReadPositions, layer: Option<usize>) -> PooledRead {
        PooledRead { positions, layer }
    }

    #[test]
    fn the_mean_is_taken_over_the_rows_that_are_read() {
        let external = [true, false, true, false, true];
        let plan = PoolingPlan::new(&[read(ReadPositions::Embeddings, Some(1))], 2, &[3, 2], &external).unwrap();
        assert_eq!((plan.layers, plan.final_norm, plan.last_only), (1, false, false));
        let hidden = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0, 5.0, 50.0];
        let mut pooled = plan.unread(2);
        plan.pool(Some(1), &hidden, 2, &mut pooled);
        assert_eq!(pooled, [2.0, 20.0, 5.0, 50.0]);
        let spread = plan.spread(Some(1), &[2.0, 4.0, 1.0, 3.0], 2, 5).unwrap();
        assert_eq!(spread, [1.0, 2.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 3.0]);
        assert_eq!(plan.spread(None, &[2.0, 4.0, 1.0, 3.0], 2, 5), None);
    }

    #[test]
    fn several_reads_stand_side_by_side_and_their_gradients_add_up() {
        let reads = [read(ReadPositions::Last, Some(0)), read(ReadPositions::Mean, Some(0)), PooledRead::default()];
        let plan = PoolingPlan::new(&reads, 2, &[2, 1], &[true; 3]).unwrap();
        assert_eq!((plan.layers, plan.final_norm, plan.last_only), (2, true, true));
        assert!(plan.reads(Some(0)) && !plan.reads(Some(2)) && plan.reads(None));
        let mut pooled = plan.unread(1);
        plan.pool(Some(0), &[1.0, 3.0, 5.0], 1, &mut pooled);
        plan.pool(None, &[7.0, 9.0], 1, &mut pooled);
        assert_eq!(pooled, [3.0, 2.0, 7.0, 5.0, 5.0, 9.0]);
        let grad = [1.0, 10.0, 100.0, 2.0, 20.0, 200.0];
        assert_eq!(plan.spread(Some(0), &grad, 1, 3).unwrap(), [5.0, 6.0, 22.0]);
        assert_eq!(plan.spread(None, &grad, 1, 3).unwrap(), [100.0, 200.0]);
        let deeper = [reads[0], read(ReadPositions::Mean, Some(2)), PooledRead::default()];
        assert!(!PoolingPlan::new(&deeper, 2, &[2, 1], &[true; 3]).unwrap().last_only);
        let embeddings_only = PoolingPlan::new(&reads[..2], 2, &[2, 1], &[true; 3]).unwrap();
        assert_eq!((embeddings_only.layers, embeddings_only.last_only), (0, false));
    }

    #[test]
    fn impossible_reads_are_errors() {
        let error = PoolingPlan::new(&[read(ReadPositions::Last, Some(3))], 2, &[1], &[true]).unwrap_err();
        assert!(matches!(error, ModelError::NoSuchLayer { layers: 2, .. }), "{error}");
        let reads = [read(ReadPositions::Embeddings, None)];
        let error = PoolingPlan::new(&reads, 2, &[1, 2], &[true, false, false]).unwrap_err();
        assert!(matches!(error, ModelError::NothingToRead { sequence: 1 }), "{error}");
    }
}
