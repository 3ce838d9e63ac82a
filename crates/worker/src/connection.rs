//! What a worker says on its connection: ready, NCCL's failure, why it gives up.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use numalign_access::Client;
use numalign_collective::nccl::NcclError;
use numalign_data::Sample;
use numalign_model::NormParameter;
use numalign_protocol as proto;
use numalign_protocol::worker_message::Message as FromWorker;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::device::{Device, Loaded};
use crate::error::WorkerError;
use crate::handshake::Ending;
use crate::nccl;

/// NCCL reports a lost rank as an error too: the coordinator gets this long to report it first.
const LOST_RANK: Duration = Duration::from_millis(500);

/// The sending side of one connection, and the generation's task that works on it.
pub(crate) struct Connection {
    pub client: Client,
    pub reports: mpsc::Sender<proto::WorkerMessage>,
    pub member: u64,
    pub incarnation: u64,
    /// Number of the newest generation that was begun here.
    pub generation: u64,
    /// Rollbacks of the run before that generation.
    pub rollback: u64,
    /// The unit below which this generation's rows are computed.
    pub rows_until: Arc<AtomicU64>,
    pub steps: Option<JoinHandle<Result<(), WorkerError>>>,
}

impl Connection {
    pub(crate) fn new(client: Client, reports: mpsc::Sender<proto::WorkerMessage>, welcome: &proto::Welcome) -> Self {
        let (member, incarnation) = (welcome.member, welcome.incarnation);
        let rows_until = Arc::default();
        Self { client, reports, member, incarnation, generation: 0, rollback: 0, rows_until, steps: None }
    }

    /// A closed channel means a lost connection, which the inbound stream reports.
    pub(crate) async fn send(&self, message: FromWorker) {
        let _ = self.reports.send(proto::WorkerMessage { message: Some(message) }).await;
    }

    /// Reports NCCL's failure, which ends the generation; unless a lost rank caused it: then the coordinator's Pause is on
    /// its way.
    pub(crate) async fn nccl_failed(&self, error: &NcclError) {
        tracing::warn!("{error}");
        let (incarnation, number, rollback) = (self.incarnation, self.generation, self.rollback);
        let generation = proto::Generation { incarnation, number, rollback };
        let (reports, failed) = (self.reports.clone(), nccl::failed(generation, error));
        tokio::spawn(async move {
            tokio::time::sleep(LOST_RANK).await;
            // A connection that closed in the meantime has nothing to be told.
            let _ = reports.send(proto::WorkerMessage { message: Some(FromWorker::NcclFailed(failed)) }).await;
        });
    }

    pub(crate) async fn ready(&self, loaded: &Loaded) {
        let (ability, no_nccl) = nccl::to_proto(&loaded.nccl);
        let ready = proto::Ready {
            base_fingerprint: loaded.fingerprint.clone(),
            hidden_size: loaded.hidden_size as u32,
            model_parameters: loaded.parameters,
            weights: loaded.description.weights.to_owned(),
            device: loaded.description.device.clone(),
            trial_digest: loaded.trial_digest.clone(),
            layer_norms: loaded.layer_norms.iter().map(layer_norm).collect(),
            nccl: ability,
            no_nccl,
            tokenizer_fingerprint: loaded.tokenizer_fingerprint.clone().unwrap_or_default(),
            longest_text: loaded.longest_text,
            arithmetic: loaded.description.arithmetic.to_string(),
        };
        self.send(FromWorker::Ready(ready)).await;
    }

