//! Byte codecs: floats travel as little-endian `f32`, digests as 32 bytes.

/// BLAKE3, or any other digest of this length.
pub type Digest = [u8; 32];

/// Why the content of a message cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The length is no multiple of four.
    #[error("{0} bytes are not whole floats")]
    NotWholeFloats(usize),
    /// A digest of another length.
    #[error("a digest has {0} bytes instead of 32")]
    NotADigest(usize),
    /// The bytes are not those that the digest was made of.
    #[error("the numbers are not those of their digest")]
    Changed,
}

/// Little-endian bytes of `values`, four each.
pub fn floats_to_bytes(values: &[f32]) -> Vec<u8> {
    if cfg!(target_endian = "little") {
        return bytemuck::cast_slice(values).to_vec();
    }
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The floats in `bytes`, bit for bit.
///
/// # Errors
/// [`CodecError::NotWholeFloats`] if the length is no multiple of four.
pub fn floats_from_bytes(bytes: &[u8]) -> Result<Vec<f32>, CodecError> {
    if !bytes.len().is_multiple_of(4) {
        return Err(CodecError::NotWholeFloats(bytes.len()));
    }
    let mut values = vec![0.0; bytes.len() / 4];
    bytemuck::cast_slice_mut::<f32, u8>(&mut values).copy_from_slice(bytes);
    if cfg!(target_endian = "big") {
        for value in &mut values {
            *value = f32::from_bits(value.to_bits().swap_bytes());
        }
    }
    Ok(values)
}

/// The digest that `bytes` are.
///
/// # Errors
/// [`CodecError::NotADigest`] if there are not 32 bytes.
pub fn digest_from_bytes(bytes: &[u8]) -> Result<Digest, CodecError> {
    bytes.try_into().map_err(|_| CodecError::NotADigest(bytes.len()))
}

/// One digest of all rows of a unit: BLAKE3 of their digests, in micro-batch order.
pub fn digest_of_rows<'a>(digests: impl Iterator<Item = &'a Digest>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for digest in digests {
        hasher.update(digest);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_byte_order_is_fixed() {
        assert_eq!(floats_to_bytes(&[1.0, -2.0]), [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
        assert_eq!(floats_from_bytes(&[0, 0, 0x80, 0x3f]), Ok(vec![1.0]));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert_eq!(floats_from_bytes(&[0; 7]), Err(CodecError::NotWholeFloats(7)));
        assert_eq!(digest_from_bytes(&[0; 31]), Err(CodecError::NotADigest(31)));
    }

    proptest! {
        #[test]
        fn floats_keep_every_bit(bits in prop::collection::vec(any::<u32>(), 0..200)) {
            let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
            let back = floats_from_bytes(&floats_to_bytes(&values)).unwrap();
            prop_assert_eq!(back.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), bits);
        }

        #[test]
        fn bytes_that_are_floats_come_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            match floats_from_bytes(&bytes) {
                Ok(values) => prop_assert_eq!(floats_to_bytes(&values), bytes),
                Err(error) => prop_assert_eq!(error, CodecError::NotWholeFloats(bytes.len())),
            }
        }

        #[test]
        fn digests_come_back(digest in any::<Digest>()) {
            prop_assert_eq!(digest_from_bytes(&digest), Ok(digest));
        }
    }
}
