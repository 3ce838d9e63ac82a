//! One record of an event file: length, its checksum, the bytes, their checksum (TFRecord).
//! <https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details>

/// `data` as one record.
pub fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(data.len() + 16);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&masked(&length).to_le_bytes());
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(&masked(data).to_le_bytes());
    bytes
}

/// CRC-32C, turned and shifted, so that a checksum over data with checksums inside keeps its worth.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_one_that_tensorflow_writes() {
        // `abc` as TensorBoard's own `masked_crc32c` frames it.
        let expected = "0300000000000000b099490e6162636e57f121";
        let bytes: String = framed(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes, expected);
    }
}
