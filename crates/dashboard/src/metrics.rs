//! `/metrics`: a run's figures for Prometheus, in its text format or in OpenMetrics. Names and units follow Prometheus'
//! conventions: base units, `_total` for what only grows.

use std::fmt::Write;
use std::sync::atomic::AtomicU64;

use numalign_protocol::StatusReply;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::alerts::AlertKind;
use crate::disk::DiskSpace;

/// The media type of [`text`].
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The media type of [`open_metrics`].
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Number = Gauge<f64, AtomicU64>;
type Labelled<const N: usize> = Family<[(&'static str, String); N], Number>;

/// A count that another process keeps and may begin anew; here it never falls.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    last: u64,
    total: u64,
}

impl Count {
    /// It stands at `now`; `restarts` says that a smaller one than before began at zero.
    fn see(&mut self, now: u64, restarts: bool) {
        self.total += match now.checked_sub(self.last) {
            Some(more) => more,
            None if restarts => now,
            None => 0,
        };
        self.last = now;
    }
}

/// What only grows, over any number of coordinators of one run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    steps: Count,
    failures: Count,
    recoveries: Count,
    failed_checkpoints: Count,
}

impl Counters {
    /// Takes in a status.
    pub fn see(&mut self, status: &StatusReply) {
        // A coordinator that comes back may go on from an earlier step: what it repeats counts again.
        self.steps.see(status.step, false);
        self.failures.see(status.failures_total, true);
        self.recoveries.see(status.recoveries_total, true);
        self.failed_checkpoints.see(status.failed_checkpoints, true);
    }
}

/// What is shown of one run.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Name of the run.
    pub run_id: String,
    /// Its coordinator answers.
    pub is_up: bool,
    /// None before the first answer.
    pub status: Option<StatusReply>,
    /// What only grows.
    pub counters: Counters,
    /// Every alert raised so far.
    pub alerts: Vec<AlertKind>,
    /// Error of the best constant prediction, in percent of the range.
    pub constant: Option<f64>,
    /// Samples of a step.
    pub batch_size: u64,
    /// Of the last epoch.
    pub learning_rate: Option<f64>,
    /// Of the run's folder.
    pub disk: Option<DiskSpace>,
}

/// The figures in OpenMetrics.
pub fn open_metrics(figures: &Figures) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = encode(&mut text, &registry(figures));
    text
}

/// The figures in Prometheus' text format.
pub fn text(figures: &Figures) -> String {
    to_text_format(&open_metrics(figures))
}

/// OpenMetrics as Prometheus' older text format: there a counter's family has the name of its samples, and neither units
/// nor an end are marked.
fn to_text_format(open_metrics: &str) -> String {
    let mut counters = Vec::new();
    for line in open_metrics.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter")) {
            counters.push(name);
        }
    }
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        let (mark, what, name, rest) = (words.next(), words.next(), words.next(), words.next());
        // Writing into a string cannot fail.
        let _ = match (mark, what, name, rest) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(&name) => {
                writeln!(text, "# {what} {name}_total {rest}")
            }
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

/// Registers and fills metrics.
struct Sheet(Registry);

impl Sheet {
    fn number(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Number::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    fn count(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }

    fn labelled<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, String); N], f64)>,
    ) {
        let family = Labelled::<N>::default();
        for (labels, value) in values {
            family.get_or_create(&labels.map(|(name, text)| (name, escaped(&text)))).set(value);
        }
        self.0.register(name, help, family);
    }
}

/// A label's value as both formats want it; `prometheus-client` writes it as it is.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Percent as the ratio that Prometheus wants.
fn ratio(percent: f64) -> f64 {
    percent / 100.0
}

fn registry(figures: &Figures) -> Registry {
    let mut sheet = Sheet(Registry::with_prefix("numalign"));
    let run = [("run_id", figures.run_id.clone())];
    sheet.labelled("run_info", "The run shown here", [(run, 1.0)]);
    sheet.number("coordinator_up", "1 while the coordinator answers", f64::from(figures.is_up));
    let of_kind = |kind: AlertKind| figures.alerts.iter().filter(|raised| **raised == kind).count() as f64;
    let alerts = AlertKind::ALL.map(|kind| ([("alert", kind.name().to_owned())], of_kind(kind)));
    sheet.labelled("alerts_raised", "Alerts raised so far, by kind", alerts);
    if let Some(disk) = figures.disk {
        sheet.number("disk_free_bytes", "Free space on the disk of the run's folder", disk.free as f64);
        sheet.number("disk_size_bytes", "Size of the disk of the run's folder", disk.total as f64);
    }
    if let Some(constant) = figures.constant {
        sheet.number(
            "constant_error_ratio",
            "Mean absolute error of the best constant prediction, as a share of the range",
            ratio(constant),
        );
    }
    if let Some(rate) = figures.learning_rate {
        sheet.number("learning_rate", "Learning rate of the last epoch", rate);
    }
    if let Some(status) = &figures.status {
        course(&mut sheet, figures, status);
        workers(&mut sheet, status);
    }
    sheet.0
}

