//! Replays every kept seed and runs a short campaign of each target.

use numalign_fuzz::campaign::{answer, run, seeds};
use numalign_fuzz::targets::ALL;

/// Executions of each target: a few seconds in all.
const EXECUTIONS: u64 = 2000;

#[test]
fn the_seeds_and_a_short_campaign_panic_nowhere() {
    for target in ALL {
        let seeds = seeds(target).unwrap_or_else(|error| panic!("{}: {error}", target.name));
        for (place, seed) in seeds.iter().enumerate() {
            assert!(answer(target, seed).is_some(), "{}: seed {place} panics", target.name);
        }
        assert!(seeds.iter().any(|seed| answer(target, seed) == Some(Ok(()))), "{} accepts no seed", target.name);
        let tally = run(target, &seeds, EXECUTIONS, 7);
        assert!(
            tally.crashes.is_empty(),
            "{}: {:?} panics",
            target.name,
            tally.crashes.first().map(|input| String::from_utf8_lossy(input).into_owned())
        );
        assert_eq!(tally.executions, EXECUTIONS);
        assert!(tally.answers > 3, "{} gives only {} kinds of answers", target.name, tally.answers);
    }
}
