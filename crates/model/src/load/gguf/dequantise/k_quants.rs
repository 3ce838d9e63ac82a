//! The K-quants: blocks of 256 numbers in groups of 16 or 32, whose scales are themselves quantised.

use super::bits::{five_bits_of_256, four_bits, scale_and_minimum, six_bits, two_bits};
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
        out.extend(five_bits_of_256(block, group).map(|q| scale * f32::from(q) - least));
    }
}

/// `256 × 4 low bits | 256 × 2 high bits | 16 × scale: i8 | scale: f16`; the numbers are less 32.
pub fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let scales = &block[192..208];
    let scale = half(&block[208..]);
    for (group, group_scale) in scales.iter().enumerate() {
        let scale = scale * f32::from(*group_scale as i8);
        for place in 16 * group..16 * group + 16 {
            out.push(scale * f32::from(six_bits(block, place) as i8 - 32));
        }
    }
}
