//! How many connections a [`Listener`](super::Listener) keeps, and for how long one may stay unauthenticated.

use std::time::Duration;

/// How many connections there may be, and how long one may stay unknown.
#[derive(Debug, Clone, Copy)]
pub struct ListenerLimits {
    /// Connections on which no call was authorised yet.
    pub unknown: usize,
    /// Connections on which a call was authorised.
    pub known: usize,
    /// Connections on which no call was authorised, and which asked for the health of the service: they stay.
    pub health_checks: usize,
    /// A connection that is unknown for longer is dropped: handshake, preface and first call must fit in.
    pub first_call: Duration,
}

impl ListenerLimits {
    /// Lets every worker connect at once and be known twice (a lost connection lingers while its worker comes back),
    /// with a margin for status queries.
    pub fn for_workers(max_workers: usize) -> Self {
        let (unknown, known) = (256 + max_workers, 2 * max_workers + 64);
        Self { unknown, known, health_checks: MAX_HEALTH_CHECKS, first_call: Duration::from_secs(10) }
    }

    /// File descriptors that all of this may need, including those for files and the runtime.
    pub fn descriptors(&self) -> u64 {
        (self.unknown + self.known + self.health_checks) as u64 + RESERVED
    }

    /// The same within `descriptors` file descriptors, so that no number of connections keeps a checkpoint from being
    /// opened.
    pub fn within(self, descriptors: u64) -> Self {
        if self.descriptors() <= descriptors {
            return self;
        }
        let spare = descriptors.saturating_sub(RESERVED) as usize;
        let (unknown, health_checks) = (self.unknown.min(spare / 4).max(1), self.health_checks.min(spare / 8));
        Self {
            unknown,
            health_checks,
            known: self.known.min(spare.saturating_sub(unknown + health_checks)).max(1),
            ..self
        }
    }
}

/// Orchestrators that watch the health service.
const MAX_HEALTH_CHECKS: usize = 16;

/// Descriptors for checkpoints, the log, the runtime, and connections on their way in or out.
const RESERVED: u64 = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_fit_into_the_descriptors_there_are() {
        let wanted = ListenerLimits::for_workers(64);
        assert_eq!(wanted.within(1024).unknown, wanted.unknown);
        for descriptors in [64, 100, 200, 400] {
            let limits = wanted.within(descriptors);
            assert!(limits.descriptors() <= descriptors, "{descriptors}: {limits:?}");
            assert!(limits.unknown >= 1 && limits.known > limits.unknown, "{descriptors}: {limits:?}");
        }
    }
}