    /// Answers the coordinator whether the model can take `samples`, as soon as the device's thread knows.
    pub(crate) fn check_samples(&self, device: Device, samples: Vec<Sample>) {
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let message = match device.check(samples).await {
                Ok(()) => FromWorker::SamplesChecked(proto::SamplesChecked::default()),
                // Another worker may do better.
                Err(error @ WorkerError::Device(_)) => FromWorker::Failure(proto::Failure {
                    permanent: false,
                    message: error.to_string(),
                    data: false,
                    sample: None,
                }),
                Err(error) => {
                    let (sample, problem) = match &error {
                        WorkerError::Engine(error) => (error.sample().unwrap_or(u64::MAX), error.reason()),
                        other => (u64::MAX, other.to_string()),
                    };
                    FromWorker::SamplesChecked(proto::SamplesChecked { problem, sample })
                }
            };
            // A connection that closed in the meantime has nothing to be told.
            let _ = reports.send(proto::WorkerMessage { message: Some(message) }).await;
        });
    }

    /// Tells the coordinator why this worker cannot go on, and ends it.
    pub(crate) async fn give_up(&self, error: WorkerError) -> Result<Ending, WorkerError> {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" (hint: {hint})"));
        // The coordinator knows what row of the file a sample is.
        let (sample, what) = match &error {
            WorkerError::Engine(error) => (error.sample(), error.reason()),
            other => (None, other.to_string()),
        };
        let failure = proto::Failure {
            permanent: error.is_permanent(),
            message: format!("{what}{hint}"),
            data: error.is_about_data(),
            sample,
        };
        self.send(FromWorker::Failure(failure)).await;
        // The message must leave before the process does.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Err(error)
    }

    pub(crate) fn stop_steps(&mut self) {
        if let Some(steps) = self.steps.take() {
            steps.abort();
        }
    }
}

fn layer_norm(norm: &NormParameter) -> proto::LayerNorm {
    proto::LayerNorm::new(norm.name.clone(), &norm.values)
}

/// The end of the generation's task; pending while there is none.
pub(crate) async fn steps_end(steps: &mut Option<JoinHandle<Result<(), WorkerError>>>) -> Result<(), WorkerError> {
    let Some(handle) = steps else {
        return std::future::pending().await;
    };
    let ended = handle.await;
    *steps = None;
    match ended {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Ok(()),
        Err(error) => Err(WorkerError::Device(format!("the step loop panicked: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use numalign_collective::CollectiveError;
    use numalign_engine::EngineError;
    use numalign_model::ModelError;
    use numalign_projector::StateError;

    use super::*;

    #[test]
    fn only_failures_of_the_process_are_worth_another_one() {
        let bad = EngineError::BadSample { index: 3, reason: "its text has no tokens".to_owned() };
        let bad = WorkerError::from(bad);
        assert!(bad.is_permanent() && bad.is_about_data());
        let diverged = StateError::NotFinite { step: 3, index: 0, value: f32::NAN };
        assert!(WorkerError::from(diverged).is_about_data());
        let refused = CollectiveError::Refused { unit: 3, reason: "too long".to_owned() };
        for own in [WorkerError::from(refused), WorkerError::Device("it panicked".to_owned())] {
            assert!(!own.is_about_data(), "{own}");
        }
        assert!(WorkerError::from(CollectiveError::GenerationOver).is_permanent());
        assert!(!WorkerError::Device("it panicked".to_owned()).is_permanent());
        let failed = WorkerError::from(ModelError::DeviceTask { reason: "out of memory".to_owned() });
        assert!(!failed.is_permanent() && !failed.is_about_data());
        assert!(!WorkerError::from(CollectiveError::from(NcclError::Stuck { seconds: 5.0 })).is_permanent());
    }

    #[tokio::test]
    async fn the_end_of_the_unit_loop_is_told_once() {
        let mut none = None;
        let pending = tokio::time::timeout(Duration::from_millis(20), steps_end(&mut none)).await;
        assert!(pending.is_err(), "without a task there is nothing to wait for");
        let mut failed = Some(tokio::spawn(async { Err(WorkerError::Device("gone".to_owned())) }));
        assert!(matches!(steps_end(&mut failed).await, Err(WorkerError::Device(_))));
        assert!(failed.is_none());
        let mut stopped = Some(tokio::spawn(std::future::pending()));
        if let Some(task) = &stopped {
            task.abort();
        }
        assert!(steps_end(&mut stopped).await.is_ok(), "a task that was stopped did not fail");
    }
}
