//! Rows that are not finite: either the training diverged, or a machine computes nonsense. Another rank computes the same
//! micro-batch once more, and that decides.

use std::collections::BTreeMap;
use std::ops::Range;

use numalign_data::{MicroBatchId, Unit, assign, held_out_of, samples_of, samples_of_chunk};

use super::Machine;
use super::events::{Effect, Generation, MemberId};

/// The rank that sent a row which is not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sender {
    member: MemberId,
    /// As it was named then.
    name: String,
}

/// Micro-batches of one unit whose rows were not finite, and who sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspects {
    unit: u64,
    rows: BTreeMap<usize, Sender>,
}

impl Suspects {
    /// The split of a generation that gives as many suspect micro-batches as possible to another member than before:
    /// equal parts, and the members in the rotation that does best. With two members or more at least one moves.
    pub fn reassigned(&self, mut members: Vec<MemberId>, micro_batches: usize) -> (Vec<MemberId>, Vec<Range<usize>>) {
        let parts = assign(micro_batches, members.len());
        let moved = |members: &[MemberId]| {
            let owner = |micro_batch| {
                let rank = parts.iter().position(|part| part.contains(&micro_batch));
                rank.map(|rank| members[rank])
            };
            self.rows.iter().filter(|(micro_batch, sender)| owner(**micro_batch) != Some(sender.member)).count()
        };
        let (mut best, mut most) = (members.clone(), moved(&members));
        for _ in 1..members.len() {
            members.rotate_left(1);
            let count = moved(&members);
            if count > most {
                (best, most) = (members.clone(), count);
            }
        }
        (best, parts)
    }

    /// Members whose micro-batch came out finite with another owner: their machine is at fault.
    fn refuted(
        &self,
        still_bad: impl Fn(usize) -> bool,
        owner: impl Fn(usize) -> Option<MemberId>,
    ) -> BTreeMap<MemberId, usize> {
        let mut faulty = BTreeMap::new();
        for (micro_batch, sender) in &self.rows {
            if !still_bad(*micro_batch) && owner(*micro_batch).is_some_and(|owner| owner != sender.member) {
                faulty.entry(sender.member).or_insert(*micro_batch);
            }
        }
        faulty
    }
}

impl Machine {
    /// Rows of `unit` are complete, and those of the micro-batches `bad` are not finite.
    pub(super) fn not_finite(&mut self, generation: Generation, unit: u64, bad: &[usize], effects: &mut Vec<Effect>) {
        let present = self.running.as_ref().filter(|running| running.generation == generation);
        let Some(running) = present.filter(|_| unit >= self.unit()) else {
            return;
        };
        let ranks = running.ranks.clone();
        let owner = |micro_batch: usize| owner_of(&ranks, micro_batch);
        let mut rows = BTreeMap::new();
        for micro_batch in bad {
            if let Some(member) = owner(*micro_batch) {
                rows.insert(*micro_batch, Sender { member, name: self.name(member) });
            }
        }
        if let Some(earlier) = self.suspects.take().filter(|earlier| earlier.unit == unit) {
            let faulty = earlier.refuted(|micro_batch| rows.contains_key(&micro_batch), owner);
            rows.retain(|_, sender| !faulty.contains_key(&sender.member));
            let confirmed = rows.iter().find_map(|(micro_batch, second)| {
                let first = earlier.rows.get(micro_batch).filter(|first| !faulty.contains_key(&first.member))?;
                // A rank that is alone has been asked twice.
                (first.member != second.member || ranks.len() == 1).then_some((*micro_batch, first, second))
            });
            if let Some((micro_batch, first, second)) = confirmed {
                let reason = format!(
                    "the training diverged: the row of {} is not finite, by {} and again by {}",
                    self.row_name(unit, micro_batch),
                    first.name,
                    second.name
                );
                return self.fail(reason, "lower lr, or look for extreme values in the dataset", effects);
            }
            self.exclude_refuted(unit, &faulty, effects);
        }
        let Some((micro_batch, sender)) = rows.first_key_value() else {
            return;
        };
        let again = if ranks.len() == 1 { "it is computed once more" } else { "another rank computes it again" };
        let row = self.row_name(unit, *micro_batch);
        let reason = format!("{} sent a row of {row} that is not finite; {again}", sender.name);
        self.suspects = Some(Suspects { unit, rows });
        self.pause(&reason, effects);
    }

    /// A unit was committed, so all its rows were finite: whoever sent others before is excluded.
    pub(super) fn clear_suspects(&mut self, committed: u64, effects: &mut Vec<Effect>) {
        let Some(suspects) = self.suspects.take_if(|suspects| suspects.unit <= committed) else {
            return;
        };
        let Some(running) = &self.running else {
            return;
        };
        let ranks = running.ranks.clone();
        let faulty = suspects.refuted(|_| false, |micro_batch| owner_of(&ranks, micro_batch));
        self.exclude_refuted(suspects.unit, &faulty, effects);
    }

    fn exclude_refuted(&mut self, unit: u64, faulty: &BTreeMap<MemberId, usize>, effects: &mut Vec<Effect>) {
        let mut members = Vec::new();
        for (id, micro_batch) in faulty.iter().filter(|(id, _)| self.members.contains_key(id)) {
            let row = self.row_name(unit, *micro_batch);
            members.push((*id, format!("its row of {row} was not finite, another rank's is")));
        }
        self.exclude(&members, effects);
    }

    /// Such as `micro-batch 3 (samples 15 to 19) of step 12`.
    fn row_name(&self, unit: u64, micro_batch: usize) -> String {
        let (recipe, place) = (&self.config.recipe, MicroBatchId(micro_batch));
        let (what, samples) = match self.units().unit(unit) {
            Unit::Step(step) => (format!("step {step}"), samples_of(step, place, recipe)),
            Unit::Chunk { round, chunk } => {
                (format!("chunk {chunk} of round {round}"), samples_of_chunk(round, chunk, place, recipe))
            }
            Unit::Evaluate | Unit::Solve | Unit::End => {
                ("an evaluation".to_owned(), held_out_of(self.config.run.eval_samples, place, recipe))
            }
        };
        let last = samples.end.saturating_sub(1);
        format!("micro-batch {micro_batch} (samples {} to {last}) of {what}", samples.start)
    }
}

fn owner_of(ranks: &[(MemberId, Range<usize>)], micro_batch: usize) -> Option<MemberId> {
    ranks.iter().find(|(_, part)| part.contains(&micro_batch)).map(|(id, _)| *id)
}
