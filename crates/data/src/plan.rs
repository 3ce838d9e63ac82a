//! The shard plan: which samples form a micro-batch, and which rank computes it. Pure.

use crate::schedule::Schedule;
use std::ops::Range;

use numalign_config::Recipe;

/// A micro-batch's place in its step, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroBatchId(pub usize);

impl std::fmt::Display for MicroBatchId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The stream indices of a micro-batch of update `step` (counted from 0).
///
/// Indices stop at `u64::MAX`, which no run reaches.
pub fn samples_of(step: u64, micro_batch: MicroBatchId, recipe: &Recipe) -> Range<u64> {
    let micro_batch_size = recipe.micro_batch_size as u64;
    let into_step = (micro_batch.0 as u64).saturating_mul(micro_batch_size);
    let start = step.saturating_mul(recipe.batch_size as u64).saturating_add(into_step);
    start..start.saturating_add(micro_batch_size)
}

/// The indices of a micro-batch of a chunk of the solver's `round` (both counted from 0), in the stream that the solver
/// reads: with `exact` the training stream, with `alternate` that of [`crate::Domain::Solve`] or the file's lines.
///
/// Rounds follow each other without a gap, so no two rounds share a sample.
pub fn samples_of_chunk(round: u64, chunk: u64, micro_batch: MicroBatchId, recipe: &Recipe) -> Range<u64> {
    let chunks = Schedule::of(recipe).chunks();
    samples_of(round.saturating_mul(chunks).saturating_add(chunk), micro_batch, recipe)
}

/// The indices of a micro-batch of an evaluation on the first `samples` of the stream of [`crate::Domain::Eval`]:
/// contiguous, in order, sizes differing by at most one.
pub fn held_out_of(samples: u64, micro_batch: MicroBatchId, recipe: &Recipe) -> Range<u64> {
    let count = recipe.micro_batches().max(1) as u64;
    // Neither product overflows: both factors are counts of things in memory.
    let start_of = |place: u64| samples.saturating_mul(place) / count;
    let place = micro_batch.0 as u64;
    start_of(place)..start_of(place.saturating_add(1))
}

/// Splits `micro_batches` among `world` ranks: contiguous, in order, sizes differing by at most one, earlier ranks
/// larger. Ranks beyond the number of micro-batches get an empty range.
pub fn assign(micro_batches: usize, world: usize) -> Vec<Range<usize>> {
    let mut counts = Vec::with_capacity(world);
    for rank in 0..world {
        let is_larger = rank < micro_batches % world;
        counts.push(micro_batches / world + usize::from(is_larger));
    }
    contiguous(&counts)
}

/// Splits `micro_batches` in proportion to the ranks' speeds (any unit), in whole micro-batches, contiguous and in
/// order.
///
/// Largest-remainder apportionment, ties going to the earlier rank; then, while there are enough for everyone, a
/// rank without any takes one from the rank that has most. A speed that is not finite and positive counts as the
/// mean of those that are. Equal speeds give [`assign`].
pub fn assign_weighted(micro_batches: usize, speeds: &[f64]) -> Vec<Range<usize>> {
    let weights = relative_speeds(speeds);
    let world = weights.len();
    let total: f64 = weights.iter().sum();
    let mut counts = Vec::with_capacity(world);
    let mut remainders = Vec::with_capacity(world);
    let mut left = micro_batches;
    for weight in &weights {
        let quota = weight * micro_batches as f64 / total;
        let whole = (quota.floor() as usize).min(left);
        left -= whole;
        counts.push(whole);
        remainders.push(quota - quota.floor());
    }
    let mut by_remainder: Vec<usize> = (0..world).collect();
    by_remainder.sort_by(|a, b| remainders[*b].total_cmp(&remainders[*a]).then(a.cmp(b)));
    for rank in by_remainder.iter().cycle().take(left) {
        counts[*rank] += 1;
    }
    if micro_batches >= world {
        give_everyone_one(&mut counts);
    }
    contiguous(&counts)
}

/// Speeds divided by the largest, so that no sum overflows.
fn relative_speeds(speeds: &[f64]) -> Vec<f64> {
    let is_usable = |speed: &f64| speed.is_finite() && *speed > 0.0;
    let fastest = speeds.iter().copied().filter(is_usable).fold(0.0, f64::max);
    let (mut sum, mut usable) = (0.0, 0.0);
    for speed in speeds.iter().filter(|speed| is_usable(speed)) {
        sum += speed / fastest;
        usable += 1.0;
    }
    let unknown = if usable > 0.0 { sum / usable } else { 1.0 };
    let relative = |speed: &f64| {
        if is_usable(speed) { speed / fastest } else { unknown }
    };
    speeds.iter().map(relative).collect()
}

/// Moves single micro-batches from the largest share (the last of equals) to empty ones. The sum of `counts` is at
/// least their number, so while one is empty another holds two or more.
fn give_everyone_one(counts: &mut [usize]) {
    for rank in 0..counts.len() {
        if counts[rank] > 0 {
            continue;
        }
        let mut largest = rank;
        for other in 0..counts.len() {
            if counts[other] >= counts[largest] {
                largest = other;
            }
        }
        counts[largest] -= 1;
        counts[rank] += 1;
    }
}

