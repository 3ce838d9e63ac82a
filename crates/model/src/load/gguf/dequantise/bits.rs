//! Where the bits of GGML's blocks lie (`ggml-common.h`): integers, before any scale.

/// The numbers of half a byte: the low halves of `bytes`, then the high ones.
pub fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// The 32 five-bit numbers of `32 fifth bits | 32 × 4 bits`.
pub fn five_bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let mask = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..20]).enumerate().map(move |(i, low)| low | ((mask >> i & 1) << 4) as u8)
}

/// The 16 two-bit numbers of a group: each 32 bytes hold 128 numbers, the first 32 in their lowest bits.
pub fn two_bits(bytes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let (part, within) = (group / 8, group % 8);
    let first = 32 * part + 16 * (within % 2);
    bytes[first..first + 16].iter().map(move |byte| byte >> (2 * (within / 2)) & 3)
}

/// The 32 four-bit numbers of a group: each 32 bytes hold 64 numbers, the first 32 in their low halves.
pub fn four_bits(bytes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let first = 32 * (group / 2);
    bytes[first..first + 32].iter().map(move |byte| byte >> (4 * (group % 2)) & 15)
}

/// The 32 five-bit numbers of a group of a `Q5_K` block.
pub fn five_bits_of_256(block: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let high = block[16..48].iter().map(move |byte| (byte >> group & 1) << 4);
    four_bits(&block[48..], group).zip(high).map(|(low, high)| low | high)
}

/// The six-bit number at `place` of a `Q6_K` block. Each half of the block: 64 bytes of low halves, then their high halves; 32
/// bytes of four pairs of bits.
pub fn six_bits(block: &[u8], place: usize) -> u8 {
    let (low, high) = (&block[..128], &block[128..192]);
    let (part, within) = (place / 128, place % 128);
    let low = low[64 * part + within % 64] >> (4 * (within / 64)) & 15;
    let high = high[32 * part + within % 32] >> (2 * (within / 32)) & 3;
    low | high << 4
}

/// Scale and minimum of one of 8 groups, six bits each: the last four groups' low bits lie in the last four bytes, their
/// upper two bits above the first groups' numbers.
pub fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let shared = packed[group + 4];
    (shared & 15 | packed[group - 4] >> 2 & 48, shared >> 4 | packed[group] >> 2 & 48)
}
