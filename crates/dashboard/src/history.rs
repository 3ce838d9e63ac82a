//! The records of a run in memory: curves thinned evenly, events the newest ones, so that a long run takes no more than a
//! short one.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

/// Records of one curve that are kept; with twice as many every other one goes.
const CURVE: usize = 2048;
/// Events that are kept.
const EVENTS: usize = 1000;
/// The newest records, thinned or not: who asks again soon gets them one by one.
const RECENT: usize = 512;

/// Kinds of records that make a curve; every other one is an event.
const CURVES: [&str; 4] = ["step", "epoch", "evaluation", "solution"];

/// One record, as it was written.
#[derive(Debug, Clone)]
struct Record {
    number: u64,
    line: Arc<str>,
}

/// How far a reader has come; the default is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    resets: Option<u64>,
    next: u64,
}

/// What a reader has not seen.
#[derive(Debug)]
pub struct News {
    /// What the reader has no longer counts.
    pub reset: bool,
    /// JSON objects.
    pub lines: Vec<Arc<str>>,
    /// Where the reader is then.
    pub cursor: Cursor,
}

/// One kind of records, thinned.
#[derive(Debug)]
struct Curve {
    kept: Vec<Record>,
    /// Of so many records one is kept.
    stride: u64,
    seen: u64,
    latest: Option<Record>,
}

impl Curve {
    fn new() -> Self {
        Self { kept: Vec::new(), stride: 1, seen: 0, latest: None }
    }

    fn push(&mut self, record: Record) {
        if self.seen.is_multiple_of(self.stride) {
            self.kept.push(record.clone());
        }
        self.seen += 1;
        self.latest = Some(record);
        if self.kept.len() >= 2 * CURVE {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// The records kept, and the latest one whether kept or not.
    fn records(&self) -> impl Iterator<Item = &Record> {
        let last = self.kept.last().map(|record| record.number);
        self.kept.iter().chain(self.latest.iter().filter(move |latest| Some(latest.number) != last))
    }
}

/// The records of one run.
#[derive(Debug)]
pub struct History {
    curves: [Curve; CURVES.len()],
    events: VecDeque<Record>,
    recent: VecDeque<Record>,
    next: u64,
    resets: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            curves: CURVES.map(|_| Curve::new()),
            events: VecDeque::new(),
            recent: VecDeque::new(),
            next: 0,
            resets: 0,
        }
    }
}

impl History {
    /// Takes in one line of `metrics.jsonl`; what is no JSON object is passed over.
    pub fn push(&mut self, line: &str) {
        let Ok(Value::Object(fields)) = serde_json::from_str(line) else {
            return;
        };
        let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
        let record = Record { number: self.next, line: line.into() };
        self.next += 1;
        push_bounded(&mut self.recent, record.clone(), RECENT);
        match CURVES.iter().position(|curve| *curve == kind) {
            Some(place) => self.curves[place].push(record),
            None => push_bounded(&mut self.events, record, EVENTS),
        }
    }

    /// Forgets everything: the file was written anew.
    pub fn reset(&mut self) {
        *self = Self { resets: self.resets + 1, ..Self::default() };
    }

    /// Everything that is kept, in the order in which it was written.
    pub fn lines(&self) -> Vec<Arc<str>> {
        let mut all: Vec<&Record> = self.curves.iter().flat_map(Curve::records).chain(&self.events).collect();
        all.sort_by_key(|record| record.number);
        all.into_iter().map(|record| record.line.clone()).collect()
    }

    /// Whether some records of a curve are left out.
    pub fn is_thinned(&self) -> bool {
        self.curves.iter().any(|curve| curve.stride > 1)
    }

    /// The newest record of a kind that makes a curve.
    pub fn latest(&self, kind: &str) -> Option<Value> {
        let place = CURVES.iter().position(|curve| *curve == kind)?;
        serde_json::from_str(&self.curves[place].latest.as_ref()?.line).ok()
    }

    /// What a reader at `cursor` has not seen.
    pub fn news(&self, cursor: Cursor) -> News {
        let now = Cursor { resets: Some(self.resets), next: self.next };
        let oldest = self.recent.front().map_or(self.next, |record| record.number);
        if cursor.resets != now.resets || cursor.next < oldest {
            return News { reset: true, lines: self.lines(), cursor: now };
        }
        let skipped = (cursor.next - oldest) as usize;
        let lines = self.recent.iter().skip(skipped).map(|record| record.line.clone()).collect();
        News { reset: false, lines, cursor: now }
    }
}

fn push_bounded(records: &mut VecDeque<Record>, record: Record, most: usize) {
    if records.len() == most {
        records.pop_front();
    }
    records.push_back(record);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: &str, step: u64) -> String {
        format!(
            "{{\"kind\":\"{kind}\",\"step\":{step},\"loss\":0.123456789,\"lr\":0.003,\"time\":\"2026-11-26T12:00:00Z\"}}"
        )
    }

    fn steps(lines: &[Arc<str>]) -> Vec<u64> {
        lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect()
    }

    #[test]
    fn a_million_steps_take_little_memory_and_keep_their_ends() {
        let mut history = History::default();
        for step in 1..=1_000_000 {
            history.push(&line("step", step));
        }
        history.push(&line("failure", 1_000_000));
        let lines = history.lines();
        let bytes: usize =
            lines.iter().chain(history.recent.iter().map(|record| &record.line)).map(|l| l.len() + 64).sum();
        assert!(bytes < 2 << 20, "{bytes} bytes");
        let steps = steps(&lines);
        assert!(steps.len() > CURVE && history.is_thinned());
        assert_eq!((steps[0], steps[steps.len() - 2]), (1, 1_000_000));
        let gaps: Vec<u64> = steps.windows(2).take(CURVE - 1).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap == gaps[0]), "they are thinned evenly");
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen() {
        let mut history = History::default();
        history.push(&line("step", 1));
        let first = history.news(Cursor::default());
        assert!(first.reset && first.lines.len() == 1);
        assert!(history.news(first.cursor).lines.is_empty());
        history.push(&line("epoch", 2));
        history.push("not JSON");
        history.push("[1]");
        let second = history.news(first.cursor);
        assert!(!second.reset);
        assert_eq!(steps(&second.lines), [2]);
        history.reset();
        history.push(&line("step", 1));
        let third = history.news(second.cursor);
        assert!(third.reset && third.lines.len() == 1);
        for step in 0..2 * RECENT as u64 {
            history.push(&line("step", step));
        }
        assert!(history.news(third.cursor).reset, "too far behind");
    }

    #[test]
    fn events_are_kept_whole_and_the_latest_is_known() {
        let mut history = History::default();
        for step in 0..2 * EVENTS as u64 {
            history.push(&line("failure", step));
            history.push(&line("evaluation", step));
        }
        let failures = history.lines().iter().filter(|line| line.contains("failure")).count();
        assert_eq!(failures, EVENTS);
        assert_eq!(history.latest("evaluation").unwrap()["step"], 2 * EVENTS as u64 - 1);
        assert!(history.latest("epoch").is_none());
    }
}
