//! The solver's two inner loops, compiled for AVX2 too: twice the lanes, the same additions in the same order. Nothing is
//! fused, so the bits do not depend on the machine.

use super::double_double::two_sum;

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
    /// `high + low += factor · values`, entry by entry, for products that are exact.
    fn add_products(factor: f64, values: &[f64], high: &mut [f64], low: &mut [f64]) => plain_add_products
}

#[inline(always)]
fn plain_dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
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
fn plain_add_products(factor: f64, values: &[f64], high: &mut [f64], low: &mut [f64]) {
    for ((value, high), low) in values.iter().zip(high).zip(low) {
        let (sum, error) = two_sum(*high, factor * value);
        *high = sum;
        *low += error;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_the_same_bits() {
        let values: Vec<f64> = (0..1003).map(|i| (f64::from(i) * 0.37).sin() * 1e3f64.powi(i % 5 - 2)).collect();
        let others: Vec<f64> = values.iter().rev().map(|value| value * 1.7).collect();
        assert_eq!(dot(&values, &others).to_bits(), plain_dot(&values, &others).to_bits());
        let (mut high, mut low) = (others.clone(), values.clone());
        let (mut plain_high, mut plain_low) = (others.clone(), values.clone());
        add_products(0.3, &values, &mut high, &mut low);
        plain_add_products(0.3, &values, &mut plain_high, &mut plain_low);
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&high), bits(&low)), (bits(&plain_high), bits(&plain_low)));
    }
}
