//! All that is known of the runs shown: written by a command, read by the port. No lock is held while a file is read but
//! those of the files themselves, so a slow disk never holds up the command.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use numalign_protocol::StatusReply;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::alerts::{Alert, AlertLog, Observed};
use crate::disk::{self, DiskSpace};
use crate::history::{Cursor, History, News};
use crate::metrics::{Counters, Figures};
use crate::source::{CheckpointFact, Facts, RunSource};
use crate::tail::{Piece, Tail};

/// A run's files are looked at once in this time at most.
const READ_EVERY: Duration = Duration::from_millis(500);
/// The list of checkpoints, whose files are opened, less often.
const LIST_EVERY: Duration = Duration::from_secs(2);
/// How often the disk's free space is looked up.
const DISK_EVERY: Duration = Duration::from_secs(30);
/// How long the last words to open pages may take.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What is read from a run's folder.
struct Files {
    tail: Tail,
    history: History,
    checkpoints: Vec<CheckpointFact>,
    read: Option<Instant>,
    listed: Option<Instant>,
}

/// What the command tells.
#[derive(Default)]
struct Live {
    status: Option<StatusReply>,
    /// The coordinator answered the last time it was asked.
    answers: bool,
    alerts: AlertLog,
    counters: Counters,
    disk: Option<DiskSpace>,
    disk_read: Option<Instant>,
}

/// One run on the board.
pub(crate) struct Run {
    source: Box<dyn RunSource>,
    /// A command tells how it is; otherwise there is only what its files say.
    is_live: bool,
    files: Mutex<Files>,
    live: Mutex<Live>,
    /// Error of the best constant prediction, in percent of the range, once it is known.
    constant: OnceLock<f64>,
    is_looking_for_constant: AtomicBool,
}

/// A run's row in `/api/runs`.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    live: bool,
    answers: bool,
    constant_percent_of_range: Option<f64>,
    last_percent_of_range: Option<f64>,
    checkpoints: Vec<CheckpointFact>,
    alerts: Vec<Alert>,
    folder: String,
}

impl Run {
    fn new(source: Box<dyn RunSource>, is_live: bool) -> Self {
        let metrics: PathBuf = source.folder().join("metrics.jsonl");
        let files = Files {
            tail: Tail::of(metrics),
            history: History::default(),
            checkpoints: Vec::new(),
            read: None,
            listed: None,
        };
        Self {
            source,
            is_live,
            files: Mutex::new(files),
            live: Mutex::default(),
            constant: OnceLock::new(),
            is_looking_for_constant: AtomicBool::new(false),
        }
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.source.facts()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    /// The files as they are now, or were a moment ago. May take a while.
    fn files(&self) -> MutexGuard<'_, Files> {
        let mut files = lock(&self.files);
        let is_due = |read: Option<Instant>, every| read.is_none_or(|read| read.elapsed() >= every);
        if is_due(files.read, READ_EVERY) {
            let Files { tail, history, .. } = &mut *files;
            // What cannot be read now may be readable the next time; the page shows what there is.
            let _ = tail.read(|piece| match piece {
                Piece::Reset => history.reset(),
                Piece::Line(line) => history.push(line),
            });
            files.read = Some(Instant::now());
        }
        if is_due(files.listed, LIST_EVERY) {
            files.checkpoints = self.source.checkpoints();
            files.listed = Some(Instant::now());
        }
        files
    }

    /// From the record of an evaluation, else from the source. May take a while until it is known.
    fn constant(&self) -> Option<f64> {
        if let Some(known) = self.constant.get() {
            return Some(*known);
        }
        let evaluation = self.files().history.latest("evaluation");
        let recorded = evaluation.and_then(|record| record["baseline_mae_percent_of_range"].as_f64());
        let found = recorded.or_else(|| self.source.constant_percent_of_range())?;
        Some(*self.constant.get_or_init(|| found))
    }

