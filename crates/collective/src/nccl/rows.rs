//! Rows as one buffer of words for an all-reduce that adds unsigned integers: a rank's own rows as they are, zero
//! elsewhere, so that the sum moves every bit.
//!
//! In front of each row stands a mark, the number of the unit, from its owner alone: after the sum it tells that the row
//! came from exactly one rank, and from this unit.

use numalign_projector::{MicroBatchGradients, Rows, digest_of};
use numalign_protocol::codec::{Digest, digest_of_rows};

use super::communicator::NcclError;
use crate::CollectiveError;

/// The mark of `unit`: never zero.
fn mark(unit: u64) -> u32 {
    (unit as u32 % (u32::MAX - 1)) + 1
}

/// `[micro_batches, 1 + row_len]` with this rank's rows.
pub(super) fn pack(
    unit: u64,
    micro_batches: usize,
    row_len: usize,
    rows: &MicroBatchGradients,
) -> Result<Vec<u32>, CollectiveError> {
    // The canonical container checks number and length of each row.
    let mut check = Rows::new(micro_batches, row_len);
    let mut words = vec![0u32; micro_batches * (1 + row_len)];
    for (micro_batch, row) in rows {
        check.insert(*micro_batch, row.clone())?;
        let start = micro_batch * (1 + row_len);
        words[start] = mark(unit);
        for (word, value) in words[start + 1..=start + row_len].iter_mut().zip(row) {
            *word = value.to_bits();
        }
    }
    Ok(words)
}

/// The rows of all ranks, from the summed buffer, and their digest.
pub(super) fn unpack(
    unit: u64,
    micro_batches: usize,
    row_len: usize,
    words: &[u32],
) -> Result<(Rows, Digest), CollectiveError> {
    let mut rows = Rows::new(micro_batches, row_len);
    let mut digests = Vec::with_capacity(micro_batches);
    for (micro_batch, part) in words.chunks_exact(1 + row_len).enumerate() {
        if part[0] != mark(unit) {
            let how = if part[0] == 0 { "came from no rank" } else { "came from several ranks, or of another unit" };
            return Err(NcclError::NotWhole { micro_batch, how }.into());
        }
        let row: Vec<f32> = part[1..].iter().map(|word| f32::from_bits(*word)).collect();
        digests.push(digest_of(&row));
        rows.insert(micro_batch, row)?;
    }
    Ok((rows, digest_of_rows(digests.iter())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NCCL does.
    fn summed(buffers: &[Vec<u32>]) -> Vec<u32> {
        let mut sum = vec![0u32; buffers[0].len()];
        for buffer in buffers {
            for (s, word) in sum.iter_mut().zip(buffer) {
                *s = s.wrapping_add(*word);
            }
        }
        sum
    }

    #[test]
    fn every_bit_arrives_from_every_owner() {
        let odd = [-0.0, f32::MIN_POSITIVE / 2.0, f32::NAN, f32::NEG_INFINITY, 1e-45];
        let all: MicroBatchGradients =
            (0..5).map(|i| (i, odd.iter().map(|v| v * (i as f32 + 1.0)).collect())).collect();
        let bits = |rows: &Rows| rows.concatenated().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (alone, digest) = unpack(9, 5, 5, &pack(9, 5, 5, &all).unwrap()).unwrap();
        let digests: Vec<Digest> = all.iter().map(|(_, row)| digest_of(row)).collect();
        assert_eq!(digest, digest_of_rows(digests.iter()));
        for split in 0..=5 {
            let (first, second) = (all[..split].to_vec(), all[split..].to_vec());
            let buffers = [first, second].map(|rows| pack(9, 5, 5, &rows).unwrap());
            let (rows, received) = unpack(9, 5, 5, &summed(&buffers)).unwrap();
            assert_eq!((bits(&rows), received), (bits(&alone), digest));
        }
        let expected: Vec<u32> = all.iter().flat_map(|(_, row)| row.iter().map(|v| v.to_bits())).collect();
        assert_eq!(bits(&alone), expected);
    }

    #[test]
    fn rows_that_are_missing_double_or_late_are_found() {
        let row = |i| vec![(i, vec![1.0f32])];
        let missing = pack(3, 2, 1, &row(0)).unwrap();
        let refused = |words: &[u32]| unpack(3, 2, 1, words).unwrap_err().to_string();
        assert!(refused(&missing).contains("micro-batch 1 came from no rank"));
        let twice = summed(&[missing.clone(), pack(3, 2, 1, &row(0)).unwrap(), pack(3, 2, 1, &row(1)).unwrap()]);
        assert!(refused(&twice).contains("micro-batch 0 came from several"));
        let late = summed(&[missing, pack(2, 2, 1, &row(1)).unwrap()]);
        assert!(refused(&late).contains("micro-batch 1 came from several ranks, or of another unit"));
        assert!(pack(0, 2, 1, &vec![(2, vec![1.0])]).is_err());
        assert_eq!(mark(0), 1);
        assert_ne!(mark(u64::from(u32::MAX)), 0);
    }
}
