//! The solver's inner loops, compiled for AVX2 and AVX-512 too: more lanes, the same additions in the same order. Nothing
//! is fused, so the bits do not depend on the machine.

use super::double_double::{DoubleDouble, two_product, two_sum};

/// Defines `$name`, which runs the `#[inline(always)]` function `$body` in the widest form that this machine has.
macro_rules! widest {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $result:ty)? => $body:ident) => {
        $(#[$doc])*
        pub(super) fn $name($($arg: $ty),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $result)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) $(-> $result)? {
                    $body($($arg),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the machine has AVX-512.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the machine has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}

widest! {
    /// A dot product with eight running sums, added up in order: fast, and the same bits everywhere.
    fn dot(a: &[f64], b: &[f64]) -> f64 => plain_dot
}

widest! {
    /// Goes on with the running sums of four dot products with `other`; lengths are multiples of eight.
    fn add_dots(rows: [&[f64]; 4], other: &[f64], sums: &mut [[f64; 8]; 4]) => plain_add_dots
}

widest! {
    /// `high + low += factor · values`, entry by entry, for products that are exact.
    fn add_products(factor: f64, values: &[f64], high: &mut [f64], low: &mut [f64]) => plain_add_products
}

widest! {
    /// `sums − factor · values` in about 106 bits, entry by entry; values and sums have a high and a low part.
    fn subtract_products(factor: f64, high: &[f64], low: &[f64], sums_high: &mut [f64], sums_low: &mut [f64])
        => plain_subtract_products
}

#[inline(always)]
fn plain_dot(a: &[f64], b: &[f64]) -> f64 {
    rest_of_dot([0.0; 8], a, b)
}

/// The end of a dot product whose running sums so far are `sums`.
#[inline(always)]
pub(super) fn rest_of_dot(sums: [f64; 8], a: &[f64], b: &[f64]) -> f64 {
    let mut sums = sums;
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[inline(always)]
fn plain_add_dots(rows: [&[f64]; 4], other: &[f64], sums: &mut [[f64; 8]; 4]) {
    let mut running = *sums;
    let [a, b, c, d] = rows.map(|row| row.as_chunks::<8>().0);
    for ((((a, b), c), d), other) in a.iter().zip(b).zip(c).zip(d).zip(other.as_chunks::<8>().0) {
        for (running, row) in running.iter_mut().zip([a, b, c, d]) {
            for lane in 0..8 {
                running[lane] += row[lane] * other[lane];
            }
        }
    }
    *sums = running;
}

#[inline(always)]
fn plain_add_products(factor: f64, values: &[f64], high: &mut [f64], low: &mut [f64]) {
    for ((value, high), low) in values.iter().zip(high).zip(low) {
        let (sum, error) = two_sum(*high, factor * value);
        *high = sum;
        *low += error;
    }
}

#[inline(always)]
fn plain_subtract_products(factor: f64, high: &[f64], low: &[f64], sums_high: &mut [f64], sums_low: &mut [f64]) {
    for (((high, low), sum_high), sum_low) in high.iter().zip(low).zip(sums_high).zip(sums_low) {
        let (product, error) = two_product(*high, factor);
        let sum = DoubleDouble { high: *sum_high, low: *sum_low };
        let sum = sum.minus(DoubleDouble { high: product, low: error + low * factor });
        (*sum_high, *sum_low) = (sum.high, sum.low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<f64> {
        (0..1003).map(|i| (f64::from(i) * 0.37).sin() * 1e3f64.powi(i % 5 - 2)).collect()
    }

    #[test]
    fn four_dot_products_in_parts_have_the_bits_of_each_alone() {
        let values = values();
        let rows = [0, 1, 2, 3].map(|shift| &values[shift..shift + 997]);
        let other = &values[5..1002];
        for cut in [0, 8, 512, 992] {
            let mut sums = [[0.0; 8]; 4];
            for part in [0..cut / 2 / 8 * 8, cut / 2 / 8 * 8..cut] {
                add_dots(rows.map(|row| &row[part.clone()]), &other[part], &mut sums);
            }
            for (row, sums) in rows.iter().zip(sums) {
                let whole = rest_of_dot(sums, &row[cut..], &other[cut..]);
                assert_eq!(whole.to_bits(), plain_dot(row, other).to_bits(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn every_form_has_the_same_bits() {
        let values = values();
        let others: Vec<f64> = values.iter().rev().map(|value| value * 1.7).collect();
        assert_eq!(dot(&values, &others).to_bits(), plain_dot(&values, &others).to_bits());
        let (mut high, mut low) = (others.clone(), values.clone());
        let (mut plain_high, mut plain_low) = (others.clone(), values.clone());
        add_products(0.3, &values, &mut high, &mut low);
        plain_add_products(0.3, &values, &mut plain_high, &mut plain_low);
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&high), bits(&low)), (bits(&plain_high), bits(&plain_low)));
        subtract_products(0.7, &values, &others, &mut high, &mut low);
        plain_subtract_products(0.7, &values, &others, &mut plain_high, &mut plain_low);
        assert_eq!((bits(&high), bits(&low)), (bits(&plain_high), bits(&plain_low)));
    }
}
