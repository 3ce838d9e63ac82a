//! One value in the range: uniform, or every order of magnitude equally often.

use numalign_config::{Distribution, Recipe, signlog, signlog_inverse};

use super::grid::Grid;
use crate::random::SampleRng;

/// Draws values in [min_val, max_val).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Values {
    min_val: f64,
    max_val: f64,
    /// Values are uniform in `sign(v)·ln(1 + |v|/threshold)`; in `v` itself if there is none.
    threshold: Option<f64>,
}

impl Values {
    /// As the recipe says.
    pub fn of(recipe: &Recipe) -> Self {
        let threshold = match recipe.value_distribution() {
            Distribution::Uniform => None,
            Distribution::Log => recipe.log_threshold,
        };
        Self { min_val: recipe.min_val, max_val: recipe.max_val, threshold }
    }

    /// One value.
    pub fn draw(&self, rng: &mut SampleRng) -> f64 {
        let Some(threshold) = self.threshold else {
            let value = self.min_val + (self.max_val - self.min_val) * rng.uniform();
            // The sum is rounded and may reach max_val, which is excluded.
            return value.min(self.max_val.next_down());
        };
        let (low, high) = (signlog(self.min_val, threshold), signlog(self.max_val, threshold));
        let drawn = low + (high - low) * rng.uniform();
        signlog_inverse(drawn, threshold).clamp(self.min_val, self.max_val.next_down())
    }

    /// One number of `grid`, which spans the same range.
    pub fn draw_on(&self, grid: &Grid, rng: &mut SampleRng) -> f64 {
        match self.threshold {
            None => grid.draw(rng),
            Some(_) => grid.nearest(self.draw(rng)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Domain;

    fn draws(values: Values) -> Vec<f64> {
        (0..4000).map(|index| values.draw(&mut SampleRng::new(0, Domain::Train, "nn", index))).collect()
    }

    #[test]
    fn every_order_of_magnitude_comes_equally_often() {
        let values = Values { min_val: 1e-6, max_val: 1e9, threshold: Some(1e-6) };
        let drawn = draws(values);
        assert!(drawn.iter().all(|value| (1e-6..1e9).contains(value)));
        for exponent in -4..9 {
            let (from, to) = (10f64.powi(exponent), 10f64.powi(exponent + 1));
            let count = drawn.iter().filter(|value| (from..to).contains(*value)).count();
            // A fifteenth of 4000, give or take four deviations.
            assert!((205..330).contains(&count), "{count} from {from}");
        }
    }

    #[test]
    fn rounding_never_reaches_the_excluded_end() {
        let values = Values { min_val: 1.0, max_val: 1.0f64.next_up(), threshold: None };
        assert!(draws(values).iter().all(|value| *value == 1.0));
    }

    #[test]
    fn ranges_around_zero_are_drawn_on_both_sides() {
        let values = Values { min_val: -1e12, max_val: 1e12, threshold: Some(1e-6) };
        let drawn = draws(values);
        let negative = drawn.iter().filter(|value| **value < 0.0).count();
        assert!((1870..2130).contains(&negative), "{negative}");
        assert!(drawn.iter().any(|value| value.abs() < 1.0));
    }

    #[test]
    fn grid_numbers_keep_their_decimals() {
        let values = Values { min_val: 0.01, max_val: 100.0, threshold: Some(0.01) };
        let grid = Grid::new(0.01, 100.0, 2).unwrap();
        for index in 0..1000 {
            let value = values.draw_on(&grid, &mut SampleRng::new(0, Domain::Train, "text", index));
            assert_eq!(value, (value * 100.0).round() / 100.0);
            assert!((0.01..100.0).contains(&value));
        }
    }
}
