//! Rows that are not finite: computed again by another rank, which decides between a bad machine and bad training.

use std::ops::Range;

use numalign_coordinator::machine::{Effect, Event, Generation, MemberId};

use crate::fixtures::{PAIR, Shape};
use crate::harness::{Run, all_evicted, evicted, failure, starts};

/// Who computes a micro-batch in the generation that effects begin.
fn owner(effects: &[Effect], micro_batch: usize) -> u64 {
    let [start] = starts(effects)[..] else { panic!("{effects:?}") };
    let found = start.ranks.iter().find(|(_, part): &&(MemberId, Range<usize>)| part.contains(&micro_batch));
    found.expect("every micro-batch has a rank").0.0
}

fn paused(effects: &[Effect]) -> &str {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Pause(_, why) => Some(why.as_str()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{effects:?}"))
}

#[test]
fn a_row_that_only_one_machine_cannot_compute_excludes_that_machine() {
    for world in 2..=4 {
        for bad in 0..4 {
            let mut run = Run::begun_on_hosts(Shape { workers: world, ..PAIR }, world);
            run.commit();
            let first =
                run.machine.members().keys().copied().find(|id| run.machine.part_of(*id).unwrap().contains(&bad));
            let first = first.unwrap().0;
            let effects = run.not_finite(1, &[bad]);
            let why = paused(&effects);
            for words in [
                format!("worker {first} (rank"),
                format!("micro-batch {bad} (samples {} to {})", 4 + bad, 4 + bad),
                "of step 1 ".to_owned(),
                "another rank computes it again".to_owned(),
            ] {
                assert!(why.contains(&words), "{why}: {words}");
            }
            assert_eq!((all_evicted(&effects), failure(&effects)), (vec![], None));
            assert_ne!(owner(&effects, bad), first, "another rank gets it");
            let effects = run.commit();
            let (who, permanent, why) = evicted(&effects).expect("the first machine was at fault");
            assert_eq!((who, permanent), (first, true));
            assert!(why.contains("was not finite, another rank's is"), "{why}");
            assert!(run.machine.committed().unwrap().step() < 2, "what it computed before is made again");
            while run.machine.phase() != "done" {
                assert!(!run.commit().is_empty());
            }
            assert_eq!(**run.machine.committed().unwrap(), run.correct[6]);
        }
    }
}

#[test]
fn a_row_that_two_ranks_cannot_compute_ends_the_run_and_names_both() {
    let mut run = Run::begun_on_hosts(PAIR, 2);
    run.commit();
    let effects = run.not_finite(1, &[0, 1, 2, 3]);
    assert!(paused(&effects).contains("micro-batch 0"), "{effects:?}");
    let effects = run.not_finite(1, &[0, 1, 2, 3]);
    let why = failure(&effects).expect("it diverged");
    for words in ["the training diverged", "micro-batch 0 (samples 4 to 4) of step 1", "host-1", "host-2"] {
        assert!(why.contains(words), "{why}");
    }
    assert_eq!(run.machine.committed().unwrap().step(), 1);
}

#[test]
fn a_machine_that_takes_its_nonsense_along_is_found_at_once() {
    // Rank 1's rows are NaN whichever they are: what it had before comes out well elsewhere.
    let mut run = Run::begun_on_hosts(PAIR, 2);
    let effects = run.not_finite(0, &[2, 3]);
    assert_eq!((owner(&effects, 2), owner(&effects, 0)), (1, 2));
    let effects = run.not_finite(0, &[0, 1]);
    assert_eq!(evicted(&effects).map(|(who, permanent, _)| (who, permanent)), Some((2, true)));
    assert_eq!((failure(&effects), run.ranks()), (None, vec![1]));
}

#[test]
fn a_rank_that_is_alone_is_asked_twice() {
    let mut run = Run::begun_on_hosts(Shape { workers: 1, ..PAIR }, 1);
    assert!(paused(&run.not_finite(0, &[1])).contains("computed once more"));
    assert!(!run.commit().is_empty(), "it came out well");
    assert_eq!(run.ranks(), [1], "nobody is excluded");
    assert_eq!(failure(&run.not_finite(1, &[1])), None);
    let effects = run.not_finite(1, &[1]);
    assert!(failure(&effects).is_some_and(|why| why.contains("the training diverged")), "{effects:?}");
}

#[test]
fn late_news_of_rows_changes_nothing() {
    let mut run = Run::begun_on_hosts(PAIR, 2);
    run.commit();
    let generation = run.generation();
    assert_eq!(run.not_finite(0, &[0]), Vec::new(), "that unit is committed");
    let late = Generation { number: generation.number + 1, ..generation };
    assert_eq!(run.machine.handle(run.now, Event::NotFinite(late, 1, vec![0])), Vec::new());
    assert_eq!(run.generation(), generation);
}