    /// The status as JSON; of a run that nobody tells of, what its files say. May take a while.
    pub(crate) fn status(&self) -> Value {
        let known = self.live().status.clone();
        let status = match known {
            Some(status) => status,
            None if self.is_live => StatusReply {
                run_id: self.facts().run_id.clone(),
                phase: "starting".to_owned(),
                reason: "the coordinator has not answered yet".to_owned(),
                total_steps: self.facts().total_steps,
                loss: f32::NAN,
                ..StatusReply::default()
            },
            None => self.status_from_files(),
        };
        // It holds nothing that JSON cannot say.
        serde_json::to_value(status).unwrap_or_default()
    }

    fn status_from_files(&self) -> StatusReply {
        let files = self.files();
        let latest = |kind: &str| files.history.latest(kind);
        let step_of = |record: &Option<Value>| record.as_ref().and_then(|record| record["step"].as_u64());
        let (step, epoch, evaluation) = (latest("step"), latest("epoch"), latest("evaluation"));
        let newest = files.checkpoints.last().map(|checkpoint| checkpoint.step);
        let last = [step_of(&step), step_of(&epoch), step_of(&evaluation), newest].into_iter().flatten().max();
        let loss = step.or(epoch).and_then(|record| record["loss"].as_f64());
        StatusReply {
            run_id: self.facts().run_id.clone(),
            phase: "over".to_owned(),
            reason: format!("read from {}; no coordinator is asked", self.source.folder().display()),
            step: last.unwrap_or(0),
            total_steps: self.facts().total_steps,
            loss: loss.map_or(f32::NAN, |loss| loss as f32),
            ..StatusReply::default()
        }
    }

    fn row(&self) -> Value {
        let (checkpoints, evaluation) = {
            let files = self.files();
            (files.checkpoints.clone(), files.history.latest("evaluation"))
        };
        let constant = self.constant();
        let live = self.live();
        let row = Row {
            facts: self.facts(),
            live: self.is_live,
            answers: live.answers,
            constant_percent_of_range: constant,
            last_percent_of_range: evaluation.and_then(|record| record["mae_percent_of_range"].as_f64()),
            checkpoints,
            alerts: live.alerts.raised().to_vec(),
            folder: self.source.folder().display().to_string(),
        };
        serde_json::to_value(row).unwrap_or_default()
    }

    /// All records that are kept, as JSON text. May take a while.
    pub(crate) fn history(&self) -> String {
        let files = self.files();
        let name = Value::from(self.facts().run_id.clone());
        let thinned = files.history.is_thinned();
        format!("{{\"run_id\":{name},\"thinned\":{thinned},\"records\":[{}]}}", files.history.lines().join(","))
    }

