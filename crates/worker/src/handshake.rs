//! The start of a connection: Hello out, Welcome in; and what the coordinator's refusals mean.

use std::os::unix::fs::MetadataExt;

use numalign_access::ClientAccess;
use numalign_access::client::{Unconnected, status_words};
use numalign_access::rate_limited_log::sanitize;
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message as FromCoordinator;
use numalign_protocol::worker_message::Message as FromWorker;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::connection::Connection;
use crate::error::WorkerError;
use crate::session::Worker;

/// How one connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The run is done.
    Done,
    /// Another connection may fare better.
    Lost(String),
    /// A coordinator is there, and has no place for this worker now.
    TurnedAway(String),
}

/// A coordinator that was reached.
pub(crate) struct Met {
    pub connection: Connection,
    pub welcome: proto::Welcome,
    pub inbound: tonic::Streaming<proto::CoordinatorMessage>,
}

impl Worker {
    fn hello(&self) -> proto::Hello {
        let rejoin_state = self.kept.as_ref().and_then(|kept| {
            let (state, mac, rollback) = kept.uncommitted.committed_state()?;
            Some(proto::RejoinState {
                run_id: kept.config.run.run_id.clone(),
                config_digest: kept.config.digest(),
                state: state.to_bytes(),
                mac,
                rollback,
            })
        });
        proto::Hello {
            protocol: proto::PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            rejoin_state,
            restarts: self.options.restarts,
            pid_namespace: pid_namespace(),
        }
    }

    /// Connects and says Hello; the connection with the Welcome, or how it ended before.
    pub(crate) async fn meet(&self) -> Result<Result<Met, Ending>, WorkerError> {
        let access = &self.options.access;
        let client = match access.connect(&self.endpoint).await {
            Ok(client) => client,
            Err(Unconnected::Lost(reason)) => return Ok(Err(Ending::Lost(reason))),
            Err(Unconnected::Refused(refusal)) => return Err(refusal.into()),
        };
        let (reports, outbound) = mpsc::channel::<proto::WorkerMessage>(64);
        let hello = proto::WorkerMessage { message: Some(FromWorker::Hello(self.hello())) };
        if reports.send(hello).await.is_err() {
            return Ok(Err(Ending::Lost("the connection closed at once".to_owned())));
        }
        let mut inbound = match client.clone().control(ReceiverStream::new(outbound)).await {
            Ok(inbound) => inbound.into_inner(),
            Err(status) => return refused_or_lost(access, &status).map(Err),
        };
        let first = match inbound.message().await {
            Ok(Some(first)) => first.message,
            Ok(None) => return Ok(Err(Ending::Lost("the coordinator closed the connection".to_owned()))),
            Err(status) => return refused_or_lost(access, &status).map(Err),
        };
        let welcome = match first {
            Some(FromCoordinator::Welcome(welcome)) => welcome,
            Some(FromCoordinator::Abort(abort)) => return ended_by(&abort).map(Err),
            _ => return Err(WorkerError::Protocol("its first message is not Welcome".to_owned())),
        };
        let connection = Connection::new(client, reports, &welcome);
        Ok(Ok(Met { connection, welcome, inbound }))
    }
}

/// The PID namespace of this process; 0 where the kernel does not tell.
pub fn pid_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Characters that are kept of what a coordinator says.
pub(crate) const MAX_MESSAGE: usize = 4096;

/// An Abort is final for this process if it says so; otherwise the worker may come back.
pub(crate) fn ended_by(abort: &proto::Abort) -> Result<Ending, WorkerError> {
    let (reason, hint) = (sanitize(&abort.reason, MAX_MESSAGE), sanitize(&abort.hint, MAX_MESSAGE));
    if abort.restart {
        return Err(WorkerError::Stalled { reason, hint });
    }
    match (abort.permanent, abort.run_over) {
        (true, true) => Err(WorkerError::Aborted { reason, hint }),
        (true, false) => Err(WorkerError::Dismissed { reason, hint }),
        (false, _) => Ok(Ending::TurnedAway(reason)),
    }
}

