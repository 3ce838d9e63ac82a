//! Who has heard of the newest generation. A worker that lives but does not read its messages would stop every other
//! one: its heartbeats name the newest generation it knows, and one that stays behind is named here. Kept by the shell.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::machine::MemberId;

/// Generations that members were told of and have not answered yet, oldest first.
#[derive(Debug, Default)]
pub struct Unheard {
    told: HashMap<MemberId, VecDeque<(u64, Instant)>>,
}

impl Unheard {
    /// `member` was told of generation `number`; numbers only grow.
    pub fn told(&mut self, member: MemberId, number: u64, now: Instant) {
        self.told.entry(member).or_default().push_back((number, now));
    }

    /// `member` says that it knows of generation `number`.
    pub fn heard(&mut self, member: MemberId, number: u64) {
        let Some(waiting) = self.told.get_mut(&member) else {
            return;
        };
        while waiting.front().is_some_and(|(wanted, _)| *wanted <= number) {
            waiting.pop_front();
        }
        if waiting.is_empty() {
            self.told.remove(&member);
        }
    }

    /// `member` is gone.
    pub fn forget(&mut self, member: MemberId) {
        self.told.remove(&member);
    }

    /// Members that have left something unanswered for longer than `limit`, in the order of their numbers.
    pub fn overdue(&self, now: Instant, limit: Duration) -> Vec<MemberId> {
        let mut list = Vec::new();
        for (member, waiting) in &self.told {
            if waiting.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) > limit) {
                list.push(*member);
            }
        }
        list.sort_unstable();
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_named() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let limit = Duration::from_millis(300);
        let (a, b, c) = (MemberId(1), MemberId(2), MemberId(3));
        let mut unheard = Unheard::default();
        for (member, number, ms) in [(a, 1, 0), (b, 1, 0), (c, 1, 0), (a, 2, 200), (b, 2, 200)] {
            unheard.told(member, number, at(ms));
        }
        unheard.heard(a, 1);
        unheard.heard(MemberId(9), 1);
        assert_eq!(unheard.overdue(at(300), limit), []);
        assert_eq!(unheard.overdue(at(400), limit), [b, c], "news of a later generation does not start the wait anew");
        unheard.forget(c);
        unheard.heard(b, 2);
        assert_eq!(unheard.overdue(at(400), limit), []);
        assert_eq!(unheard.overdue(at(501), limit), [a], "it knows of the first one only");
    }
}
