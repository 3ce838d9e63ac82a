//! The K-quants: blocks of 256 numbers in groups of 16 or 32, whose scales are themselves quantised.

use super::half;

/// `16 × (scale: 4 bits, minimum: 4 bits) | 256 × 2 bits | scale: f16 | minimum: f16`
pub fn q2_k(block: &[u8; 84], out: &mut Vec<f32>) {
    let (scale, least) = (half(&block[80..]), half(&block[82..]));
    for group in 0..16 {
        let packed = block[group];
        let (scale, least) = (scale * f32::from(packed & 15), least * f32::from(packed >> 4));
        out.extend(two_bits(&block[16..80], group).map(|q| scale * f32::from(q) - least));
    }
}

/// `256 high bits | 256 × 2 bits | 16 × scale: 6 bits | scale: f16`; an absent high bit subtracts 4, the scales are
/// less 32.
pub fn q3_k(block: &[u8; 110], out: &mut Vec<f32>) {
    let (high, low, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(&block[108..]);
    for group in 0..16 {
        let low_bits = scales[group % 8] >> (4 * (group / 8)) & 15;
        let high_bits = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = scale * f32::from((low_bits | high_bits << 4) as i8 - 32);
        // Bit `group / 2` of each of the 32 bytes belongs to these 32 numbers.
        let first = 16 * (group % 2);
        let high = high[first..first + 16].iter().map(|byte| byte >> (group / 2) & 1);
        let numbers = two_bits(low, group).zip(high).map(|(low, high)| low as i8 - 4 * (1 - high as i8));
        out.extend(numbers.map(|q| scale * f32::from(q)));
    }
}

/// `scale: f16 | minimum: f16 | 8 × (scale: 6 bits, minimum: 6 bits) | 256 × 4 bits`
pub fn q4_k(block: &[u8; 144], out: &mut Vec<f32>) {
    let (scale, least) = (half(block), half(&block[2..]));
    for group in 0..8 {
        let (group_scale, group_least) = scale_and_minimum(&block[4..16], group);
        let (scale, least) = (scale * f32::from(group_scale), least * f32::from(group_least));
        out.extend(four_bits(&block[16..], group).map(|q| scale * f32::from(q) - least));
    }
}

/// `scale: f16 | minimum: f16 | 8 × (scale: 6 bits, minimum: 6 bits) | 256 fifth bits | 256 × 4 bits`
pub fn q5_k(block: &[u8; 176], out: &mut Vec<f32>) {
    let (scale, least) = (half(block), half(&block[2..]));
    for group in 0..8 {
        let (group_scale, group_least) = scale_and_minimum(&block[4..16], group);
        let (scale, least) = (scale * f32::from(group_scale), least * f32::from(group_least));
        let high = block[16..48].iter().map(|byte| (byte >> group & 1) << 4);
        let numbers = four_bits(&block[48..], group).zip(high);
        out.extend(numbers.map(|(low, high)| scale * f32::from(low | high) - least));
    }
}

/// `256 × 4 low bits | 256 × 2 high bits | 16 × scale: i8 | scale: f16`; the numbers are less 32.
pub fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(&block[208..]);
    for (group, group_scale) in scales.iter().enumerate() {
        let scale = scale * f32::from(*group_scale as i8);
        for place in 16 * group..16 * group + 16 {
            // Each half of the block: 64 bytes of low halves, then their high halves; 32 bytes of four pairs of bits.
            let (part, within) = (place / 128, place % 128);
            let low = low[64 * part + within % 64] >> (4 * (within / 64)) & 15;
            let high = high[32 * part + within % 32] >> (2 * (within / 32)) & 3;
            out.push(scale * f32::from((low | high << 4) as i8 - 32));
        }
    }
}

/// The 16 two-bit numbers of a group: each 32 bytes hold 128 numbers, the first 32 in their lowest bits.
fn two_bits(bytes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let (part, within) = (group / 8, group % 8);
    let first = 32 * part + 16 * (within % 2);
    bytes[first..first + 16].iter().map(move |byte| byte >> (2 * (within / 2)) & 3)
}

/// The 32 four-bit numbers of a group: each 32 bytes hold 64 numbers, the first 32 in their low halves.
fn four_bits(bytes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let first = 32 * (group / 2);
    bytes[first..first + 32].iter().map(move |byte| byte >> (4 * (group % 2)) & 15)
}

/// Scale and minimum of one of 8 groups, six bits each: the last four groups' low bits lie in the last four bytes, their
/// upper two bits above the first groups' numbers.
fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let shared = packed[group + 4];
    (shared & 15 | packed[group - 4] >> 2 & 48, shared >> 4 | packed[group] >> 2 & 48)
}