fn contiguous(counts: &[usize]) -> Vec<Range<usize>> {
    let mut ranges = Vec::with_capacity(counts.len());
    let mut start = 0;
    for count in counts {
        ranges.push(start..start + count);
        start += count;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::test_recipe;
    use numalign_config::Stage;
    use proptest::prelude::*;

    fn sizes(ranges: &[Range<usize>]) -> Vec<usize> {
        ranges.iter().map(ExactSizeIterator::len).collect()
    }

    #[test]
    fn micro_batches_tile_the_stream() {
        let mut recipe = test_recipe(Stage::Nn);
        (recipe.batch_size, recipe.micro_batch_size) = (12, 4);
        let mut next = 0;
        for step in 0..5 {
            for micro_batch in 0..recipe.micro_batches() {
                let range = samples_of(step, MicroBatchId(micro_batch), &recipe);
                assert_eq!(range, next..next + 4);
                next = range.end;
            }
        }
        assert!(samples_of(u64::MAX, MicroBatchId(0), &recipe).is_empty());
    }

    #[test]
    fn rounds_follow_each_other_in_the_solvers_stream() {
        let mut recipe = test_recipe(Stage::Nn);
        (recipe.batch_size, recipe.micro_batch_size) = (12, 4);
        (recipe.solver, recipe.solve_samples) = (numalign_config::Solver::Alternate, Some(30));
        let mut next = 0;
        for round in 0..3 {
            for chunk in 0..3 {
                for micro_batch in 0..recipe.micro_batches() {
                    let range = samples_of_chunk(round, chunk, MicroBatchId(micro_batch), &recipe);
                    assert_eq!(range, next..next + 4);
                    next = range.end;
                }
            }
        }
        recipe.solver = numalign_config::Solver::Exact;
        let micro_batch = MicroBatchId(1);
        assert_eq!(samples_of_chunk(0, 5, micro_batch, &recipe), samples_of(5, micro_batch, &recipe));
    }

    #[test]
    fn earlier_ranks_are_larger_and_spare_ranks_empty() {
        assert_eq!(assign(7, 3), [0..3, 3..5, 5..7]);
        assert_eq!(assign(2, 4), [0..1, 1..2, 2..2, 2..2]);
        assert_eq!(assign(0, 1), vec![0..0]);
        assert!(assign(3, 0).is_empty());
    }

    #[test]
    fn faster_ranks_get_more() {
        assert_eq!(sizes(&assign_weighted(10, &[3.0, 1.0, 1.0])), [6, 2, 2]);
        assert_eq!(sizes(&assign_weighted(4, &[1000.0, 1.0, 1.0])), [2, 1, 1]);
        assert_eq!(sizes(&assign_weighted(1, &[1.0, 5.0])), [0, 1]);
        // Unknown speeds count as the mean of the known ones.
        assert_eq!(sizes(&assign_weighted(8, &[3.0, f64::NAN, 1.0, 0.0])), [3, 2, 1, 2]);
        assert_eq!(sizes(&assign_weighted(4, &[f64::INFINITY, -1.0])), [2, 2]);
        assert_eq!(sizes(&assign_weighted(6, &[f64::MAX, f64::MAX, f64::MIN_POSITIVE])), [3, 2, 1]);
        assert!(assign_weighted(4, &[]).is_empty());
    }

    fn check_partition(ranges: &[Range<usize>], micro_batches: usize) -> Result<(), TestCaseError> {
        let joined: Vec<usize> = ranges.iter().cloned().flatten().collect();
        prop_assert_eq!(joined, (0..micro_batches).collect::<Vec<_>>());
        Ok(())
    }

    proptest! {
        #[test]
        fn every_micro_batch_once_and_in_order(micro_batches in 0usize..300, world in 1usize..80) {
            let ranges = assign(micro_batches, world);
            prop_assert_eq!(ranges.len(), world);
            check_partition(&ranges, micro_batches)?;
            let sizes = sizes(&ranges);
            prop_assert!(sizes.windows(2).all(|pair| pair[0] >= pair[1]));
            prop_assert!(sizes[0] - sizes[world - 1] <= 1);
        }

        #[test]
        fn equal_speeds_are_the_plain_plan(
            micro_batches in 0usize..300, world in 1usize..80, speed in prop_oneof![1e-300f64..1e300, Just(f64::NAN)],
        ) {
            prop_assert_eq!(assign_weighted(micro_batches, &vec![speed; world]), assign(micro_batches, world));
        }

        #[test]
        fn any_speeds_give_every_micro_batch_once(
            micro_batches in 0usize..300, speeds in proptest::collection::vec(any::<f64>(), 1..20),
        ) {
            let ranges = assign_weighted(micro_batches, &speeds);
            prop_assert_eq!(ranges.len(), speeds.len());
            check_partition(&ranges, micro_batches)?;
            let has_enough = micro_batches >= speeds.len();
            prop_assert!(!has_enough || ranges.iter().all(|range| !range.is_empty()));
        }
    }
}
