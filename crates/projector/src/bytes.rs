//! Floats as little-endian bytes: one way of writing and reading them for states, tensors, messages and digests.

use bytemuck::{AnyBitPattern, NoUninit};

const _: () =
    assert!(cfg!(target_endian = "little"), "numalign's formats are little-endian, read and written in place");

/// The bytes of `values`.
pub fn le_bytes<T: NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// The floats in `bytes`; what is left over at the end is dropped.
pub fn floats_from_le<T: AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// BLAKE3 of little-endian floats: stands for rows where only their equality matters.
pub fn digest_of(values: &[f32]) -> [u8; 32] {
    *blake3::hash(le_bytes(values)).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_both_widths_survive_at_any_offset() {
        let (narrow, wide) = ([1.5f32, -0.0, f32::MIN_POSITIVE], [2.5f64, f64::MAX]);
        assert_eq!(le_bytes(&narrow)[..4], 1.5f32.to_le_bytes());
        for offset in 0..8 {
            let shifted = [&vec![0; offset], le_bytes(&narrow), &[7]].concat();
            assert_eq!(floats_from_le::<f32>(&shifted[offset..]), narrow);
            let shifted = [&vec![0; offset], le_bytes(&wide)].concat();
            assert_eq!(floats_from_le::<f64>(&shifted[offset..]), wide);
        }
        assert_eq!(digest_of(&narrow), *blake3::hash(le_bytes(&narrow)).as_bytes());
    }
}
