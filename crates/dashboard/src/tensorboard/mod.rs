//! TensorBoard's view of a run: an event file in `chk/<run>/tensorboard/` that says what `metrics.jsonl` says.
//!
//! `metrics.jsonl` is the truth, and is cut when a run goes back to an earlier state. So the event file is only ever made
//! from it: each process, and each cut, begins a new file that tells everything from the start, and the one before goes.
//! A reader that opens the folder finds every step once; one that has read on is told to forget what it has.

mod frame;
#[allow(missing_docs, reason = "messages.rs says which files document them")]
mod messages;

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use serde_json::{Map, Value as Json};

use crate::tail::{Piece, Tail};
use frame::framed;
use messages::*;

/// Name of the folder in the run's folder.
pub const FOLDER: &str = "tensorboard";

/// What the name of each of our files ends with; others in the folder are left alone.
const ENDING: &str = ".numalign";

/// Kinds of records that make curves.
const CURVES: [&str; 4] = ["step", "epoch", "evaluation", "solution"];

/// Fields that are no curves: the places of the points.
const PLACES: [&str; 3] = ["step", "epoch", "best_step"];

/// Curves whose last point is a result of the run, for the HParams tab.
const RESULTS: [&str; 2] = ["epoch/loss", "evaluation/mae_percent_of_range"];

/// The plugin whose tab compares runs by their settings.
const HPARAMS: &str = "hparams";

/// The event file of one run.
pub struct EventFile {
    folder: PathBuf,
    settings: BTreeMap<String, String>,
    tail: Tail,
    file: Option<File>,
    path: PathBuf,
    /// Files begun so far.
    begun: u32,
}

impl EventFile {
    /// For the run in `run_folder`, with these settings as hyper-parameters. Nothing is written yet.
    pub fn of_run(run_folder: &Path, settings: BTreeMap<String, String>) -> Self {
        Self {
            folder: run_folder.join(FOLDER),
            settings,
            tail: Tail::of(run_folder.join("metrics.jsonl")),
            file: None,
            path: PathBuf::new(),
            begun: 0,
        }
    }

    /// Writes what the record says by now.
    ///
    /// # Errors
    /// The record cannot be read or the event file cannot be written; the next call begins a new file.
    pub fn catch_up(&mut self) -> io::Result<()> {
        let result = self.try_to_catch_up();
        if result.is_err() {
            self.file = None;
            self.tail.rewind();
        }
        result
    }

    fn try_to_catch_up(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let mut anew = self.file.is_none();
        self.tail.read(|piece| match piece {
            Piece::Reset => {
                anew = true;
                events.clear();
            }
            Piece::Line(line) => events.extend(scalars(line)),
        })?;
        if anew && events.is_empty() {
            // Nothing to tell yet: the folder of a run is its coordinator's to make.
            self.file = None;
            return Ok(());
        }
        if anew {
            self.begin()?;
        }
        self.append(&events)
    }

    /// A picture, as PNG, shown at `step`.
    ///
    /// # Errors
    /// The event file cannot be written.
    pub fn image(&mut self, tag: &str, step: u64, (width, height): (u32, u32), png: Vec<u8>) -> io::Result<()> {
        let image = Image { height: height as i32, width: width as i32, colorspace: 4, encoded: png };
        let value = Value { tag: tag.to_owned(), metadata: None, shown: Some(Shown::Image(image)) };
        self.append(&[summary(now(), step, vec![value])])
    }

    /// The run is over.
    ///
    /// # Errors
    /// The event file cannot be written.
    pub fn close(&mut self) -> io::Result<()> {
        let end = HparamsPart::SessionEnd(SessionEnd { status: 1, ended: now() });
        self.append(&[summary(now(), 0, vec![hparams("_hparams_/session_end_info", end)])])
    }