    /// Records that a reader at `cursor` has not seen. May take a while.
    pub(crate) fn news(&self, cursor: Cursor) -> News {
        self.files().history.news(cursor)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is whole; a panic elsewhere leaves it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The runs shown, and who is told of changes.
pub struct Board {
    runs: Mutex<Vec<Arc<Run>>>,
    /// Counts changes.
    changed: watch::Sender<u64>,
    /// The last words, once there are some.
    end: watch::Sender<Option<String>>,
    /// Open event streams.
    pub(crate) streams: AtomicUsize,
}

impl Board {
    /// A board without runs.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            runs: Mutex::default(),
            changed: watch::Sender::new(0),
            end: watch::Sender::new(None),
            streams: AtomicUsize::new(0),
        })
    }

    /// Shows this run, of which [`Board::report`] will tell, in place of all others.
    pub fn show_live(&self, source: Box<dyn RunSource>) {
        *lock(&self.runs) = vec![Arc::new(Run::new(source, true))];
        self.touch();
    }

    /// Shows these runs by their files alone.
    pub fn show_files(&self, sources: Vec<Box<dyn RunSource>>) {
        *lock(&self.runs) = sources.into_iter().map(|source| Arc::new(Run::new(source, false))).collect();
        self.touch();
    }

    /// The live run's status; none when its coordinator does not answer. Answers with alerts that are new. Within a
    /// runtime, slow things are looked up beside it.
    pub fn report(&self, status: Option<StatusReply>) -> Vec<Alert> {
        let Some(run) = self.runs().into_iter().next() else {
            return Vec::new();
        };
        let mut live = run.live();
        live.answers = status.is_some();
        let Some(status) = status else {
            drop(live);
            self.touch();
            return Vec::new();
        };
        let facts = run.facts();
        live.counters.see(&status);
        let observed = Observed {
            status: &status,
            steps_per_epoch: facts.steps_per_epoch,
            gathers: facts.settings.get("solver").is_some_and(|solver| solver == "exact"),
            constant: run.constant.get().copied(),
            disk: live.disk,
        };
        let new = live.alerts.look(&observed);
        let wants_constant = status.latest_evaluation.is_some() && run.constant.get().is_none();
        let wants_disk = live.disk_read.is_none_or(|read| read.elapsed() >= DISK_EVERY);
        if wants_disk {
            live.disk_read = Some(Instant::now());
        }
        live.status = Some(status);
        drop(live);
        look_up(&run, wants_constant, wants_disk);
        self.touch();
        new
    }

    /// The run's training is over, and this is what the command does now.
    pub fn closing(&self, phase: &str, reason: &str) {
        if let Some(run) = self.runs().into_iter().next() {
            let mut live = run.live();
            let facts = run.facts();
            let status = live.status.get_or_insert_with(|| StatusReply {
                run_id: facts.run_id.clone(),
                total_steps: facts.total_steps,
                step: facts.total_steps,
                loss: f32::NAN,
                ..StatusReply::default()
            });
            (status.phase, status.reason) = (phase.to_owned(), reason.to_owned());
            status.step = facts.total_steps;
            status.workers.clear();
            live.answers = true;
        }
        self.touch();
    }

    /// Says the last words to every open page, and waits for them for a moment.
    pub async fn end(&self, words: &str) {
        self.end.send_replace(Some(words.to_owned()));
        let until = Instant::now() + LAST_WORDS;
        while self.streams.load(Ordering::Relaxed) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn touch(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn ending(&self) -> watch::Receiver<Option<String>> {
        self.end.subscribe()
    }

    pub(crate) fn runs(&self) -> Vec<Arc<Run>> {
        lock(&self.runs).clone()
    }

    /// The run of that name, or the first one.
    pub(crate) fn run(&self, name: Option<&str>) -> Option<Arc<Run>> {
        let runs = self.runs();
        runs.into_iter().find(|run| name.is_none_or(|name| run.facts().run_id == name))
    }

    /// Every run with its facts, checkpoints and alerts, as a JSON array. May take a while.
    pub(crate) fn rows(&self) -> Value {
        Value::Array(self.runs().iter().map(|run| run.row()).collect())
    }

    /// Whether a run can be told of: its coordinator answers, or its files are all there is.
    pub(crate) fn is_ready(&self) -> bool {
        self.runs().first().is_some_and(|run| !run.is_live || run.live().answers)
    }

    /// What `/metrics` shows of the first run. May take a while.
    pub(crate) fn figures(&self) -> Option<Figures> {
        let run = self.runs().into_iter().next()?;
        let files = if run.is_live { None } else { Some(run.status_from_files()) };
        let epoch = run.files().history.latest("epoch");
        let constant = run.constant();
        let live = run.live();
        Some(Figures {
            run_id: run.facts().run_id.clone(),
            is_up: live.answers,
            status: live.status.clone().or(files),
            counters: live.counters,
            alerts: live.alerts.raised().iter().map(|alert| alert.kind).collect(),
            constant,
            batch_size: run.facts().batch_size,
            learning_rate: epoch.and_then(|record| record["lr"].as_f64()),
            disk: live.disk,
        })
    }

    /// `/api/runs` as text.
    pub(crate) fn rows_text(&self) -> String {
        json!(self.rows()).to_string()
    }
}

/// Looks up what may take a while, on threads made for that.
fn look_up(run: &Arc<Run>, constant: bool, disk: bool) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    if constant && !run.is_looking_for_constant.swap(true, Ordering::Relaxed) {
        let run = run.clone();
        runtime.spawn_blocking(move || {
            run.constant();
            run.is_looking_for_constant.store(false, Ordering::Relaxed);
        });
    }
    if disk {
        let run = run.clone();
        runtime.spawn_blocking(move || {
            let found = disk::space(run.source.folder());
            run.live().disk = found;
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// A run with a folder and no program.
    pub(crate) struct Told {
        pub(crate) facts: Facts,
        pub(crate) folder: PathBuf,
        pub(crate) constant: Option<f64>,
    }

    impl RunSource for Told {
        fn facts(&self) -> &Facts {
            &self.facts
        }

        fn folder(&self) -> &Path {
            &self.folder
        }

        fn constant_percent_of_range(&self) -> Option<f64> {
            self.constant
        }

        fn checkpoints(&self) -> Vec<CheckpointFact> {
            Vec::new()
        }
    }

    pub(crate) fn told(run: &str, folder: &Path) -> Box<dyn RunSource> {
        let facts = Facts { run_id: run.to_owned(), total_steps: 100, batch_size: 8, ..Facts::default() };
        Box::new(Told { facts, folder: folder.to_owned(), constant: Some(25.0) })
    }

    #[test]
    fn a_run_that_is_over_is_told_by_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"kind\":\"epoch\",\"step\":40,\"loss\":0.5}\n\
                     {\"kind\":\"evaluation\",\"step\":50,\"mae_percent_of_range\":2.5}\n";
        std::fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        let board = Board::new();
        board.show_files(vec![told("mine", folder.path())]);
        let status = board.run(Some("mine")).unwrap().status();
        assert_eq!((status["phase"].as_str(), status["step"].as_u64()), (Some("over"), Some(50)));
        assert_eq!(status["loss"], 0.5);
        assert_eq!(board.rows()[0]["last_percent_of_range"], 2.5);
        assert_eq!(board.rows()[0]["constant_percent_of_range"], 25.0);
        let history: Value = serde_json::from_str(&board.run(None).unwrap().history()).unwrap();
        assert_eq!(history["records"].as_array().map(Vec::len), Some(2));
        assert!(board.run(Some("other")).is_none() && board.is_ready());
    }

    #[test]
    fn the_record_of_an_evaluation_tells_the_constants_error_where_the_command_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("metrics.jsonl");
        let epoch = "{\"kind\":\"epoch\",\"step\":40,\"loss\":0.5}\n";
        std::fs::write(&record, epoch).unwrap();
        let facts = Facts { run_id: "rows".to_owned(), ..Facts::default() };
        let source = Told { facts, folder: folder.path().to_owned(), constant: None };
        let board = Board::new();
        board.show_files(vec![Box::new(source)]);
        assert_eq!(board.rows()[0]["constant_percent_of_range"], Value::Null);
        let evaluation = "{\"kind\":\"evaluation\",\"step\":50,\"baseline_mae_percent_of_range\":19.5}\n";
        std::fs::write(&record, [epoch, evaluation].concat()).unwrap();
        std::thread::sleep(READ_EVERY);
        assert_eq!(board.rows()[0]["constant_percent_of_range"], 19.5);
    }

    #[test]
    fn a_live_run_is_told_by_its_command() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::new();
        board.show_live(told("mine", folder.path()));
        assert!(!board.is_ready());
        assert_eq!(board.run(None).unwrap().status()["phase"], "starting");
        let status = StatusReply { run_id: "mine".to_owned(), phase: "training".to_owned(), ..StatusReply::default() };
        assert!(board.report(Some(status)).is_empty());
        assert!(board.is_ready());
        assert_eq!(board.run(None).unwrap().status()["phase"], "training");
        board.report(None);
        assert!(!board.is_ready(), "it does not answer");
        assert_eq!(board.run(None).unwrap().status()["phase"], "training", "what was known stays");
        board.closing("evaluating", "the closing evaluation");
        let status = board.run(None).unwrap().status();
        assert_eq!((status["phase"].as_str(), status["step"].as_u64()), (Some("evaluating"), Some(100)));
    }
}