/// A refusal by another build or for lack of access is final; every other status is a lost connection.
pub(crate) fn refused_or_lost(access: &ClientAccess, status: &tonic::Status) -> Result<Ending, WorkerError> {
    if let Some(refusal) = access.refusal(status) {
        return Err(refusal.into());
    }
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument | tonic::Code::Unimplemented => {
            Err(WorkerError::Refused { reason: sanitize(status.message(), MAX_MESSAGE) })
        }
        _ => Ok(Ending::Lost(sanitize(&status_words(status), MAX_MESSAGE))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use numalign_config::Config;
    use numalign_data::Schedule;
    use numalign_projector::{Layout, State};
    use tonic::transport::Endpoint;

    use super::*;
    use crate::session::{Kept, Options};
    use crate::simulated::Simulated;
    use crate::uncommitted::UncommittedStates;

    #[tokio::test]
    async fn a_worker_offers_its_committed_state_and_nothing_before_it_has_one() {
        let simulated = Simulated::new(4);
        let options = Options {
            coordinator: "http://127.0.0.1:1".to_owned(),
            access: ClientAccess::default(),
            device: None,
            local_rank: None,
            first_contact: Duration::from_secs(1),
            restarts: 2,
            simulated: Some(simulated.clone()),
        };
        let mut worker = Worker::new(options, Endpoint::from_static("http://127.0.0.1:1"));
        assert_eq!((worker.hello().rejoin_state, worker.hello().restarts), (None, 2));

        let config = Config::with(&[]).unwrap();
        let (device, loading) = simulated.start();
        let uncommitted = UncommittedStates::new(Schedule::of_run(&config));
        let state = State::initial(Layout::of(&config.recipe, 4, 0), 1);
        worker.kept = Some(Kept {
            config: Arc::new(config.clone()),
            config_text: String::new(),
            device,
            loaded: loading.await.unwrap().unwrap(),
            uncommitted: uncommitted.clone(),
        });
        assert_eq!(worker.hello().rejoin_state, None);
        uncommitted.restart(Arc::new(state.clone()), vec![6; 32], 3);
        let offered = worker.hello().rejoin_state.unwrap();
        assert_eq!((offered.run_id, offered.mac, offered.rollback), (config.run.run_id.clone(), vec![6; 32], 3));
        assert_eq!(offered.config_digest, config.digest());
        assert_eq!(offered.state, state.to_bytes());
    }

    fn abort(permanent: bool, run_over: bool) -> proto::Abort {
        proto::Abort {
            reason: "no space left".to_owned(),
            hint: "make room".to_owned(),
            permanent,
            run_over,
            restart: false,
        }
    }

    #[test]
    fn only_a_permanent_abort_is_final() {
        assert_eq!(ended_by(&abort(false, false)).unwrap(), Ending::TurnedAway("no space left".to_owned()));
        let Err(error @ WorkerError::Aborted { .. }) = ended_by(&abort(true, true)) else {
            panic!("a permanent abort ends the worker");
        };
        assert_eq!(error.to_string(), "the coordinator ended the run: no space left");
        assert_eq!(error.hint().as_deref(), Some("make room"));
        let Err(error @ WorkerError::Dismissed { .. }) = ended_by(&abort(true, false)) else {
            panic!("a permanent abort ends the worker");
        };
        assert_eq!(error.to_string(), "the coordinator dismissed this worker: no space left");
        assert_eq!(error.hint().as_deref(), Some("make room"));
        let stalled = ended_by(&proto::Abort { restart: true, ..abort(false, false) });
        assert!(matches!(stalled, Err(WorkerError::Stalled { .. })), "{stalled:?}");
    }

    #[test]
    fn a_coordinators_words_cannot_steer_the_terminal() {
        let hostile = "\x1b[2J\u{9b}31m\u{202e}".repeat(10_000);
        let abort =
            proto::Abort { permanent: true, reason: hostile.clone(), hint: hostile, run_over: true, restart: false };
        let Err(error) = ended_by(&abort) else { panic!("it is final") };
        for text in [error.to_string(), error.hint().unwrap()] {
            assert!(text.chars().count() < MAX_MESSAGE + 64);
            assert!(!text.contains(['\x1b', '\u{9b}', '\u{202e}']), "{text:?}");
        }
    }

    #[test]
    fn another_build_is_refused_and_an_absent_coordinator_is_lost() {
        let access = ClientAccess::default();
        let answer = |code| refused_or_lost(&access, &tonic::Status::new(code, "protocol 4, here 5"));
        for code in [tonic::Code::FailedPrecondition, tonic::Code::InvalidArgument, tonic::Code::Unimplemented] {
            let Err(WorkerError::Refused { reason }) = answer(code) else {
                panic!("{code:?} is final");
            };
            assert_eq!(reason, "protocol 4, here 5");
        }
        for code in [tonic::Code::Unavailable, tonic::Code::Cancelled, tonic::Code::Unknown, tonic::Code::Internal] {
            assert!(matches!(answer(code), Ok(Ending::Lost(reason)) if reason.contains("protocol 4")), "{code:?}");
        }
    }

    #[test]
    fn a_missing_token_is_final() {
        let refused = refused_or_lost(&ClientAccess::default(), &tonic::Status::unauthenticated("no token"));
        assert!(matches!(refused, Err(WorkerError::Access(_))), "{refused:?}");
    }
}
