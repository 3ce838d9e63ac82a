//! The sums that a least-squares problem needs: all products of two columns of `[h 1 y]`, added over samples.
//!
//! A product of two `f32` is exact in `f64`; it is added in about 106 bits, in sample order. Entries are independent of
//! each other and are computed in parallel; the order within an entry is fixed, so the bits never depend on the machine.

use rayon::prelude::*;

use super::double_double::{DoubleDouble, two_sum};
use super::features::Features;
use super::lanes::add_products;

/// Entries of a row that are added to for all samples before the next ones: they stay in the cache.
const SEGMENT: usize = 1024;

/// The upper triangle of `Σ [h 1 y]ᵀ[h 1 y]`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    hidden: usize,
    samples: u64,
    high: Vec<f64>,
    /// Errors of the additions into `high`, added up.
    low: Vec<f64>,
}

impl Gram {
    /// Columns: the hidden state's, the constant 1, the target.
    fn columns(hidden: usize) -> usize {
        hidden + 2
    }

    /// Entries of the triangle for hidden size `d`.
    pub fn entries(hidden: usize) -> usize {
        Self::columns(hidden) * (Self::columns(hidden) + 1) / 2
    }

    /// Sums over no samples.
    pub fn new(hidden: usize) -> Self {
        let zeros = vec![0.0; Self::entries(hidden)];
        Self { hidden, samples: 0, high: zeros.clone(), low: zeros }
    }

    /// Sums read back from a checkpoint; none if the lengths do not fit.
    pub fn restored(hidden: usize, samples: u64, high: Vec<f64>, low: Vec<f64>) -> Option<Self> {
        let entries = Self::entries(hidden);
        (high.len() == entries && low.len() == entries).then_some(Self { hidden, samples, high, low })
    }

    /// Hidden size `d`.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Samples added.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The high parts, row by row of the upper triangle.
    pub fn high(&self) -> &[f64] {
        &self.high
    }

    /// The low parts.
    pub fn low(&self) -> &[f64] {
        &self.low
    }

    /// Adds samples in order.
    pub fn add<'a>(&mut self, samples: impl Iterator<Item = (&'a [f32], f32)>) {
        let columns = Self::columns(self.hidden);
        let mut matrix: Vec<f64> = Vec::new();
        for (hidden, target) in samples {
            matrix.extend(hidden.iter().map(|value| f64::from(*value)));
            matrix.extend([1.0, f64::from(target)]);
        }
        self.samples += (matrix.len() / columns) as u64;
        let mut rows = Vec::with_capacity(columns);
        let (mut high, mut low) = (self.high.as_mut_slice(), self.low.as_mut_slice());
        for row in 0..columns {
            let (row_high, rest_high) = high.split_at_mut(columns - row);
            let (row_low, rest_low) = low.split_at_mut(columns - row);
            rows.push((row, row_high, row_low));
            (high, low) = (rest_high, rest_low);
        }
        rows.into_par_iter().for_each(|(row, high, low)| {
            for (segment, (high, low)) in high.chunks_mut(SEGMENT).zip(low.chunks_mut(SEGMENT)).enumerate() {
                let first = row + segment * SEGMENT;
                for sample in matrix.chunks_exact(columns) {
                    add_products(sample[row], &sample[first..first + high.len()], high, low);
                }
            }
        });
    }

    /// Adds all of `features`.
    pub fn add_features(&mut self, features: &Features) {
        self.add(features.samples());
    }

    /// Adds the sums over other samples of this hidden size.
    pub(super) fn add_sums(&mut self, other: &Gram) {
        self.samples += other.samples;
        let own = self.high.iter_mut().zip(&mut self.low);
        for ((high, low), (other_high, other_low)) in own.zip(other.high.iter().zip(&other.low)) {
            let (sum, error) = two_sum(*high, *other_high);
            *high = sum;
            *low += error + other_low;
        }
    }

    /// The samples that high parts were added up from: the constant's product with itself. None where it is no whole number.
    pub(super) fn counted(hidden: usize, high: &[f64]) -> Option<u64> {
        let count = *high.get(Self::place(hidden, hidden, hidden))?;
        let is_whole = (0.0..=(1u64 << f64::MANTISSA_DIGITS) as f64).contains(&count) && count.fract() == 0.0;
        is_whole.then_some(count as u64)
    }

    /// Where the entry of columns `a ≤ b` lies.
    fn place(hidden: usize, a: usize, b: usize) -> usize {
        a * Self::columns(hidden) - a * (a + 1) / 2 + b
    }

    /// The entry of columns `a ≤ b`.
    fn entry(&self, a: usize, b: usize) -> DoubleDouble {
        let place = Self::place(self.hidden, a, b);
        DoubleDouble::of(self.high[place], self.low[place])
    }

    /// `Σ h_a·h_b` for `a ≤ b`; column `d` is the constant and column `d+1` the target.
    pub(crate) fn product(&self, a: usize, b: usize) -> DoubleDouble {
        self.entry(a.min(b), a.max(b))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn features(values: &[f32]) -> Features {
        Features::new(2, values[..values.len() / 3 * 3].to_vec()).unwrap()
    }

    proptest! {
        #[test]
        fn sums_are_exact_for_whole_numbers_and_the_same_for_every_split(
            values in prop::collection::vec((-1000i32..1000).prop_map(|v| v as f32), 3..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let all = features(&values);
            let mut whole = Gram::new(2);
            whole.add_features(&all);
            let cut = cut.index(all.len() + 1) * 3;
            let mut parts = Gram::new(2);
            parts.add_features(&features(&all.values()[..cut]));
            parts.add_features(&features(&all.values()[cut..]));
            prop_assert_eq!(&whole, &parts);
            for (a, b) in [(0, 0), (0, 1), (1, 1), (0, 3), (2, 2), (2, 3), (3, 3)] {
                let column = |sample: &(&[f32], f32), column: usize| match column {
                    0 | 1 => sample.0[column] as i64,
                    2 => 1,
                    _ => sample.1 as i64,
                };
                let expected: i64 = all.samples().map(|sample| column(&sample, a) * column(&sample, b)).sum();
                prop_assert_eq!(whole.product(a, b).high as i64, expected);
            }
        }

        #[test]
        fn any_floats_give_the_same_bits_for_every_split(
            values in prop::collection::vec(-1e6f32..1e6, 3..60),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 3),
        ) {
            let all = features(&values);
            let mut whole = Gram::new(2);
            whole.add_features(&all);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len() + 1) * 3).collect();
            cuts.extend([0, all.len() * 3]);
            cuts.sort_unstable();
            let mut parts = Gram::new(2);
            for pair in cuts.windows(2) {
                parts.add_features(&features(&all.values()[pair[0]..pair[1]]));
            }
            prop_assert_eq!(whole, parts);
        }
    }

    #[test]
    fn cancellation_loses_nothing() {
        let mut gram = Gram::new(1);
        let samples = [3e7f32, 1e-3, -3e7, 5.0];
        gram.add(samples.iter().map(|value| (std::slice::from_ref(value), 1.0)));
        let sum = gram.product(0, 1);
        assert!((sum.high + sum.low - (f64::from(1e-3f32) + 5.0)).abs() < 1e-15);
        assert_eq!(gram.samples(), 4);
    }
}
