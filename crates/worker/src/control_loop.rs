//! Follows the coordinator on one connection: its messages, the loading model, heartbeats, NCCL, the generation's task.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use numalign_access::rate_limited_log::sanitize;
use numalign_collective::CollectiveError;
use numalign_collective::nccl::NcclError;
use numalign_config::Config;
use numalign_data::Schedule;
use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message as FromCoordinator;
use numalign_protocol::worker_message::Message as FromWorker;

use crate::connection::{Connection, steps_end};
use crate::device::{Device, Loaded, Loading};
use crate::error::WorkerError;
use crate::handshake::{Ending, MAX_MESSAGE, ended_by, refused_or_lost};
use crate::nccl::News;
use crate::session::{Kept, Worker};
use crate::steps::samples_of;
use crate::uncommitted::UncommittedStates;

/// A coordinator that has said nothing for this long in a generation is worth a line in the log. It decides how long to wait;
/// a connection that is dead is found by HTTP/2's keepalive.
const QUIET: Duration = Duration::from_secs(60);

/// A coordinator that ended a generation or the run gets this long to say so before a broken stream ends the connection.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A model on its way, for the run of `config`.
struct LoadingModel {
    config: Arc<Config>,
    config_text: String,
    device: Device,
    loaded: Loading,
}

impl Worker {
    /// Until the connection or the run ends.
    pub(crate) async fn follow(
        &mut self,
        connection: &mut Connection,
        welcome: proto::Welcome,
        inbound: &mut tonic::Streaming<proto::CoordinatorMessage>,
    ) -> Result<Ending, WorkerError> {
        let config = Arc::new(config_of(&welcome)?);
        let mut heartbeat = tokio::time::interval(config.run.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut loading = None;
        let (mut heard, mut told) = (Instant::now(), false);
        let mut renewal: Option<(tokio::time::Instant, String)> = None;
        match &self.kept {
            Some(kept) if kept.config_text == welcome.config => connection.ready(&kept.loaded).await,
            // A model loaded for another run does not fit this one.
            _ => {
                self.kept = None;
                loading = Some(self.load(config, welcome)?);
            }
        }
        loop {
            tokio::select! {
                message = inbound.message() => {
                    (heard, told) = (Instant::now(), false);
                    let message = match message {
                        Ok(Some(message)) => message.message,
                        Ok(None) => return Ok(Ending::Lost("the coordinator closed the connection".to_owned())),
                        Err(status) => return refused_or_lost(&self.options.access, &status),
                    };
                    if let Some(ending) = self.obey(connection, message)? {
                        return Ok(ending);
                    }
                    if connection.steps.is_some() {
                        renewal = None;
                    }
                }
                _ = heartbeat.tick() => {
                    if !told && connection.steps.is_some() && heard.elapsed() > QUIET {
                        told = true;
                        let seconds = QUIET.as_secs();
                        tracing::warn!("the coordinator has said nothing for {seconds} s; waiting for it");
                    }
                    let generation = connection.generation;
                    let rows_until = connection.rows_until.load(Ordering::Relaxed);
                    let damaged = proto::take_damaged();
                    connection.send(FromWorker::Heartbeat(proto::Heartbeat { generation, rows_until, damaged })).await;
                }
                loaded = wait_for(&mut loading) => match loaded {
                    Ok((model, loaded)) => {
                        connection.ready(&loaded).await;
                        let LoadingModel { config, config_text, device, .. } = model;
                        let uncommitted = UncommittedStates::new(Schedule::of_run(&config));
                        self.kept = Some(Kept { config, config_text, device, loaded, uncommitted });
                    }
                    Err(error) => return connection.give_up(error).await,
                },
                reason = due(&renewal) => return Ok(Ending::Lost(reason)),
                news = self.communicators.news() => match news {
                    News::Made(id) => connection.send(FromWorker::NcclId(id)).await,
                    // Another process gets the GPU back.
                    News::Failed(error @ NcclError::Stuck { .. }) => {
                        return connection.give_up(CollectiveError::from(error).into()).await;
                    }
                    News::Failed(error) => connection.nccl_failed(&error).await,
                },
                ended = steps_end(&mut connection.steps) => {
                    if let Err(error) = ended {
                        match consequence(error) {
                            Consequence::WaitForCoordinator => {}
                            Consequence::RenewLink(reason) => {
                                renewal = Some((tokio::time::Instant::now() + LAST_WORD, reason));
                            }
                            Consequence::ReportNccl(error) => connection.nccl_failed(&error).await,
                            Consequence::GiveUp(error) => return connection.give_up(error).await,
                        }
                    }
                }
            }
        }
    }

    /// Starts to load the model of the coordinator's run.
    fn load(&self, config: Arc<Config>, welcome: proto::Welcome) -> Result<LoadingModel, WorkerError> {
        let (device, loaded) = match &self.options.simulated {
            Some(simulated) => simulated.start(),
            None => {
                let wanted = self.options.device.unwrap_or(config.run.device);
                let (local_rank, per_worker) = (self.options.local_rank, config.run.devices_per_worker);
                let choice = numalign_model::load::choose_device(wanted, local_rank, per_worker);
                Device::start(config.clone(), choice, local_rank, samples_of(welcome.trial)?)?
            }
        };
        Ok(LoadingModel { config, config_text: welcome.config, device, loaded })
    }

    /// One message of the coordinator; `Some` if it ends the connection.
    fn obey(
        &mut self,
        connection: &mut Connection,
        message: Option<FromCoordinator>,
    ) -> Result<Option<Ending>, WorkerError> {
        match message {
            Some(FromCoordinator::Begin(begin)) => self.begin(connection, begin)?,
            Some(FromCoordinator::Pause(pause)) => {
                tracing::info!("{}", sanitize(&pause.reason, MAX_MESSAGE));
                connection.stop_steps();
                self.communicators.end();
            }
            Some(FromCoordinator::NcclId(id)) => self.communicators.form(&id)?,
            Some(FromCoordinator::SampleCheck(check)) => {
                let Some(kept) = &self.kept else {
                    return Err(WorkerError::Protocol(
                        "samples came for a check before the model was loaded".to_owned(),
                    ));
                };
                connection.check_samples(kept.device.clone(), samples_of(check.samples)?);
            }
            Some(FromCoordinator::Committed(committed)) => {
                if let Some(kept) = &self.kept {
                    kept.uncommitted.committed(committed.unit, committed.mac);
                }
            }
            Some(FromCoordinator::Done(done)) => {
                tracing::info!("done: {}", sanitize(&done.summary, MAX_MESSAGE));
                return Ok(Some(Ending::Done));
            }
            Some(FromCoordinator::Abort(abort)) => return ended_by(&abort).map(Some),
            Some(FromCoordinator::Welcome(_)) | None => {}
        }
        Ok(None)
    }
}

/// What the failure of a generation's task leads to.
#[derive(Debug)]
enum Consequence {
    /// The generation ended under it: the control stream tells what comes next.
    WaitForCoordinator,
    /// The connection brings no work or takes no rows: another one may, unless the control stream tells why.
    RenewLink(String),
    /// Another generation may do without the rank that NCCL lost.
    ReportNccl(NcclError),
    /// This process cannot go on.
    GiveUp(WorkerError),
}

fn consequence(error: WorkerError) -> Consequence {
    match error {
        WorkerError::Collective(CollectiveError::GenerationOver) => Consequence::WaitForCoordinator,
        WorkerError::Collective(CollectiveError::Connection { reason, .. }) => Consequence::RenewLink(reason),
        WorkerError::Collective(CollectiveError::Nccl(error)) if !matches!(error, NcclError::Stuck { .. }) => {
            Consequence::ReportNccl(error)
        }
        error => Consequence::GiveUp(error),
    }
}

/// The reason to end the connection, once its time has come; pending while there is none.
async fn due(renewal: &Option<(tokio::time::Instant, String)>) -> String {
    match renewal {
        Some((time, reason)) => {
            tokio::time::sleep_until(*time).await;
            reason.clone()
        }
        None => std::future::pending().await,
    }
}

/// The run's configuration, checked.
fn config_of(welcome: &proto::Welcome) -> Result<Config, WorkerError> {
    let config: Config = serde_json::from_str(&welcome.config)
        .map_err(|error| WorkerError::Protocol(format!("its configuration cannot be read: {error}")))?;
    config.check().map_err(|error| WorkerError::Protocol(format!("its configuration is not valid: {error}")))?;
    Ok(config)
}

/// The loaded model, once; pending while nothing loads.
async fn wait_for(loading: &mut Option<LoadingModel>) -> Result<(LoadingModel, Loaded), WorkerError> {
    let Some(model) = loading else {
        return std::future::pending().await;
    };
    let answer = (&mut model.loaded).await;
    let Some(model) = loading.take() else {
        return std::future::pending().await;
    };
    match answer {
        Ok(loaded) => Ok((model, loaded?)),
        Err(_) => Err(WorkerError::Device("it panicked; its message is above".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_generation_is_no_failure() {
        assert!(matches!(consequence(CollectiveError::GenerationOver.into()), Consequence::WaitForCoordinator));
    }

    #[tokio::test]
    async fn a_broken_stream_ends_the_connection_unless_the_coordinator_says_why() {
        let broken = CollectiveError::Connection { unit: 3, reason: "broken pipe".to_owned() };
        let Consequence::RenewLink(reason) = consequence(broken.into()) else { panic!("another connection may do") };
        let (time, moment) = (tokio::time::Instant::now() + Duration::from_millis(30), Duration::from_millis(20));
        assert_eq!(due(&Some((time, reason))).await, "broken pipe");
        assert!(tokio::time::Instant::now() >= time);
        assert!(tokio::time::timeout(moment, due(&None)).await.is_err());
    }

    #[test]
    fn nccl_is_reported_unless_it_keeps_the_gpu() {
        let lost = NcclError::Call { call: "ncclAllReduce", words: "remote process exited".to_owned() };
        let reported = consequence(CollectiveError::from(lost.clone()).into());
        assert!(matches!(reported, Consequence::ReportNccl(error) if error == lost));
        let stuck = consequence(CollectiveError::from(NcclError::Stuck { seconds: 5.0 }).into());
        assert!(matches!(stuck, Consequence::GiveUp(_)));
        let refused = CollectiveError::Refused { unit: 3, reason: "too long".to_owned() };
        assert!(matches!(consequence(refused.into()), Consequence::GiveUp(_)));
    }

    #[test]
    fn a_configuration_that_cannot_be_read_breaks_the_protocol() {
        let welcome = proto::Welcome { config: "{}".to_owned(), ..proto::Welcome::default() };
        assert!(matches!(config_of(&welcome), Err(WorkerError::Protocol(reason)) if reason.contains("cannot be read")));
    }
}
