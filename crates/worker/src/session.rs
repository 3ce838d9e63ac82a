//! A worker's life: connects, works, and connects again when the coordinator was lost.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use numalign_access::ClientAccess;
use numalign_config::{Config, DeviceChoice};
use tonic::transport::Endpoint;

use crate::device::{Device, Loaded};
use crate::error::WorkerError;
use crate::handshake::{Ending, Met};
use crate::nccl::Communicators;
use crate::simulated::Simulated;
use crate::uncommitted::UncommittedStates;

/// This process's present rank, −1 while it has none; log lines carry it.
pub static RANK: AtomicI64 = AtomicI64::new(-1);

/// What the command line gives a worker; everything else comes from the coordinator.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://host:port`, or `https://host:port`
    pub coordinator: String,
    /// The token and certificates for it.
    pub access: ClientAccess,
    /// Overrides the run's `device`.
    pub device: Option<DeviceChoice>,
    /// This worker's number on its machine: it chooses the GPU if the device names none.
    pub local_rank: Option<usize>,
    /// Timeout for a coordinator that was never reached, before its configuration is known.
    pub first_contact: Duration,
    /// How often a worker was started in this one's place before.
    pub restarts: u32,
    /// Rows without a model, for benchmarks and tests of the coordinator; `None` for real work.
    pub simulated: Option<Simulated>,
}

/// An attempt to connect is given this long even when the timeout is nearly over.
const LEAST_TIMEOUT: Duration = Duration::from_millis(500);

/// A coordinator that is out of reach for so long is not just being started again.
const SERIOUS: Duration = Duration::from_secs(5);

/// How often that is said from then on.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// A connection that lasted this long starts the timeout anew.
const STABLE: Duration = Duration::from_secs(2);

/// Joins `options.coordinator` and works until the run is done, the worker is refused, or `shutdown` resolves.
///
/// # Errors
/// The coordinator cannot be reached, refuses this worker or ends the run; or this worker cannot go on: model, data, device.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let endpoint = options.access.endpoint(&options.coordinator)?;
    let mut worker = Worker::new(options, endpoint);
    let ended = tokio::select! {
        ended = worker.live() => ended,
        () = shutdown => Ok(()),
    };
    worker.communicators.finish().await;
    ended
}

/// What outlives a lost connection: the model, and the last committed state.
pub(crate) struct Kept {
    pub config: Arc<Config>,
    pub config_text: String,
    pub device: Device,
    pub loaded: Loaded,
    pub uncommitted: UncommittedStates,
}

/// A worker between its connections.
pub(crate) struct Worker {
    pub options: Options,
    pub endpoint: Endpoint,
    pub kept: Option<Kept>,
    pub communicators: Communicators,
    /// The latest connection reached a coordinator, not only something that listens.
    welcomed: bool,
}

impl Worker {
    pub(crate) fn new(options: Options, endpoint: Endpoint) -> Self {
        Self { options, endpoint, kept: None, communicators: Communicators::default(), welcomed: false }
    }

