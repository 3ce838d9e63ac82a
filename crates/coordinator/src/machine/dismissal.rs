//! Members that are dismissed for good, and when that ends the run: where nobody can go on, or where two of them say
//! that it is not their machine.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Machine;
use super::events::{Cause, Effect, MemberId, Process};

/// A worker's permanent failure that another one may confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    process: Process,
    words: Words,
    /// Units committed when it came.
    unit: u64,
}

/// What was said of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    /// Its name.
    who: String,
    why: String,
}

/// A rank is at most one unit ahead of another, so once this many more are committed its complaint is refuted.
const REFUTED_AFTER: u64 = 2;

/// Reasons that are remembered for the case that nobody can go on.
const MAX_REASONS: usize = 4;

const MEND: &str = "the first message says what to mend";

impl Machine {
    /// A member cannot go on, and a new process in its place could not either.
    pub(super) fn permanent_failure(
        &mut self,
        now: Instant,
        id: MemberId,
        cause: Cause,
        why: &str,
        effects: &mut Vec<Effect>,
    ) {
        // From a worker that was refused or declared dead: the run continues without it.
        let (Some(member), Some(complaint)) = (self.members.get(&id), self.complaint_of(id, why)) else {
            return;
        };
        let before = match (self.generations, cause) {
            (0, Cause::Machine) if member.worker_ready.is_none() => {
                Some((&mut self.cannot_load, "two workers cannot load the model"))
            }
            (0, Cause::Data) if member.worker_ready.is_none() => {
                Some((&mut self.about_data, "two workers cannot use the samples or the recipe"))
            }
            (_, Cause::Data) if member.has_trained => {
                Some((&mut self.about_data, "two ranks cannot use the samples or the recipe"))
            }
            _ => None,
        };
        if let Some((earlier, what)) = before {
            match earlier {
                Some(first) if first.is_anothers(&complaint.process) => {
                    let reason = format!("{what}: {}", told(&[&first.words, &complaint.words]));
                    return self.fail(reason, MEND, effects);
                }
                _ => *earlier = Some(complaint.clone()),
            }
        }
        self.dismiss(now, id, why, "another worker of the same kind would fail in the same way", effects);
    }

    /// What a member says, with its name.
    pub(super) fn complaint_of(&self, id: MemberId, why: &str) -> Option<Complaint> {
        let process = self.members.get(&id)?.join_request.process.clone();
        let words = Words { who: self.name(id), why: why.to_owned() };
        Some(Complaint { process, words, unit: self.unit() })
    }

    /// Evicts a member for good. The run fails if that leaves nobody who could go on.
    pub(super) fn dismiss(
        &mut self,
        now: Instant,
        id: MemberId,
        why: &str,
        hint: &'static str,
        effects: &mut Vec<Effect>,
    ) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let process = member.join_request.process.clone();
        let words = Words { who: self.name(id), why: why.to_owned() };
        let text = told(&[&words]);
        if self.dismissed.len() == MAX_REASONS {
            self.dismissed.pop_front();
        }
        self.dismissed.push_back(words);
        self.refuse(id, process, why.to_owned(), effects);
        self.left(id, &format!("dismissed: {why}"), effects);
        if !self.members.is_empty() {
            return;
        }
        // As many as were asked for have been refused, and all that ever came: nobody is left who could come.
        let refused: BTreeSet<&Process> = self.refused.iter().collect();
        if refused.len() >= self.config.run.workers && self.welcome_back.is_empty() {
            return self.nobody_left(hint, effects);
        }
        self.deserted = Some((now, hint));
        self.reason = format!("{text}; waiting for another worker");
    }

    /// Nobody came in the place of the last member, which was dismissed.
    pub(super) fn check_deserted(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let wait = self.config.run.coordinator_wait;
        if let Some((since, hint)) = self.deserted
            && now.saturating_duration_since(since) > wait
        {
            self.nobody_left(hint, effects);
        }
    }

    fn nobody_left(&mut self, hint: &'static str, effects: &mut Vec<Effect>) {
        let words: Vec<&Words> = self.dismissed.iter().collect();
        let reason = match words.as_slice() {
            [only] => told(&[only]),
            several => format!("no worker can go on: {}", told(several)),
        };
        self.fail(reason, hint, effects);
    }

    /// Units were committed with the samples that a rank complained of.
    pub(super) fn clear_complaint(&mut self) {
        let unit = self.unit();
        let _ = self.about_data.take_if(|complaint| unit > complaint.unit + REFUTED_AFTER);
    }
}

impl Complaint {
    /// Whether `other` is another worker. A container that starts again has its host's name and a new namespace.
    pub(super) fn is_anothers(&self, others: &Process) -> bool {
        let its = &self.process;
        its.host != others.host || (its.namespace == others.namespace && its.pid != others.pid)
    }
}

/// Who says what, in order; members that say the same say it together.
fn told(all: &[&Words]) -> String {
    let mut reasons: Vec<(Vec<&str>, &str)> = Vec::new();
    for Words { who, why } in all {
        match reasons.iter_mut().find(|(_, known)| known == why) {
            Some((names, _)) => names.push(who),
            None => reasons.push((vec![who], why)),
        }
    }
    let sentences: Vec<String> =
        reasons.into_iter().map(|(names, why)| format!("{}: {why}", names.join(" and "))).collect();
    sentences.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_say_is_told_once() {
        let words = |who: &str, why: &str| Words { who: who.to_owned(), why: why.to_owned() };
        let (one, two, three) =
            (words("worker 1", "no GPU"), words("worker 2", "no model"), words("worker 3", "no GPU"));
        assert_eq!(told(&[&one, &two, &three]), "worker 1 and worker 3: no GPU; worker 2: no model");
        assert_eq!(told(&[&two]), "worker 2: no model");
    }
}
