//! The driver without a network: calls go in, messages come out of the outboxes, files appear.

use std::path::PathBuf;

use numalign_checkpoint::Checkpoint;
use numalign_config::Config;
use numalign_data::{Domain, SampleStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use super::*;
use crate::fixtures::worker_ready;
use crate::machine::{Cause, Process, Report, Timing};
use crate::rpc::outbox::{OutboxStream, outbox};
use crate::state_key::StateKey;

const STEPS: u64 = 3;

fn config(folder: &std::path::Path) -> Config {
    let result = folder.join("final.safetensors").display().to_string();
    let flags = [
        ("run_id", "mine"),
        ("num_epochs", "1"),
        ("num_batches", "3"),
        ("batch_size", "4"),
        ("micro_batch_size", "2"),
        ("workers", "1"),
        ("checkpoint_every", "1"),
        ("model_path_save", &result),
    ];
    Config::with(&flags).unwrap()
}

/// A driver in a folder of the test, and what its service would have.
struct Fixture {
    folder: tempfile::TempDir,
    config: Arc<Config>,
    driver: Driver,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Arc::new(config(folder.path()));
        let stream = SampleStream::generated(&config.recipe, Domain::Train).unwrap();
        let streams = Streams::new(stream, &config.recipe).unwrap();
        let start = Start {
            key: StateKey::open(&folder.path().join("run"), &config).unwrap(),
            folder: RunFolder::open(&folder.path().join("run")).unwrap(),
            lock: tempfile::tempfile().unwrap(),
            streams: streams.clone(),
            dataset_digest: None,
            split: None,
            loaded_digest: None,
            state: None,
            sums: None,
            base: None,
            layer_norms: Vec::new(),
            sample_digest: SampleDigest::start(),
            unaudited: BTreeMap::new(),
            replaces: false,
            messages: Vec::new(),
        };
        let machine = Machine::new(config.clone(), 7, None, None);
        let driver = Driver::new(config.clone(), &start, machine, streams, Arc::default(), Arc::default()).unwrap();
        Self { folder, config, driver }
    }

    /// Connects a worker; answers with its messages.
    fn connect(&mut self, member: u64) -> OutboxStream {
        let (outbox, stream) = outbox();
        let effects = self.driver.handle_call(Call::Connected(MemberId(member), join_request(), outbox));
        assert_eq!(effects, Vec::new());
        stream
    }

    async fn apply(&mut self, call: Call) -> Option<Result<Outcome, CoordinatorError>> {
        let effects = self.driver.handle_call(call);
        self.driver.apply_effects(effects).await
    }
}

fn join_request() -> JoinRequest {
    let process = Process { host: "host".to_owned(), pid: 1, namespace: 5 };
    JoinRequest { process, restarts: 0, rejoin_state: None, mac_holds: true, returns: false }
}

fn ready(member: u64) -> Call {
    Call::Event(Event::Ready(MemberId(member), worker_ready()))
}

async fn next(stream: &mut OutboxStream) -> Option<Message> {
    let message = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("a message or the end");
    message?.expect("an outbox sends no status").message
}

/// The report of the only rank that it made a step out of `state`.
fn report(state: &mut State, config: &Config, begin: &proto::Begin) -> Report {
    let unit = state.step();
    let row = vec![0.5; state.layout().row_len()];
    state.update(&row, &config.recipe).unwrap();
    Report {
        generation: begin.generation.unwrap(),
        unit,
        loss: 0.5,
        digest: state.digest(),
        state: Some(Arc::new(state.clone())),
        features: None,
        rows: Vec::new(),
        received: None,
        timing: Timing::default(),
    }
}

/// The driver as a task, with the ends of its channels.
struct Running {
    folder: tempfile::TempDir,
    config: Arc<Config>,
    calls: mpsc::Sender<Call>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Outcome, CoordinatorError>>,
}

impl Running {
    fn start() -> Self {
        let Fixture { folder, config, driver } = Fixture::new();
        let (calls, inbox) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            // Dropped without a word, it never resolves.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let task = tokio::spawn(driver.run(inbox, shutdown, Arc::default()));
        Self { folder, config, calls, stop, task }
    }