    async fn live(&mut self) -> Result<(), WorkerError> {
        let mut backoff = Backoff::new(Instant::now());
        let mut turned_away = false;
        let mut notices = Notices::default();
        loop {
            let connected = Instant::now();
            let reason = match self.connect_once(backoff.remaining(self.timeout(), connected)).await? {
                Ending::Done => return Ok(()),
                Ending::Lost(reason) => reason,
                Ending::TurnedAway(reason) => {
                    // A coordinator is there: this worker is a spare that waits for a place.
                    if !turned_away {
                        tracing::warn!("waiting for a place in the run: {reason}");
                    }
                    turned_away = true;
                    backoff.answered(Instant::now());
                    tokio::time::sleep(backoff.next_pause()).await;
                    continue;
                }
            };
            turned_away = false;
            if self.welcomed && connected.elapsed() > STABLE {
                backoff = Backoff::new(Instant::now());
                notices = Notices::default();
            }
            let waited = backoff.waited(Instant::now());
            if waited > self.timeout() {
                return Err(WorkerError::Unreachable {
                    url: self.options.coordinator.clone(),
                    seconds: waited.as_secs_f64(),
                    reason,
                });
            }
            let line = || retry_line(&self.options.coordinator, &reason, self.timeout(), waited);
            match notices.due(waited) {
                Some(Notice::Quiet) => tracing::info!("{}", line()),
                Some(Notice::Serious) => tracing::warn!("{}", line()),
                None => {}
            }
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    /// How long a coordinator may be out of reach.
    fn timeout(&self) -> Duration {
        self.kept.as_ref().map_or(self.options.first_contact, |kept| kept.config.run.coordinator_wait)
    }

    /// One connection, from Hello to its end; something that listens gets `timeout` to say Welcome.
    async fn connect_once(&mut self, timeout: Duration) -> Result<Ending, WorkerError> {
        self.welcomed = false;
        let met = match tokio::time::timeout(timeout.max(LEAST_TIMEOUT), self.meet()).await {
            Ok(met) => met?,
            Err(_) => return Ok(Ending::Lost("it accepts connections and says nothing".to_owned())),
        };
        let Met { mut connection, welcome, mut inbound } = match met {
            Ok(met) => met,
            Err(ending) => return Ok(ending),
        };
        self.welcomed = true;
        let ending = self.follow(&mut connection, welcome, &mut inbound).await;
        connection.stop_steps();
        self.communicators.end();
        ending
    }
}

/// How a lost coordinator is spoken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Quiet,
    Serious,
}

/// When to say that a coordinator is out of reach: at once, after [`SERIOUS`], then now and then.
#[derive(Debug, Default)]
struct Notices {
    /// How long the next one waits.
    next: Duration,
}

impl Notices {
    fn due(&mut self, waited: Duration) -> Option<Notice> {
        if waited < self.next {
            return None;
        }
        if waited < SERIOUS {
            self.next = SERIOUS;
            return Some(Notice::Quiet);
        }
        self.next = waited + TELL_EVERY;
        Some(Notice::Serious)
    }
}

/// What is said while a coordinator is out of reach, which it has been for `waited` of `timeout`.
fn retry_line(url: &str, reason: &str, timeout: Duration, waited: Duration) -> String {
    format!(
        "no coordinator at {url} ({reason}); trying again for {:.0} s, then this worker gives up (coordinator_wait)",
        timeout.saturating_sub(waited).as_secs_f64().ceil()
    )
}

/// Pauses between attempts to connect, and how long they have been going on.
#[derive(Debug)]
struct Backoff {
    since: Instant,
    pause: Duration,
}

impl Backoff {
    const SHORTEST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self { since: now, pause: Self::SHORTEST }
    }

    fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// What is left of `timeout`.
    fn remaining(&self, timeout: Duration, now: Instant) -> Duration {
        timeout.saturating_sub(self.waited(now))
    }

    /// A coordinator answered: the timeout begins anew, and the pauses stay.
    fn answered(&mut self, now: Instant) {
        self.since = now;
    }

    /// The pause before the next attempt: twice the one before.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(Self::LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second() {
        let mut backoff = Backoff::new(Instant::now());
        let pauses: Vec<u128> = (0..7).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_retry_says_when_it_ends() {
        let line = retry_line("http://a:1", "refused", Duration::from_secs(600), Duration::from_millis(30_500));
        for words in ["no coordinator at http://a:1 (refused)", "for 570 s", "gives up", "coordinator_wait"] {
            assert!(line.contains(words), "{line}");
        }
        let mut notices = Notices::default();
        let told: Vec<(u64, Notice)> =
            (0..70).filter_map(|second| Some((second, notices.due(Duration::from_secs(second))?))).collect();
        let expected = [(0, Notice::Quiet), (5, Notice::Serious), (35, Notice::Serious), (65, Notice::Serious)];
        assert_eq!(told, expected);
    }

    #[test]
    fn the_timeout_runs_from_the_first_attempt() {
        let start = Instant::now();
        let mut backoff = Backoff::new(start);
        let timeout = Duration::from_secs(3);
        assert_eq!(backoff.remaining(timeout, start), timeout);
        backoff.next_pause();
        assert_eq!(backoff.remaining(timeout, start + Duration::from_secs(2)), Duration::from_secs(1));
        assert_eq!(backoff.remaining(timeout, start + Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(backoff.waited(start + Duration::from_secs(9)), Duration::from_secs(9));
        backoff.next_pause();
        backoff.answered(start + Duration::from_secs(9));
        assert_eq!(backoff.remaining(timeout, start + Duration::from_secs(10)), Duration::from_secs(2));
        assert_eq!(backoff.next_pause(), Duration::from_millis(200), "a full run is not asked more often");
    }
}
