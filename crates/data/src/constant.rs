//! The best constant prediction: what every error is compared with.

/// The upper median; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Mean absolute error of the best constant prediction of `targets`, which is their median; in the targets' unit, and 0 of
/// nothing.
pub fn constant_error(targets: &[f64]) -> f64 {
    let median = median(targets.to_vec());
    let sum: f64 = targets.iter().map(|target| (target - median).abs()).sum();
    sum / targets.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_constant_is_better_than_the_median() {
        let targets = [3.0, 40.0, 7.0, 1.0, 9.0, 100.0];
        assert_eq!(median(targets.to_vec()), 9.0);
        let best = constant_error(&targets);
        assert!((best - (6.0 + 31.0 + 2.0 + 8.0 + 0.0 + 91.0) / 6.0).abs() < 1e-12);
        for constant in 0..=100 {
            let error: f64 = targets.iter().map(|target| (target - f64::from(constant)).abs()).sum();
            assert!(error / 6.0 >= best - 1e-12, "{constant}");
        }
        assert_eq!((median(Vec::new()), constant_error(&[])), (0.0, 0.0));
    }
}
