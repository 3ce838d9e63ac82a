//! Which members acknowledged the newest generation. A live worker that does not read its messages would block all others:
//! its heartbeats name the newest generation it knows, and one that stays behind is found here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::machine::MemberId;

/// Generations that were sent to members and not acknowledged yet, oldest first.
#[derive(Debug, Default)]
pub struct PendingAcks {
    sent: HashMap<MemberId, VecDeque<(u64, Instant)>>,
}

impl PendingAcks {
    /// Generation `number` was sent to `member`; numbers only grow.
    pub fn sent(&mut self, member: MemberId, number: u64, now: Instant) {
        self.sent.entry(member).or_default().push_back((number, now));
    }

    /// `member` knows generation `number`.
    pub fn acked(&mut self, member: MemberId, number: u64) {
        let Some(waiting) = self.sent.get_mut(&member) else {
            return;
        };
        while waiting.front().is_some_and(|(wanted, _)| *wanted <= number) {
            waiting.pop_front();
        }
        if waiting.is_empty() {
            self.sent.remove(&member);
        }
    }

    /// `member` is gone.
    pub fn forget(&mut self, member: MemberId) {
        self.sent.remove(&member);
    }

    /// Members with something unacknowledged for longer than `limit`, in the order of their numbers.
    pub fn overdue(&self, now: Instant, limit: Duration) -> Vec<MemberId> {
        let mut list = Vec::new();
        for (member, waiting) in &self.sent {
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
        let mut pending_acks = PendingAcks::default();
        for (member, number, ms) in [(a, 1, 0), (b, 1, 0), (c, 1, 0), (a, 2, 200), (b, 2, 200)] {
            pending_acks.sent(member, number, at(ms));
        }
        pending_acks.acked(a, 1);
        pending_acks.acked(MemberId(9), 1);
        assert_eq!(pending_acks.overdue(at(300), limit), []);
        assert_eq!(
            pending_acks.overdue(at(400), limit),
            [b, c],
            "news of a later generation does not start the wait anew"
        );
        pending_acks.forget(c);
        pending_acks.acked(b, 2);
        assert_eq!(pending_acks.overdue(at(400), limit), []);
        assert_eq!(pending_acks.overdue(at(501), limit), [a], "it knows of the first one only");
    }
}
