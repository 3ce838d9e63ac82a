//! The map that `value_encoding: signlog`, `target: signlog` and `distribution: log` share.

//!
//! Its logarithm comes from `libm`, compiled in, so that every machine computes the same bits.

/// `u(v) = sign(v)·ln(1 + |v|/threshold)`: odd, monotone, linear below `threshold` (positive), logarithmic above.
pub fn signlog(value: f64, threshold: f64) -> f64 {
    let magnitude = libm::log1p(value.abs() / threshold);
    if value < 0.0 { -magnitude } else { magnitude }
}

/// Inverse of [`signlog`]; the largest finite number where it would overflow.
pub fn signlog_inverse(encoded: f64, threshold: f64) -> f64 {
    let magnitude = (libm::expm1(encoded.abs()) * threshold).min(f64::MAX);
    if encoded < 0.0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_linear_below_the_threshold_and_logarithmic_above() {
        assert!((signlog(1e-9, 1e-6) - 1e-3).abs() < 1e-6);
        assert!((signlog(1e6, 1e-6) - signlog(1e5, 1e-6) - std::f64::consts::LN_10).abs() < 1e-9);
        assert_eq!((signlog(0.0, 1.0), signlog(-3.0, 1.0)), (0.0, -signlog(3.0, 1.0)));
        assert_eq!(signlog_inverse(1e4, 1.0), f64::MAX);
        assert!((signlog_inverse(signlog(-12.5, 1e-6), 1e-6) + 12.5).abs() < 1e-10);
    }
}
