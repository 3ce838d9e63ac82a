//! Which micro-batch of a step is computed by other ranks too, and by which ones. Pure.
//!
//! Equal state digests prove that all ranks applied the same sum, not that its rows were right. An audit has one row of
//! the step computed again elsewhere, from the same samples and the same state, and compared bit by bit.

use std::ops::Range;

use crate::random::splitmix64;

/// Ranks beside the owner that compute the audited micro-batch: with two of them a majority names the odd one.
const AUDITORS: usize = 2;

/// The audit of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Its place in the step.
    pub micro_batch: usize,
    /// The rank whose micro-batch it is.
    pub owner: usize,
    /// The ranks that compute it too: one or two, none of them the owner.
    pub auditors: Vec<usize>,
}

impl Audit {
    /// Every rank that computes the audited micro-batch, the owner first.
    pub fn ranks(&self) -> impl Iterator<Item = usize> + '_ {
        std::iter::once(self.owner).chain(self.auditors.iter().copied())
    }
}

/// Whether update `step` (counted from 0) is audited, given `audit_every` (0: never).
pub fn audit_due(step: u64, audit_every: u64) -> bool {
    audit_every > 0 && step % audit_every == audit_every - 1
}

/// The audit of update `step` among ranks with these micro-batches; none if it is not due, or if there is no
/// other rank.
pub fn audit_of(step: u64, audit_every: u64, parts: &[Range<usize>]) -> Option<Audit> {
    let micro_batches = parts.iter().map(|part| part.end).max().unwrap_or(0);
    if !audit_due(step, audit_every) || parts.len() < 2 || micro_batches == 0 {
        return None;
    }
    // Consecutive steps are spread over all micro-batches and ranks.
    let draw = splitmix64(step);
    let micro_batch = (draw % micro_batches as u64) as usize;
    let owner = parts.iter().position(|part| part.contains(&micro_batch))?;
    let others = parts.len() - 1;
    let first = (draw >> 32) as usize % others;
    let mut auditors = Vec::with_capacity(AUDITORS);
    for turn in 0..AUDITORS.min(others) {
        auditors.push((owner + 1 + (first + turn) % others) % parts.len());
    }
    Some(Audit { micro_batch, owner, auditors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::assign;
    use proptest::prelude::*;

    #[test]
    fn audits_come_at_the_end_of_every_stretch_and_not_alone() {
        let due: Vec<u64> = (0..12).filter(|step| audit_due(*step, 5)).collect();
        assert_eq!(due, [4, 9]);
        assert!(!audit_due(0, 0) && audit_due(7, 1));
        assert_eq!(audit_of(4, 5, &assign(8, 1)), None, "one rank cannot audit itself");
        assert_eq!(audit_of(3, 5, &assign(8, 3)), None);
        assert!(audit_of(4, 5, &assign(8, 3)).is_some());
        assert_eq!(audit_of(4, 5, &[]), None);
    }

    #[test]
    fn every_rank_is_audited_and_audits_in_the_long_run() {
        let parts = assign(8, 4);
        let (mut owned, mut audited) = ([0; 4], [0; 4]);
        for step in 0..400 {
            let audit = audit_of(step, 1, &parts).unwrap();
            owned[audit.owner] += 1;
            for rank in audit.auditors {
                audited[rank] += 1;
            }
        }
        assert!(owned.iter().all(|count| *count > 60), "{owned:?}");
        assert!(audited.iter().all(|count| *count > 120), "{audited:?}");
    }

    proptest! {
        #[test]
        fn the_owner_and_distinct_others(step: u64, every in 1u64..100, micro_batches in 1usize..40, world in 2usize..20) {
            let parts = assign(micro_batches, world);
            let Some(audit) = audit_of(step, every, &parts) else {
                prop_assert!(!audit_due(step, every));
                return Ok(());
            };
            prop_assert!(parts[audit.owner].contains(&audit.micro_batch));
            prop_assert_eq!(audit.auditors.len(), (world - 1).min(2));
            let mut ranks: Vec<usize> = audit.ranks().collect();
            ranks.sort_unstable();
            ranks.dedup();
            prop_assert_eq!(ranks.len(), audit.auditors.len() + 1);
            prop_assert!(ranks.iter().all(|rank| *rank < world));
        }
    }
}