fn course(sheet: &mut Sheet, figures: &Figures, status: &StatusReply) {
    sheet.labelled("phase", "1 for the phase that the run is in", [([("phase", status.phase.clone())], 1.0)]);
    sheet.number("step", "Committed updates; a run that goes on from a checkpoint may repeat some", status.step as f64);
    sheet.number("planned_steps", "Steps of the whole run", status.total_steps as f64);
    sheet.number("steps_per_second", "Steps committed per second of late", status.steps_per_second);
    let samples = status.steps_per_second * figures.batch_size as f64;
    sheet.number("samples_per_second", "Samples trained on per second of late", samples);
    sheet.number("loss", "Training loss of the last step, in encoded units", f64::from(status.loss));
    for (name, help, made) in [
        (
            "held_out_error_ratio",
            "Mean absolute error of the latest evaluation, as a share of the range",
            &status.latest_evaluation,
        ),
        ("best_held_out_error_ratio", "The smallest one so far", &status.best_evaluation),
    ] {
        if let Some(made) = made {
            sheet.number(name, help, ratio(made.mae_percent_of_range));
        }
    }
    sheet.number("generation", "Number of the present generation", status.generation as f64);
    let counters = &figures.counters;
    sheet.count("committed_steps", "Steps committed while this process watched", counters.steps.total);
    sheet.count("failures", "Unplanned ends of a generation", counters.failures.total);
    sheet.count("recoveries", "Failures that the run has recovered from", counters.recoveries.total);
    sheet.count("failed_checkpoints", "Checkpoints that could not be written", counters.failed_checkpoints.total);
    sheet.number("worst_recovery_seconds", "Longest recovery so far", status.worst_recovery_ms / 1e3);
}

fn workers(sheet: &mut Sheet, status: &StatusReply) {
    let states = ["loading", "spare", "training"].map(|state| {
        let count = status.workers.iter().filter(|worker| worker.state == state).count();
        ([("state", state.to_owned())], count as f64)
    });
    sheet.labelled("workers", "Connected workers, by state", states);
    let labels = |worker: &numalign_protocol::WorkerStatus| {
        [("member", worker.member.to_string()), ("host", worker.host.clone())]
    };
    let mut of_each = |name: &str, help: &str, value: fn(&numalign_protocol::WorkerStatus) -> f64| {
        sheet.labelled(name, help, status.workers.iter().map(|worker| (labels(worker), value(worker))));
    };
    of_each("worker_micro_batches", "Micro-batches of each step", |worker| f64::from(worker.micro_batches));
    of_each("worker_compute_seconds", "Time spent computing in the last step", |worker| worker.compute_ms / 1e3);
    of_each("worker_data_wait_seconds", "Time spent waiting for samples in the last step", |worker| {
        worker.data_wait_ms / 1e3
    });
    of_each("worker_reduce_seconds", "Time spent on the sum in the last step", |worker| worker.reduce_ms / 1e3);
    of_each("worker_peak_memory_bytes", "Largest resident memory so far", |worker| {
        worker.peak_rss_mib as f64 * f64::from(1 << 20)
    });
    of_each("worker_heartbeat_age_seconds", "Time since the last sign of life", |worker| worker.last_heartbeat_seconds);
    of_each("worker_restarts", "How often launch has started a worker in this one's place", |worker| {
        f64::from(worker.restarts)
    });
}

#[cfg(test)]
mod tests {
    use numalign_protocol::WorkerStatus;

    use super::*;

    fn figures() -> Figures {
        let worker = WorkerStatus {
            member: 3,
            host: "node \"<b>\"\n".to_owned(),
            state: "training".to_owned(),
            compute_ms: 2.5,
            ..WorkerStatus::default()
        };
        let status = StatusReply {
            phase: "training".to_owned(),
            step: 40,
            failures_total: 2,
            loss: f32::NAN,
            workers: vec![worker],
            ..StatusReply::default()
        };
        let mut counters = Counters::default();
        counters.see(&status);
        Figures {
            run_id: "mine".to_owned(),
            is_up: true,
            status: Some(status),
            counters,
            alerts: vec![AlertKind::SlowRank],
            constant: Some(25.0),
            batch_size: 8,
            learning_rate: Some(0.003),
            disk: Some(DiskSpace { free: 5, total: 10 }),
        }
    }

    #[test]
    fn both_formats_say_the_same() {
        let (open, text) = (open_metrics(&figures()), text(&figures()));
        assert!(open.ends_with("# EOF\n") && open.contains("# TYPE numalign_failures counter\n"));
        assert!(!text.contains("EOF") && text.contains("# TYPE numalign_failures_total counter\n"));
        for line in [
            "numalign_failures_total 2\n",
            "numalign_run_info{run_id=\"mine\"} 1.0\n",
            "numalign_constant_error_ratio 0.25\n",
            "numalign_alerts_raised{alert=\"slow_rank\"} 1.0\n",
            "numalign_loss NaN\n",
            "numalign_worker_compute_seconds{member=\"3\",host=\"node \\\"<b>\\\"\\n\"} 0.0025\n",
        ] {
            assert!(open.contains(line) && text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn counters_never_fall() {
        let mut counters = Counters::default();
        let mut before = (0, 0);
        for (step, failures) in [(0, 0), (50, 1), (40, 0), (60, 2), (60, 2), (10, 1)] {
            counters.see(&StatusReply { step, failures_total: failures, ..StatusReply::default() });
            let now = (counters.steps.total, counters.failures.total);
            assert!(now.0 >= before.0 && now.1 >= before.1, "{now:?} after {before:?}");
            before = now;
        }
        assert_eq!(before, (70, 4));
    }
}
