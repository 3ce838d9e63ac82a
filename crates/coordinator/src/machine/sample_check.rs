//! No generation begins before a worker's model has been found able to take every sample of the data file. Where one worker
//! says that it cannot, a second one is asked before the run ends: the first may have a faulty machine or file.

use std::time::Instant;

use super::Machine;
use super::dismissal::Complaint;
use super::events::{Effect, MemberId};

/// How far the check is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SampleCheck {
    /// Nothing is left to check.
    Done,
    /// No worker has it.
    Due(Option<Doubted>),
    /// This one has.
    By(MemberId, Option<Doubted>),
}

/// What a worker said against a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubted {
    member: MemberId,
    complaint: Complaint,
    problem: String,
    since: Instant,
}

const MEND: &str = "mend that sample of the dataset, or leave it out; no step was made";

impl Machine {
    /// The same machine, which lets the first worker that is ready check the samples of the data file before it trains.
    #[must_use]
    pub fn with_sample_check(mut self) -> Self {
        self.sample_check = SampleCheck::Due(None);
        self
    }

    /// Hands the check to a worker that is ready, another one if that has left; true while it is not done.
    pub(super) fn is_checking(&mut self, effects: &mut Vec<Effect>) -> bool {
        let doubted = match &self.sample_check {
            SampleCheck::Done => return false,
            SampleCheck::By(id, _) if self.members.contains_key(id) => return true,
            SampleCheck::By(_, doubted) | SampleCheck::Due(doubted) => doubted.clone(),
        };
        self.reason = match &doubted {
            None => "checking that the model can take every sample of the dataset".to_owned(),
            Some(doubted) => format!("{}; waiting for a second worker that can tell", doubted.problem),
        };
        let mut found = None;
        for (id, member) in &self.members {
            let is_another =
                doubted.as_ref().is_none_or(|doubted| doubted.complaint.is_anothers(&member.join_request.process));
            if let Some(worker_ready) = member.worker_ready.as_ref().filter(|_| is_another) {
                found = Some((*id, worker_ready.longest_text));
                break;
            }
        }
        let is_waiting = found.is_some() || doubted.is_some();
        self.sample_check = match found {
            Some((id, longest_text)) => {
                effects.push(Effect::CheckSamples(id, longest_text));
                SampleCheck::By(id, doubted)
            }
            None => SampleCheck::Due(doubted),
        };
        is_waiting
    }

    /// The answer of the worker that has the check.
    pub(super) fn samples_checked(
        &mut self,
        now: Instant,
        id: MemberId,
        checked: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) {
        let SampleCheck::By(asked, doubted) = &self.sample_check else {
            return;
        };
        if *asked != id {
            return;
        }
        match (checked, doubted.clone()) {
            (Ok(()), doubted) => {
                self.sample_check = SampleCheck::Done;
                if let Some(Doubted { member, problem, .. }) = doubted {
                    let why = format!("{problem}, and another worker can use that sample");
                    self.dismiss(
                        now,
                        member,
                        &why,
                        "look for damaged model or tokenizer files on its machine",
                        effects,
                    );
                }
            }
            (Err(problem), Some(first)) if first.problem == problem => self.fail(problem, MEND, effects),
            (Err(problem), Some(first)) => self.fail(format!("{}; {problem}", first.problem), MEND, effects),
            // Nobody else was asked for.
            (Err(problem), None) if self.config.run.workers == 1 && self.members.len() == 1 => {
                self.fail(problem, MEND, effects);
            }
            (Err(problem), None) => {
                let Some(complaint) = self.complaint_of(id, &problem) else {
                    return;
                };
                self.sample_check = SampleCheck::Due(Some(Doubted { member: id, complaint, problem, since: now }));
            }
        }
    }

    /// No second worker came who could tell.
    pub(super) fn check_doubted_sample(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if let SampleCheck::Due(Some(doubted)) = &self.sample_check
            && now.saturating_duration_since(doubted.since) > self.config.run.coordinator_wait
        {
            self.fail(doubted.problem.clone(), MEND, effects);
        }
    }
}
