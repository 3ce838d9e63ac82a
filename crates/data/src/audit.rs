//! Which micro-batches of a unit are computed by other ranks too, and by which ones. Pure.
//!
//! Equal state digests prove that all ranks applied the same sum, not that its rows were right. An audit has one row of
//! the unit computed again elsewhere, from the same samples and the same state, and compared bit by bit. Audits go round:
//! eight of them reach every rank. In the last unit of each kind every rank is audited, so that no result is written
//! before its ranks' latest rows were looked at.

use std::ops::Range;

use numalign_config::Config;

use crate::random::splitmix64;
use crate::schedule::Schedule;

/// Ranks beside the owner that compute the audited micro-batch: with two of them a majority names the odd one.
const AUDITORS: usize = 2;

/// Audited units in which every rank is audited once.
const ROUND: usize = 8;

/// The audit of one rank in one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Its place in the unit.
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

/// The ranks of a generation, as audits see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedRanks {
    /// The generation's first unit.
    pub first_unit: u64,
    /// Micro-batches of each rank.
    pub parts: Vec<Range<usize>>,
    /// Every rank once: in this order they are audited.
    pub order: Vec<usize>,
}

/// When a run has audits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audits {
    /// Units between two audited ones; 0 where there are none.
    every: u64,
    /// The last unit of each kind that ranks compute.
    last: Vec<u64>,
}

impl Audits {
    /// The audits of a run; none where machines may compute other bits, since there is nothing to compare.
    pub fn of_run(config: &Config) -> Self {
        match (config.run.deterministic, config.run.audit_every) {
            (false, _) | (_, 0) => Self { every: 0, last: Vec::new() },
            (true, every) => Self { every, last: Schedule::of_run(config).last_of_each_kind() },
        }
    }

    /// Whether the run has audits at all.
    pub fn are_on(&self) -> bool {
        self.every > 0
    }

    /// Whether `unit` is audited, provided that there are two ranks.
    pub fn due(&self, unit: u64) -> bool {
        self.is_regular(unit) || self.last.contains(&unit)
    }

    fn is_regular(&self, unit: u64) -> bool {
        self.every > 0 && unit % self.every == self.every - 1
    }

    /// The audits of `unit`; none if it is not due, or if there is no other rank.
    pub fn of(&self, unit: u64, ranks: &AuditedRanks) -> Vec<Audit> {
        let world = ranks.parts.len();
        if !self.due(unit) || world < 2 {
            return Vec::new();
        }
        let owners: Vec<usize> = match self.last.contains(&unit) {
            true => ranks.order.clone(),
            false => {
                let at_once = world.div_ceil(ROUND);
                // Regular audits of this generation before this one.
                let earlier = unit / self.every - ranks.first_unit / self.every;
                let start = (earlier % world as u64) as usize * at_once;
                (start..start + at_once).map(|place| ranks.order[place % world]).collect()
            }
        };
        owners.into_iter().filter_map(|owner| audit_of(unit, owner, &ranks.parts)).collect()
    }
}

/// The audit of one rank; none if it has no micro-batch.
fn audit_of(unit: u64, owner: usize, parts: &[Range<usize>]) -> Option<Audit> {
    let (part, others) = (parts[owner].clone(), parts.len() - 1);
    let draw = splitmix64(splitmix64(unit) ^ owner as u64);
    let micro_batch = part.start + (draw as usize).checked_rem(part.len())?;
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

    /// Audits of a run of 1,000 steps.
    fn audits(every: u64) -> Audits {
        let every = every.to_string();
        Audits::of_run(&Config::with(&[("num_epochs", "10"), ("num_batches", "100"), ("audit_every", &every)]).unwrap())
    }

    fn ranks(micro_batches: usize, world: usize) -> AuditedRanks {
        AuditedRanks { first_unit: 0, parts: assign(micro_batches, world), order: (0..world).collect() }
    }

    #[test]
    fn audits_come_at_the_end_of_every_stretch_and_not_alone() {
        let due: Vec<u64> = (0..12).filter(|unit| audits(5).due(*unit)).collect();
        assert_eq!(due, [4, 9]);
        assert!(!audits(0).due(999) && audits(1).due(7));
        assert_eq!(audits(5).of(4, &ranks(8, 1)), [], "one rank cannot audit itself");
        assert_eq!(audits(5).of(3, &ranks(8, 3)), []);
        assert_eq!(audits(5).of(4, &ranks(8, 3)).len(), 1);
        assert_eq!(audits(0).of(999, &ranks(8, 3)), []);
        let config = Config::with(&[("deterministic", "false"), ("audit_every", "5")]).unwrap();
        assert!(!Audits::of_run(&config).due(4));
    }

    #[test]
    fn eight_audits_reach_every_rank_in_the_order_given() {
        for world in [2, 3, 7, 8, 9, 63, 64] {
            let mut ranks = ranks(world + 3, world);
            ranks.order.reverse();
            // Another generation begins somewhere between two audits.
            ranks.first_unit = 117;
            let owners: Vec<usize> =
                (117..520).flat_map(|unit| audits(50).of(unit, &ranks)).map(|audit| audit.owner).collect();
            assert_eq!(owners[..world.min(owners.len())], ranks.order[..world.min(owners.len())], "{world}");
            assert!(owners.len() >= world, "{world}: within 400 units");
        }
    }

    #[test]
    fn the_last_unit_of_each_kind_audits_every_rank() {
        let flags = [("num_epochs", "2"), ("num_batches", "6"), ("solver", "alternate"), ("solve_every", "6")];
        let config = Config::with(&[&flags[..], &[("solve_samples", "16"), ("eval_every", "1")]].concat()).unwrap();
        let (audits, schedule) = (Audits::of_run(&config), Schedule::of_run(&config));
        let owners = |unit| {
            let mut owners: Vec<usize> = audits.of(unit, &ranks(8, 4)).iter().map(|audit| audit.owner).collect();
            owners.sort_unstable();
            owners
        };
        for unit in schedule.last_of_each_kind() {
            assert_eq!(owners(unit), [0, 1, 2, 3], "{:?}", schedule.unit(unit));
        }
        assert_eq!(schedule.last_of_each_kind().len(), 3);
    }

    #[test]
    fn every_rank_audits_in_the_long_run() {
        let mut audited = [0; 4];
        for unit in 0..400 {
            for audit in audits(1).of(unit, &ranks(8, 4)) {
                for rank in audit.auditors {
                    audited[rank] += 1;
                }
            }
        }
        assert!(audited.iter().all(|count| *count > 120), "{audited:?}");
    }

    proptest! {
        #[test]
        fn owners_and_distinct_others(unit in 0u64..1000, every in 1u64..100, micro_batches in 20usize..40, world in 2usize..20) {
            let ranks = ranks(micro_batches, world);
            let found = audits(every).of(unit, &ranks);
            prop_assert_eq!(found.is_empty(), !audits(every).due(unit));
            for audit in found {
                prop_assert!(ranks.parts[audit.owner].contains(&audit.micro_batch));
                prop_assert_eq!(audit.auditors.len(), (ranks.parts.len() - 1).min(2));
                let mut all: Vec<usize> = audit.ranks().collect();
                all.sort_unstable();
                all.dedup();
                prop_assert_eq!(all.len(), audit.auditors.len() + 1);
                prop_assert!(all.iter().all(|rank| *rank < ranks.parts.len()));
            }
        }
    }
}
