//! The schema of `metrics.jsonl`: what one line of it says.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was written: UTC in RFC 3339, such as `2026-11-26T12:00:00.250Z`.
    pub time: String,
    /// The run's name.
    pub run_id: String,
    /// What happened.
    #[serde(flatten)]
    pub event: MetricsEvent,
}

impl Record {
    /// What happened in the run `run_id` at `time`.
    pub fn new(run_id: &str, time: SystemTime, event: MetricsEvent) -> Self {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { time: rfc3339(since_epoch), run_id: run_id.to_owned(), event }
    }
}

/// What a line tells of; the key `kind` has the variant's name. `step` counts committed updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum MetricsEvent {
    /// An update, every `log_every` of them.
    Step {
        /// Committed updates with this one.
        step: u64,
        /// Over its global batch, in encoded units.
        loss: Option<f64>,
        /// Learning rate of this update.
        lr: f64,
    },
    /// The last update of an epoch.
    Epoch {
        /// Its number, from 1.
        epoch: u64,
        /// Committed updates after it.
        step: u64,
        /// Mean over `steps`; null where samples were gathered for the solver.
        loss: Option<f64>,
        /// Updates of the epoch whose loss is known: all of them, unless the run was continued in a folder without its
        /// record.
        steps: u64,
        /// Learning rate of the last update.
        lr: f64,
        /// Samples per second.
        samples_per_s: f64,
        /// Share of the time that the slowest rank waited for samples.
        data_wait_percent: f64,
        /// Milliseconds per update.
        ms_per_step: f64,
        /// Largest peak memory of a worker, in MiB.
        peak_rss_mib: u64,
        /// Workers with a share of the work.
        world: usize,
    },
    /// The projectors were evaluated on held-out samples.
    Evaluation {
        /// Committed updates before it.
        step: u64,
        /// Whole epochs before it.
        epoch: u64,
        /// Number of samples.
        samples: u64,
        /// Mean squared error in value units.
        mse: f64,
        /// Mean absolute error in value units.
        mae: f64,
        /// The same in percent of the range.
        mae_percent_of_range: f64,
        /// That of the best constant prediction on the same samples.
        baseline_mae_percent_of_range: Option<f64>,
        /// Choice accuracy in percent, where the answer is one of the question's numbers.
        right_percent: Option<f64>,
        /// Step of the best evaluation so far.
        best_step: u64,
    },
    /// The output projector was solved for.
    Solution {
        /// Committed updates before it.
        step: u64,
        /// Samples that it was solved on.
        samples: u64,
        /// The ridge that was chosen.
        ridge: f64,
        /// Mean absolute error on the samples held out for the choice, in percent of the range.
        held_out_percent_of_range: f64,
    },
    /// A failure, once the run had recovered.
    Failure {
        /// Committed updates when it happened.
        step: u64,
        /// What failed.
        text: String,
        /// Milliseconds to the next commit.
        recovery_ms: f64,
    },
}

impl MetricsEvent {
    /// Committed updates when it happened.
    pub fn step(&self) -> u64 {
        match self {
            MetricsEvent::Step { step, .. }
            | MetricsEvent::Epoch { step, .. }
            | MetricsEvent::Evaluation { step, .. }
            | MetricsEvent::Solution { step, .. }
            | MetricsEvent::Failure { step, .. } => *step,
        }
    }
}

/// UTC with milliseconds. Days become a date as in Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years from 1 March, so that a leap day is the last of its year; eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since_epoch.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_gnu_date() {
        // `date -u -d @N +%FT%TZ`
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
        assert_eq!(rfc3339(Duration::from_millis(1_764_158_400_250)), "2025-11-26T12:00:00.250Z");
    }

    #[test]
    fn a_line_is_flat_and_reads_back() {
        let event = MetricsEvent::Step { step: 10, loss: Some(0.5), lr: 0.003 };
        let record = Record::new("mine", SystemTime::UNIX_EPOCH, event);
        let line = serde_json::to_string(&record).unwrap();
        let expected =
            r#"{"time":"1970-01-01T00:00:00.000Z","run_id":"mine","kind":"step","step":10,"loss":0.5,"lr":0.003}"#;
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
        let gathering = line.replace("0.5", "null");
        assert_eq!(serde_json::from_str::<Record>(&gathering).unwrap().event.step(), 10);
    }
}
