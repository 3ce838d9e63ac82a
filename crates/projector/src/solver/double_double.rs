//! Sums of `f64` that keep about 106 bits: a value is the unevaluated sum of a high and a low part.
//! Additions, products and nothing else, so every machine agrees.

/// `a + b` exactly, as the rounded sum and its error (Knuth's two-sum).
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let virtual_b = sum - a;
    (sum, (a - (sum - virtual_b)) + (b - virtual_b))
}

/// Half of a float's bits: the factor `2²⁷ + 1` of Veltkamp's splitting.
const SPLITTER: f64 = 134_217_729.0;

#[inline(always)]
fn split(a: f64) -> (f64, f64) {
    let scaled = SPLITTER * a;
    let high = scaled - (scaled - a);
    (high, a - high)
}

/// `a · b` exactly, as the rounded product and its error (Dekker), for magnitudes below about 1e299.
#[inline(always)]
pub fn two_product(a: f64, b: f64) -> (f64, f64) {
    let product = a * b;
    let ((a_high, a_low), (b_high, b_low)) = (split(a), split(b));
    let error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    (product, error)
}

/// A value of about 106 bits; the low part is at most half a unit in the last place of the high one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DoubleDouble {
    /// The value rounded to an `f64`.
    pub high: f64,
    /// What the rounding lost.
    pub low: f64,
}

impl DoubleDouble {
    /// The value `high + low` of any two floats.
    #[inline(always)]
    pub fn of(high: f64, low: f64) -> Self {
        let (high, low) = two_sum(high, low);
        Self { high, low }
    }

    /// The difference with another value.
    #[inline(always)]
    pub fn minus(self, other: Self) -> Self {
        let (high, error) = two_sum(self.high, -other.high);
        Self::of(high, (self.low - other.low) + error)
    }

    /// The product with another value.
    pub fn times(self, other: Self) -> Self {
        let (high, error) = two_product(self.high, other.high);
        Self::of(high, error + (self.high * other.low + self.low * other.high))
    }

    /// The quotient by a float that is not zero.
    pub fn over(self, divisor: f64) -> Self {
        let high = self.high / divisor;
        let (product, error) = two_product(high, divisor);
        let low = ((self.high - product) - error + self.low) / divisor;
        Self::of(high, low)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Integers of up to 50 bits: their sums and products are exact in `i128`.
    fn whole() -> impl Strategy<Value = i64> {
        -(1i64 << 50)..(1i64 << 50)
    }

    fn plus(sum: DoubleDouble, value: f64) -> DoubleDouble {
        sum.minus(DoubleDouble::of(-value, 0.0))
    }

    fn exact(value: DoubleDouble) -> i128 {
        value.high as i128 + value.low as i128
    }

    proptest! {
        #[test]
        fn whole_numbers_come_out_exactly(a in whole(), b in whole(), c in whole()) {
            let [x, y, z] = [a, b, c].map(|value| DoubleDouble::of(value as f64, 0.0));
            let product = x.times(y);
            prop_assert_eq!(exact(product), i128::from(a) * i128::from(b));
            prop_assert_eq!(exact(plus(product, z.high)), i128::from(a) * i128::from(b) + i128::from(c));
            prop_assert_eq!(exact(product.minus(z)), i128::from(a) * i128::from(b) - i128::from(c));
            if c != 0 {
                let quotient = product.over(z.high);
                let back = quotient.times(z).minus(product);
                prop_assert!(back.high.abs() <= 1e-29 * product.high.abs());
            }
        }
    }

    #[test]
    fn small_parts_survive_large_ones() {
        let sum = plus(plus(DoubleDouble::of(1e16, 0.0), 1.0), 1e-3).minus(DoubleDouble::of(1e16, 0.0));
        assert!((sum.high + sum.low - 1.001).abs() < 1e-15);
    }
}