    /// A new file; those before go.
    fn begin(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let old = self.ours()?;
        self.begun += 1;
        let seconds = now() as u64;
        let name = format!("events.out.tfevents.{seconds}.{}.{}{ENDING}", std::process::id(), self.begun);
        self.path = self.folder.join(name);
        self.file = Some(OpenOptions::new().append(true).create_new(true).open(&self.path)?);
        let start = SessionLog { status: SessionStatus::Start as i32 };
        let mut events = vec![
            Event { wall_time: now(), step: 0, what: Some(What::FileVersion("brain.Event:2".to_owned())) },
            Event { wall_time: now(), step: 0, what: Some(What::SessionLog(start)) },
        ];
        events.push(summary(now(), 0, self.hparams()));
        self.append(&events)?;
        for path in old {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    fn ours(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("events.out.tfevents.") && name.ends_with(ENDING) {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let bytes: Vec<u8> = events.iter().flat_map(|event| framed(&event.encode_to_vec())).collect();
        file.write_all(&bytes)
    }

    fn hparams(&self) -> Vec<Value> {
        let metric = |tag: &str| MetricInfo { name: Some(MetricName { tag: tag.to_owned() }) };
        let experiment = Experiment {
            hparams: self.settings.keys().map(|name| HparamInfo { name: name.clone(), kind: 1 }).collect(),
            metrics: RESULTS.map(metric).to_vec(),
        };
        let texts = self.settings.iter().map(|(name, text)| (name.clone(), Text { text: text.clone() }));
        let start = SessionStart { hparams: texts.collect::<HashMap<_, _>>(), started: now() };
        vec![
            hparams("_hparams_/experiment", HparamsPart::Experiment(experiment)),
            hparams("_hparams_/session_start_info", HparamsPart::SessionStart(start)),
        ]
    }
}

fn hparams(tag: &str, part: HparamsPart) -> Value {
    let content = HparamsData { version: 0, part: Some(part) }.encode_to_vec();
    let nothing = Tensor { dtype: 1, shape: Some(Shape { dim: vec![Dimension {}] }) };
    Value {
        tag: tag.to_owned(),
        metadata: Some(Metadata { plugin: Some(Plugin { name: HPARAMS.to_owned(), content }) }),
        shown: Some(Shown::Tensor(nothing)),
    }
}

fn summary(wall_time: f64, step: u64, value: Vec<Value>) -> Event {
    Event { wall_time, step: step as i64, what: Some(What::Summary(Summary { value })) }
}

/// The points that a line of `metrics.jsonl` adds to curves.
fn scalars(line: &str) -> Option<Event> {
    let record: Map<String, Json> = serde_json::from_str(line).ok()?;
    let kind = record.get("kind")?.as_str().filter(|kind| CURVES.contains(kind))?;
    let step = record.get("step")?.as_u64()?;
    let mut values = Vec::new();
    for (name, value) in record.iter().filter(|(name, _)| !PLACES.contains(&name.as_str())) {
        if let Some(number) = value.as_f64() {
            let shown = Some(Shown::Simple(number as f32));
            values.push(Value { tag: format!("{kind}/{name}"), metadata: None, shown });
        }
    }
    let written = record.get("time").and_then(Json::as_str).and_then(seconds_of);
    (!values.is_empty()).then(|| summary(written.unwrap_or_else(now), step, values))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Seconds since 1970 of `2026-11-26T12:00:00.250Z`. Days as in Howard Hinnant's `days_from_civil`
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn seconds_of(time: &str) -> Option<f64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<i64>().ok()?, clock.next()?.parse::<i64>().ok()?);
    let second: f64 = clock.next()?.parse().ok()?;
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let days =
        era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * from_march + 2) / 5 + day - 1 - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60) as f64 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of the only file in the folder.
    fn events(folder: &Path) -> Vec<Event> {
        let mut files = std::fs::read_dir(folder.join(FOLDER)).unwrap();
        let path = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none(), "one file at a time");
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let event = Event::decode(&rest[12..12 + length]).unwrap();
            assert_eq!(framed(&rest[12..12 + length]), rest[..length + 16], "checksums");
            found.push(event);
            rest = &rest[length + 16..];
        }
        found
    }

    fn points(events: &[Event], tag: &str) -> Vec<(i64, f32)> {
        let mut found = Vec::new();
        for event in events {
            if let Some(What::Summary(summary)) = &event.what {
                for value in &summary.value {
                    if let (true, Some(Shown::Simple(number))) = (value.tag == tag, &value.shown) {
                        found.push((event.step, *number));
                    }
                }
            }
        }
        found
    }

    fn line(step: u64) -> String {
        format!(
            "{{\"time\":\"2026-11-26T12:00:00.250Z\",\"kind\":\"epoch\",\"step\":{step},\"loss\":{}}}\n",
            0.5 / step as f64
        )
    }

    #[test]
    fn the_file_says_what_the_record_says_before_and_after_a_cut() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("metrics.jsonl");
        let settings = BTreeMap::from([("lr".to_owned(), "0.003".to_owned())]);
        let mut file = EventFile::of_run(folder.path(), settings.clone());
        std::fs::write(&record, line(1) + &line(2)).unwrap();
        file.catch_up().unwrap();
        std::fs::write(
            &record,
            line(1) + &line(2) + &line(3) + "{\"kind\":\"failure\",\"step\":3,\"recovery_ms\":1}\n",
        )
        .unwrap();
        file.catch_up().unwrap();
        file.catch_up().unwrap();
        assert_eq!(points(&events(folder.path()), "epoch/loss"), [(1, 0.5), (2, 0.25), (3, 0.5 / 3.0)]);
        // The coordinator went back to step 1.
        let cut = folder.path().join("cut");
        std::fs::write(&cut, line(1)).unwrap();
        std::fs::rename(&cut, &record).unwrap();
        file.catch_up().unwrap();
        assert_eq!(points(&events(folder.path()), "epoch/loss"), [(1, 0.5)]);
        // Another process goes on.
        drop(file);
        let mut file = EventFile::of_run(folder.path(), settings);
        std::fs::write(&record, line(1) + &line(2)).unwrap();
        file.catch_up().unwrap();
        file.image("prediction", 2, (8, 4), vec![1, 2]).unwrap();
        file.close().unwrap();
        let events = events(folder.path());
        assert_eq!(points(&events, "epoch/loss"), [(1, 0.5), (2, 0.25)]);
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        assert!(matches!(&events[1].what, Some(What::SessionLog(log)) if log.status == 1));
        assert_eq!(events.last().map(|event| event.step), Some(0));
    }

    #[test]
    fn times_are_those_of_gnu_date() {
        // `date -u -d TIME +%s.%3N`
        assert_eq!(seconds_of("2025-11-26T12:00:00.250Z"), Some(1_764_158_400.25));
        assert_eq!(seconds_of("2000-02-29T00:00:00.000Z"), Some(951_782_400.0));
        assert_eq!(seconds_of("1970-01-01T00:00:01Z"), Some(1.0));
        for wrong in ["", "now", "2025-11-26", "2025-11-26T12:00Z", "2025-11-26 12:00:00Z"] {
            assert_eq!(seconds_of(wrong), None, "{wrong}");
        }
    }
}