    async fn send(&self, call: Call) {
        assert!(self.calls.send(call).await.is_ok(), "the driver has ended");
    }

    /// Connects a worker that is ready, and reads up to its first generation.
    async fn begin(&self) -> (OutboxStream, proto::Begin) {
        let (outbox, mut stream) = outbox();
        self.send(Call::Connected(MemberId(1), join_request(), outbox)).await;
        let Some(Message::Welcome(_)) = next(&mut stream).await else { panic!("no Welcome") };
        self.send(ready(1)).await;
        let Some(Message::Begin(begin)) = next(&mut stream).await else { panic!("no generation") };
        (stream, begin)
    }

    fn result(&self) -> PathBuf {
        self.folder.path().join("final.safetensors")
    }
}

#[tokio::test]
async fn a_worker_is_welcomed_with_the_configuration_and_the_trial_micro_batch() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect(5);
    let Some(Message::Welcome(welcome)) = next(&mut stream).await else { panic!("no Welcome") };
    assert_eq!((welcome.protocol, welcome.member, welcome.incarnation), (proto::PROTOCOL, 5, 7));
    assert_eq!(welcome.run_id, "mine");
    assert_eq!(serde_json::from_str::<Config>(&welcome.config).unwrap(), *fixture.config);
    assert_eq!(welcome.trial.len(), 2, "the first micro-batch");
    assert!(welcome.base_fingerprint.is_empty(), "no model is known yet");
}

#[tokio::test]
async fn a_generation_comes_with_state_and_micro_batches() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect(1);
    next(&mut stream).await;
    assert!(fixture.apply(ready(1)).await.is_none());
    let Some(Message::Begin(begin)) = next(&mut stream).await else { panic!("no generation") };
    assert_eq!(begin.generation, Some(Generation { incarnation: 7, number: 1, rollback: 0 }));
    assert_eq!((begin.rank, begin.world, begin.first_micro_batch, begin.end_micro_batch), (0, 1, 0, 2));
    assert_eq!(State::from_bytes(&begin.state).unwrap().layout().hidden(), 2);
    let mut late = fixture.connect(2);
    let Some(Message::Welcome(welcome)) = next(&mut late).await else { panic!("no Welcome") };
    assert_eq!(welcome.base_fingerprint, worker_ready().base_fingerprint);
}

#[tokio::test]
async fn a_member_that_ignores_a_generation_is_evicted() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect(1);
    next(&mut stream).await;
    fixture.apply(ready(1)).await;
    next(&mut stream).await;
    let heartbeat = |generation| Call::Heartbeat(MemberId(1), proto::Heartbeat { generation, ..Default::default() });
    fixture.apply(heartbeat(0)).await;
    let limit = fixture.config.run.dead_after;
    fixture.driver.tick(Instant::now());
    assert!(fixture.driver.unreachable.is_empty());
    let overdue = Instant::now() + limit + Duration::from_millis(1);
    fixture.driver.tick(overdue);
    let Some(Message::Abort(abort)) = next(&mut stream).await else { panic!("no Abort") };
    assert!(!abort.permanent && abort.reason.contains("has not answered"), "{}", abort.reason);
    let [(MemberId(1), _)] = fixture.driver.unreachable[..] else { panic!("the machine learns of it") };
    assert_eq!(next(&mut stream).await, None, "its stream ends");
}

#[tokio::test]
async fn an_acknowledged_generation_is_not_overdue() {
    let mut fixture = Fixture::new();
    let _stream = fixture.connect(1);
    fixture.apply(ready(1)).await;
    fixture.apply(Call::Heartbeat(MemberId(1), proto::Heartbeat { generation: 1, ..Default::default() })).await;
    let later = Instant::now() + fixture.config.run.dead_after + Duration::from_millis(1);
    assert_eq!(fixture.driver.pending_acks.overdue(later, fixture.config.run.dead_after), []);
}

