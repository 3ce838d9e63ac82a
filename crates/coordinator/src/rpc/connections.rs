//! Which connection each member joined on. Its work and its rows are accepted on that one alone, so nobody can speak for
//! a member by guessing its number.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use numalign_access::listener::{ConnectionId, Peer};
use tonic::{Request, Status};

use crate::machine::MemberId;

/// The connection of each member.
#[derive(Default)]
pub struct ConnectionRegistry {
    members: Mutex<HashMap<MemberId, ConnectionId>>,
}

impl ConnectionRegistry {
    fn lock(&self) -> MutexGuard<'_, HashMap<MemberId, ConnectionId>> {
        // Single insertions and removals: sound after a panic elsewhere.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection of a call.
    ///
    /// # Errors
    /// The call did not come through the listener.
    pub fn connection_of<T>(request: &Request<T>) -> Result<ConnectionId, Status> {
        match request.extensions().get::<Peer>() {
            Some(peer) => Ok(peer.id),
            None => Err(Status::internal("the connection did not come through the listener")),
        }
    }

    /// `member` joined on `connection`.
    pub fn insert(&self, member: MemberId, connection: ConnectionId) {
        self.lock().insert(member, connection);
    }

    /// `member` is gone.
    pub fn remove(&self, member: MemberId) {
        self.lock().remove(&member);
    }

    /// Whether `member` joined on `connection`.
    ///
    /// # Errors
    /// The call names a member of another connection.
    pub fn check(&self, member: MemberId, connection: ConnectionId) -> Result<(), Status> {
        match self.lock().get(&member) {
            Some(known) if *known == connection => Ok(()),
            // Messages from evicted workers may still arrive; that is no attack, but the answer is the same.
            _ => Err(Status::failed_precondition(format!("member {} did not join on this connection", member.0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_speaks_from_its_own_connection_alone() {
        let registry = ConnectionRegistry::default();
        registry.insert(MemberId(1), ConnectionId(10));
        assert!(registry.check(MemberId(1), ConnectionId(10)).is_ok());
        assert!(registry.check(MemberId(1), ConnectionId(11)).is_err());
        assert!(registry.check(MemberId(2), ConnectionId(10)).is_err());
        registry.remove(MemberId(1));
        assert!(registry.check(MemberId(1), ConnectionId(10)).is_err());
    }
}
