//! The numbers with a fixed count of decimals inside a range.

use crate::error::DataError;
use crate::random::SampleRng;

/// 10 to the power of this is the largest that an `f64` grid can still be told apart on.
const MOST_DECIMALS: u32 = 15;
/// Up to here, a grid index divided by its scale reads back from its decimal text unchanged.
const LARGEST_INDEX: f64 = (1u64 << 52) as f64;

/// The numbers with a fixed count of decimals inside [min_val, max_val).
///
/// A number is drawn as an integer and divided by a power of ten. Both are exact and the quotient is rounded once,
/// so it is the very `f64` that its decimal text reads back to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    first: i64,
    len: u64,
    scale: f64,
    pub(crate) decimals: u32,
}

impl Grid {
    /// The numbers with `decimals` decimals in [`min_val`, `max_val`).
    ///
    /// # Errors
    /// A range that is empty or not finite, holds no such number, or needs more digits than an `f64` has.
    pub fn new(min_val: f64, max_val: f64, decimals: u32) -> Result<Grid, DataError> {
        check_range(min_val, max_val)?;
        let too_fine = DataError::GridTooFine { min_val, max_val, decimals };
        if decimals > MOST_DECIMALS {
            return Err(too_fine);
        }
        let scale = 10u64.pow(decimals) as f64;
        if (min_val * scale).abs() >= LARGEST_INDEX || (max_val * scale).abs() >= LARGEST_INDEX {
            return Err(too_fine);
        }
        let first = first_index_from(min_val, scale);
        let end = first_index_from(max_val, scale);
        if first >= end {
            return Err(DataError::EmptyGrid { min_val, max_val, decimals });
        }
        Ok(Grid { first, len: (end - first) as u64, scale, decimals })
    }

    /// One of the numbers, each equally likely.
    pub fn draw(&self, rng: &mut SampleRng) -> f64 {
        (self.first + rng.below(self.len) as i64) as f64 / self.scale
    }

    /// The number nearest to `value`.
    pub fn nearest(&self, value: f64) -> f64 {
        let index = (value * self.scale).round() as i64;
        index.clamp(self.first, self.first + self.len as i64 - 1) as f64 / self.scale
    }
}

/// The smallest integer that, divided by `scale`, is not below `bound`.
///
/// `bound * scale` is rounded (1.1 × 10 lies above 11), so it only says where to start looking.
fn first_index_from(bound: f64, scale: f64) -> i64 {
    let mut index = (bound * scale).floor() as i64 - 1;
    while (index as f64 / scale) < bound {
        index += 1;
    }
    index
}

/// # Errors
/// A range that is empty or not finite.
pub(crate) fn check_range(min_val: f64, max_val: f64) -> Result<(), DataError> {
    if min_val < max_val && (max_val - min_val).is_finite() {
        return Ok(());
    }
    Err(DataError::BadRange { min_val, max_val })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_keeps_its_bounds() {
        let grid = Grid::new(1.1, 1.3, 1).unwrap();
        assert_eq!((grid.first, grid.len), (11, 2));
        let grid = Grid::new(0.0, 100.0, 4).unwrap();
        assert_eq!((grid.first, grid.len), (0, 1_000_000));
        let grid = Grid::new(-0.05, 0.05, 1).unwrap();
        assert_eq!((grid.first, grid.len), (0, 1));
    }

    #[test]
    fn refuses_what_no_number_satisfies() {
        assert!(matches!(Grid::new(0.1, 0.2, 0), Err(DataError::EmptyGrid { .. })));
        assert!(matches!(Grid::new(0.0, 1.0, 16), Err(DataError::GridTooFine { .. })));
        assert!(matches!(Grid::new(0.0, 1e15, 4), Err(DataError::GridTooFine { .. })));
        assert!(matches!(Grid::new(1.0, 1.0, 4), Err(DataError::BadRange { .. })));
    }
}
