//! Numbers as people are shown them: never a line full of zeros.

/// From here on a number is written with an exponent.
const LARGE: f64 = 1e12;

/// With that many decimals; a large number with an exponent.
pub fn fixed(value: f64, decimals: usize) -> String {
    if value.is_finite() && value.abs() >= LARGE {
        return format!("{value:.decimals$e}");
    }
    format!("{value:.decimals$}")
}

/// In the fewest digits that read back to the same bits; a large or a small number with an exponent.
pub fn shortest(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_long() {
        assert_eq!([0.1, 1e300, -1e300, 3.0, 1e-300].map(shortest), ["0.1", "1e300", "-1e300", "3", "1e-300"]);
        assert_eq!([1.5, 1e300, -2.5e12].map(|value| fixed(value, 2)), ["1.50", "1.00e300", "-2.50e12"]);
        assert_eq!(fixed(f64::NAN, 3), "NaN");
        for value in [f64::MAX, f64::MIN_POSITIVE, 123_456.789, 9_007_199_254_740_993.0] {
            assert!(shortest(value).len() < 25 && fixed(value, 6).len() < 25);
            assert_eq!(shortest(value).parse(), Ok(value));
        }
    }
}
