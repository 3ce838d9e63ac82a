//! The table of open connections: unauthenticated ones in the order in which they came, health checks, and authenticated ones.
//! Pure but for the cancel channels it hands out.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::limits::ListenerLimits;
use super::negotiate::Speaks;
use crate::rate_limited_log::RateLimitedLog;
use crate::tls::ServerTls;

/// A connection's number, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Dropping it cancels the connection.
type CancelHandle = oneshot::Sender<()>;

/// What the listener and all its connections share.
pub(super) struct Shared {
    table: Mutex<Table>,
    pub(super) limits: ListenerLimits,
    pub(super) tls: Option<ServerTls>,
    pub(super) speaks: Speaks,
    pub(super) log: RateLimitedLog,
}

impl Shared {
    pub(super) fn new(limits: ListenerLimits, tls: Option<ServerTls>, speaks: Speaks) -> Self {
        Self { table: Mutex::default(), limits, tls, speaks, log: RateLimitedLog::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is whole; a panic elsewhere leaves it sound.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All open connections.
#[derive(Default)]
pub(super) struct Table {
    next: u64,
    /// In the order of arrival.
    pub(super) unknown: BTreeMap<ConnectionId, (Instant, CancelHandle)>,
    pub(super) known: HashMap<ConnectionId, CancelHandle>,
    /// Unauthenticated ones that asked for the health of the service: a watch lasts.
    health_checks: HashMap<ConnectionId, CancelHandle>,
    /// Open sockets, including cancelled ones that are about to close.
    open: usize,
}

impl Table {
    /// Adds a connection; the oldest unknown one is dropped if the table is full.
    pub(super) fn insert(&mut self, now: Instant, limits: &ListenerLimits) -> (ConnectionId, oneshot::Receiver<()>) {
        while self.unknown.len() >= limits.unknown.max(1) {
            self.drop_oldest();
        }
        let id = ConnectionId(self.next);
        self.next += 1;
        self.open += 1;
        let (cancel, receiver) = oneshot::channel();
        self.unknown.insert(id, (now, cancel));
        (id, receiver)
    }

    pub(super) fn drop_oldest(&mut self) {
        self.unknown.pop_first();
    }

    /// A call on it was authorised. False if no further known connection is allowed, or if it was dropped just now.
    pub(super) fn admit(&mut self, id: ConnectionId, limits: &ListenerLimits) -> bool {
        if self.known.contains_key(&id) {
            return true;
        }
        if self.known.len() >= limits.known {
            return false;
        }
        let unknown = self.unknown.remove(&id).map(|(_, cancel)| cancel);
        let Some(cancel) = unknown.or_else(|| self.health_checks.remove(&id)) else {
            return false;
        };
        self.known.insert(id, cancel);
        true
    }

    /// It asked for the health of the service: it stays, as long as there are few of its kind.
    pub(super) fn keep_health_check(&mut self, id: ConnectionId, limits: &ListenerLimits) {
        if self.health_checks.len() < limits.health_checks
            && let Some((_, cancel)) = self.unknown.remove(&id)
        {
            self.health_checks.insert(id, cancel);
        }
    }

    /// Sockets that were cancelled but are still open.
    pub(super) fn lingering(&self) -> usize {
        self.open.saturating_sub(self.unknown.len() + self.health_checks.len() + self.known.len())
    }

    /// Its socket is closed.
    pub(super) fn remove(&mut self, id: ConnectionId) {
        self.open = self.open.saturating_sub(1);
        self.unknown.remove(&id);
        self.health_checks.remove(&id);
        self.known.remove(&id);
    }

    /// Drops connections that were unknown for too long; answers with their number.
    pub(super) fn drop_overdue(&mut self, now: Instant, limits: &ListenerLimits) -> usize {
        let before = self.unknown.len();
        while let Some(oldest) = self.unknown.first_entry() {
            if now.saturating_duration_since(oldest.get().0) < limits.first_call {
                break;
            }
            oldest.remove();
        }
        before - self.unknown.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FEW: ListenerLimits =
        ListenerLimits { unknown: 3, known: 2, health_checks: 1, first_call: Duration::from_secs(10) };

    #[test]
    fn a_few_health_checks_stay_and_take_no_place_of_others() {
        let mut table = Table::default();
        let now = Instant::now();
        let (first, mut first_cancel) = table.insert(now, &FEW);
        let (second, mut second_cancel) = table.insert(now, &FEW);
        table.keep_health_check(first, &FEW);
        table.keep_health_check(second, &FEW);
        table.keep_health_check(first, &FEW);
        assert_eq!(table.drop_overdue(now + FEW.first_call, &FEW), 1);
        assert_eq!(first_cancel.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(second_cancel.try_recv(), Err(oneshot::error::TryRecvError::Closed), "there is room for one");
        assert!(table.admit(first, &FEW), "a health check may turn out to be known");
        assert_eq!((table.health_checks.len(), table.known.len()), (0, 1));
        let (third, _third_cancel) = table.insert(now, &FEW);
        table.keep_health_check(third, &FEW);
        table.remove(third);
        assert_eq!((table.health_checks.len(), table.lingering()), (0, 1), "the second one is still to close");
    }

    #[test]
    fn the_oldest_unknown_connection_makes_room() {
        let mut table = Table::default();
        let now = Instant::now();
        let mut cancels: Vec<_> = (0..5).map(|_| table.insert(now, &FEW).1).collect();
        let gone: Vec<bool> =
            cancels.iter_mut().map(|cancel| cancel.try_recv() == Err(oneshot::error::TryRecvError::Closed)).collect();
        assert_eq!(gone, [true, true, false, false, false]);
    }

    #[test]
    fn a_known_connection_stays_and_their_number_is_bounded() {
        let mut table = Table::default();
        let now = Instant::now();
        let (first, mut cancelled) = table.insert(now, &FEW);
        let (second, _second_cancel) = table.insert(now, &FEW);
        let (third, _third_cancel) = table.insert(now, &FEW);
        assert!(table.admit(first, &FEW) && table.admit(second, &FEW));
        assert!(table.admit(first, &FEW), "once known, always known");
        assert!(!table.admit(third, &FEW), "there is room for two");
        for _ in 0..10 {
            let _ = table.insert(now, &FEW);
        }
        table.drop_overdue(now + FEW.first_call, &FEW);
        assert!(table.unknown.is_empty());
        assert_eq!(cancelled.try_recv(), Err(oneshot::error::TryRecvError::Empty), "nothing touches a known one");
        table.remove(first);
        assert_eq!(cancelled.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let (next, _next_cancel) = table.insert(now, &FEW);
        assert!(table.admit(next, &FEW), "a permit that was given back is free");
    }

    #[test]
    fn only_what_is_overdue_is_dropped() {
        let mut table = Table::default();
        let now = Instant::now();
        let (_, mut old) = table.insert(now, &FEW);
        let (_, mut young) = table.insert(now + Duration::from_secs(5), &FEW);
        assert_eq!(table.drop_overdue(now + Duration::from_secs(9), &FEW), 0);
        assert_eq!(table.drop_overdue(now + Duration::from_secs(10), &FEW), 1);
        assert_eq!(old.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(young.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }
}
