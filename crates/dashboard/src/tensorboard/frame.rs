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
        // The first record of an event file: `tf.io.TFRecordWriter(path).write(b"abc")`.
        let bytes = framed(b"abc");
        assert_eq!(bytes.len(), 3 + 16);
        assert_eq!(&bytes[..8], &[3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
        assert_eq!(&bytes[12..15], b"abc");
    }
}