#[tokio::test]
async fn a_worker_that_reads_nothing_is_disconnected() {
    let mut fixture = Fixture::new();
    let stream = fixture.connect(1);
    drop(stream);
    fixture.driver.send(MemberId(1), Message::Pause(proto::Pause { reason: String::new() }));
    let [(MemberId(1), why)] = &fixture.driver.unreachable[..] else { panic!("it is unreachable") };
    assert!(why.contains("stream closed"), "{why}");
    assert!(fixture.driver.outboxes.is_empty());
}

#[tokio::test]
async fn a_run_ends_with_its_files_written_and_its_workers_told() {
    let running = Running::start();
    let (mut stream, begin) = running.begin().await;
    let mut state = State::from_bytes(&begin.state).unwrap();
    for _ in 0..STEPS {
        let report = report(&mut state, &running.config, &begin);
        running.send(Call::Event(Event::Reported(MemberId(1), report))).await;
    }
    let mut done = None;
    while let Some(message) = next(&mut stream).await {
        if let Message::Done(message) = message {
            done = Some(message.summary);
        }
    }
    assert_eq!(done.as_deref(), Some("all 3 steps are committed"));
    let result = running.result();
    assert_eq!(running.task.await.unwrap().unwrap(), Outcome { step: STEPS, already: false });
    let written = Checkpoint::read(&result).unwrap();
    assert_eq!(written.state, state);
    let (newest, _) = RunFolder::open(&running.folder.path().join("run")).unwrap().newest_valid().unwrap();
    assert_eq!(newest.unwrap().1.state, state, "the folder has it too");
}

#[tokio::test]
async fn a_run_that_is_told_to_stop_keeps_what_is_committed() {
    let running = Running::start();
    let (mut stream, begin) = running.begin().await;
    let mut state = State::from_bytes(&begin.state).unwrap();
    let report = report(&mut state, &running.config, &begin);
    running.send(Call::Event(Event::Reported(MemberId(1), report))).await;
    let Some(Message::Committed(committed)) = next(&mut stream).await else { panic!("no commit") };
    assert_eq!(committed.unit, 1);
    running.stop.send(()).unwrap();
    let Some(Message::Abort(abort)) = next(&mut stream).await else { panic!("no Abort") };
    assert!(abort.permanent && abort.hint.contains("--resume auto"), "{abort:?}");
    let error = running.task.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "stopped at step 1 of 3");
    let (newest, _) = RunFolder::open(&running.folder.path().join("run")).unwrap().newest_valid().unwrap();
    assert_eq!(newest.unwrap().1.state, state);
}

#[tokio::test]
async fn a_status_is_answered_while_nothing_happens() {
    let running = Running::start();
    let (sender, reply) = oneshot::channel();
    running.send(Call::Status(sender)).await;
    let reply = reply.await.unwrap();
    assert_eq!((reply.phase.as_str(), reply.total_steps), ("waiting", STEPS));
}

#[tokio::test]
async fn a_permanent_failure_ends_the_run_for_every_worker() {
    let running = Running::start();
    let (mut stream, _) = running.begin().await;
    let failure = Event::PermanentFailure(MemberId(1), Cause::Machine, "the data file is gone".to_owned());
    running.send(Call::Event(failure)).await;
    let Some(Message::Abort(abort)) = next(&mut stream).await else { panic!("no Abort") };
    assert!(abort.permanent && abort.reason.contains("the data file is gone"), "{abort:?}");
    assert!(matches!(running.task.await.unwrap(), Err(CoordinatorError::Failed { .. })));
}

#[tokio::test]
async fn a_worker_without_a_place_is_told_to_come_back_and_loads_nothing() {
    let mut fixture = Fixture::new();
    let most = fixture.config.run.max_workers as u64;
    let _streams: Vec<OutboxStream> = (1..=most).map(|member| fixture.connect(member)).collect();
    let (outbox, mut stream) = outbox();
    fixture.apply(Call::Connected(MemberId(most + 1), join_request(), outbox)).await;
    let Some(Message::Abort(abort)) = next(&mut stream).await else { panic!("a Welcome makes it load its model") };
    assert!(!abort.permanent && !abort.run_over && abort.reason.contains("max_workers is 64"), "{abort:?}");
    assert_eq!(next(&mut stream).await, None, "its stream ends");
}
