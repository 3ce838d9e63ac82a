//! No generation begins before one worker's model has been found able to take every sample of the data file.

use super::Machine;
use super::events::{Effect, MemberId};

/// How far the check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SampleCheck {
    /// Nothing is left to check.
    Done,
    /// No worker has it.
    Due,
    /// This one has.
    By(MemberId),
}

impl Machine {
    /// The same machine, which lets the first worker that is ready check the samples of the data file before it trains.
    #[must_use]
    pub fn with_sample_check(mut self) -> Self {
        self.sample_check = SampleCheck::Due;
        self
    }

    /// Hands the check to a worker that is ready, another one if that has left; true while a worker has it.
    pub(super) fn is_checking(&mut self, effects: &mut Vec<Effect>) -> bool {
        match self.sample_check {
            SampleCheck::Done => return false,
            SampleCheck::By(id) if self.members.contains_key(&id) => return true,
            SampleCheck::By(_) | SampleCheck::Due => {}
        }
        self.sample_check = SampleCheck::Due;
        for (id, member) in &self.members {
            if let Some(worker_ready) = &member.worker_ready {
                self.sample_check = SampleCheck::By(*id);
                effects.push(Effect::CheckSamples(*id, worker_ready.longest_text));
                return true;
            }
        }
        false
    }

    /// The answer of the worker that has the check.
    pub(super) fn samples_checked(&mut self, id: MemberId, checked: Result<(), String>, effects: &mut Vec<Effect>) {
        if self.sample_check != SampleCheck::By(id) {
            return;
        }
        match checked {
            Ok(()) => self.sample_check = SampleCheck::Done,
            Err(problem) => {
                self.fail(problem, "mend that sample of the dataset, or leave it out; no step was made", effects);
            }
        }
    }
}
