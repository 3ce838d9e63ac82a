//! What deserves a look, in words: conditions of a run's status that somebody would want to be told of, each once. Pure.

use std::collections::BTreeMap;

use numalign_protocol::{StatusReply, WorkerStatus};
use serde::Serialize;

use crate::disk::DiskSpace;

/// A worker that was started again more often than this deserves a look.
const MANY_RESTARTS: u32 = 3;
/// A rank is slow whose micro-batch takes so many times the median rank's.
const SLOW: f64 = 2.0;
/// A slow rank is told when it was slow in so many looks in a row: one of them may be chance.
const SLOW_LOOKS: u32 = 10;
/// Less free space than this is little, unless the disk itself is small …
const LITTLE_SPACE: u64 = 1 << 30;
/// … then less than this share of it.
const LITTLE_SHARE: f64 = 0.05;

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// The training loss is infinite or no number.
    LossNotFinite,
    /// After an epoch the projectors are no better than a constant.
    NoBetterThanConstant,
    /// A worker was started again and again.
    WorkerRestarts,
    /// A rank takes far longer than the others.
    SlowRank,
    /// The disk of the run's folder is nearly full.
    DiskNearlyFull,
}

impl AlertKind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::LossNotFinite, Self::NoBetterThanConstant, Self::WorkerRestarts, Self::SlowRank, Self::DiskNearlyFull];

    /// The name in `/metrics` and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::LossNotFinite => "loss_not_finite",
            Self::NoBetterThanConstant => "no_better_than_constant",
            Self::WorkerRestarts => "worker_restarts",
            Self::SlowRank => "slow_rank",
            Self::DiskNearlyFull => "disk_nearly_full",
        }
    }
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// What it is about.
    pub kind: AlertKind,
    /// What it says, with what to do.
    pub text: String,
    /// Committed updates when it was raised.
    pub step: u64,
    /// Whom it is about: an alert is raised once for each.
    #[serde(skip)]
    subject: String,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The run's status.
    pub status: &'a StatusReply,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Samples are gathered for a solution, and there is no loss.
    pub gathers: bool,
    /// Error of the best constant prediction, in percent of the range.
    pub constant: Option<f64>,
    /// Of the run's folder.
    pub disk: Option<DiskSpace>,
}

/// Remembers what was raised.
#[derive(Debug, Default)]
pub struct AlertLog {
    raised: Vec<Alert>,
    /// In how many looks in a row a condition held.
    streaks: BTreeMap<(AlertKind, String), u32>,
    /// The step at which the loss was not finite first; a new coordinator knows no loss before its first commit.
    without_loss_since: Option<u64>,
}

impl AlertLog {
    /// Every alert so far, oldest first.
    pub fn raised(&self) -> &[Alert] {
        &self.raised
    }

    /// Looks, and answers with what was not raised before.
    pub fn look(&mut self, observed: &Observed<'_>) -> Vec<Alert> {
        let mut conditions = conditions(observed);
        conditions.extend(self.lost_loss(observed));
        let mut streaks = BTreeMap::new();
        let mut new = Vec::new();
        for alert in conditions {
            let key = (alert.kind, alert.subject.clone());
            let streak = self.streaks.get(&key).copied().unwrap_or(0).saturating_add(1);
            let wanted = if alert.kind == AlertKind::SlowRank { SLOW_LOOKS } else { 1 };
            let is_known = self.raised.iter().any(|known| (known.kind, &known.subject) == (alert.kind, &alert.subject));
            if streak >= wanted && !is_known {
                self.raised.push(alert.clone());
                new.push(alert);
            }
            streaks.insert(key, streak);
        }
        self.streaks = streaks;
        new
    }

    fn lost_loss(&mut self, observed: &Observed<'_>) -> Option<Alert> {
        let status = observed.status;
        if status.loss.is_finite() || observed.gathers {
            self.without_loss_since = None;
            return None;
        }
        let since = *self.without_loss_since.get_or_insert(status.step);
        if status.step < since {
            self.without_loss_since = Some(status.step);
        }
        (status.step > since).then(|| {
            let text = format!(
                "the loss is {} at step {}: a smaller lr, or values within min_val and max_val, may help",
                status.loss, status.step
            );
            alert(AlertKind::LossNotFinite, "", status.step, text)
        })
    }
}

fn alert(kind: AlertKind, subject: &str, step: u64, text: String) -> Alert {
    Alert { kind, text, step, subject: subject.to_owned() }
}

/// All conditions that one look shows.
fn conditions(observed: &Observed<'_>) -> Vec<Alert> {
    let status = observed.status;
    let mut found = Vec::new();
    found.extend(no_better(observed));
    for worker in status.workers.iter().filter(|worker| worker.restarts > MANY_RESTARTS) {
        let text = format!(
            "a worker on {} was started again {} times: its log says why it ends",
            worker.host, worker.restarts
        );
        found.push(alert(AlertKind::WorkerRestarts, &worker.host, status.step, text));
    }
    found.extend(slow_ranks(status));
    if let Some(disk) = observed.disk
        && disk.free < LITTLE_SPACE.min((LITTLE_SHARE * disk.total as f64) as u64)
    {
        let text = format!(
            "the disk of the run's folder is nearly full: {} MiB of {} MiB are free",
            disk.free >> 20,
            disk.total >> 20
        );
        found.push(alert(AlertKind::DiskNearlyFull, "", status.step, text));
    }
    found
}

fn no_better(observed: &Observed<'_>) -> Option<Alert> {
    let status = observed.status;
    let (latest, constant) = (status.latest_evaluation.as_ref()?, observed.constant?);
    if latest.step < observed.steps_per_epoch || latest.mae_percent_of_range < constant {
        return None;
    }
    let text = format!(
        "at step {} the held-out error is {:.2} % of the range, no better than the best constant's {constant:.2} %: \
         another lr, layer or pooling may help",
        latest.step, latest.mae_percent_of_range
    );
    Some(alert(AlertKind::NoBetterThanConstant, "", status.step, text))
}

/// Milliseconds of computing per micro-batch; none of a worker that computes nothing.
fn pace(worker: &WorkerStatus) -> Option<f64> {
    (worker.rank.is_some() && worker.micro_batches > 0 && worker.compute_ms > 0.0)
        .then(|| worker.compute_ms / f64::from(worker.micro_batches))
}

fn slow_ranks(status: &StatusReply) -> Vec<Alert> {
    let mut paces: Vec<f64> = status.workers.iter().filter_map(pace).collect();
    if paces.len() < 2 {
        return Vec::new();
    }
    paces.sort_by(f64::total_cmp);
    // The lower one of two in the middle: with two ranks, the faster is what the other is measured by.
    let median = paces[(paces.len() - 1) / 2];
    let is_slow = |worker: &&WorkerStatus| pace(worker).is_some_and(|pace| pace >= SLOW * median);
    let slow = status.workers.iter().filter(is_slow).map(|worker| {
        let text = format!(
            "worker {} ({}, pid {}) takes {:.1} ms for a micro-batch, the median rank {median:.1} ms",
            worker.member,
            worker.host,
            worker.pid,
            pace(worker).unwrap_or_default()
        );
        alert(AlertKind::SlowRank, &worker.member.to_string(), status.step, text)
    });
    slow.collect()
}

#[cfg(test)]
mod tests {
    use numalign_protocol::EvaluationStatus;

    use super::*;

    fn worker(member: u64, compute_ms: f64) -> WorkerStatus {
        WorkerStatus {
            member,
            host: format!("node-{member}"),
            rank: Some(member as u32),
            micro_batches: 2,
            compute_ms,
            ..WorkerStatus::default()
        }
    }

    fn status(step: u64) -> StatusReply {
        StatusReply { step, loss: 0.5, workers: vec![worker(0, 4.0), worker(1, 5.0)], ..StatusReply::default() }
    }

    fn observed(status: &StatusReply) -> Observed<'_> {
        Observed { status, steps_per_epoch: 10, gathers: false, constant: Some(25.0), disk: None }
    }

    fn kinds(alerts: &[Alert]) -> Vec<AlertKind> {
        alerts.iter().map(|alert| alert.kind).collect()
    }

    #[test]
    fn a_run_that_is_well_raises_nothing() {
        let mut log = AlertLog::default();
        let mut status = status(20);
        status.latest_evaluation =
            Some(EvaluationStatus { step: 10, mae_percent_of_range: 3.0, ..EvaluationStatus::default() });
        let disk = Some(DiskSpace { free: 2 << 30, total: 1 << 40 });
        for _ in 0..20 {
            assert!(log.look(&Observed { disk, ..observed(&status) }).is_empty());
        }
    }

    #[test]
    fn a_loss_that_is_lost_is_told_once_and_one_that_is_not_known_yet_is_not() {
        let mut log = AlertLog::default();
        // Before the first commit, and right after a coordinator came back.
        for step in [0, 0, 40, 40] {
            let unknown = StatusReply { loss: f32::NAN, ..status(step) };
            let expected = if step > 0 && log.without_loss_since == Some(0) { 1 } else { 0 };
            if expected == 1 {
                let known = status(30);
                assert!(log.look(&observed(&known)).is_empty());
            }
            assert!(log.look(&observed(&unknown)).is_empty(), "{step}");
        }
        let lost = StatusReply { loss: f32::INFINITY, ..status(41) };
        let raised = log.look(&observed(&lost));
        assert_eq!(kinds(&raised), [AlertKind::LossNotFinite]);
        assert!(raised[0].text.contains("inf at step 41"), "{}", raised[0].text);
        let lost = StatusReply { loss: f32::NAN, ..status(42) };
        assert!(log.look(&observed(&lost)).is_empty());
        let mut other = AlertLog::default();
        for step in [1, 2] {
            let gathering = StatusReply { loss: f32::NAN, ..status(step) };
            assert!(other.look(&Observed { gathers: true, ..observed(&gathering) }).is_empty());
        }
    }

    #[test]
    fn an_error_like_the_constants_is_told_after_an_epoch() {
        let with = |step, percent| {
            let latest = EvaluationStatus { step, mae_percent_of_range: percent, ..EvaluationStatus::default() };
            let status = StatusReply { latest_evaluation: Some(latest), ..status(20) };
            kinds(&AlertLog::default().look(&observed(&status)))
        };
        assert_eq!(with(10, 25.0), [AlertKind::NoBetterThanConstant]);
        assert!(with(9, 30.0).is_empty());
        assert!(with(10, 24.9).is_empty());
    }

    #[test]
    fn workers_that_come_again_and_again_are_told_once_for_each_host() {
        let mut log = AlertLog::default();
        let mut status = status(5);
        status.workers[0].restarts = 3;
        assert!(log.look(&observed(&status)).is_empty());
        status.workers[0].restarts = 4;
        let raised = log.look(&observed(&status));
        assert_eq!(kinds(&raised), [AlertKind::WorkerRestarts]);
        assert!(raised[0].text.contains("node-0 was started again 4 times"), "{}", raised[0].text);
        status.workers[0].restarts = 5;
        assert!(log.look(&observed(&status)).is_empty());
        status.workers[1].restarts = 9;
        assert_eq!(log.look(&observed(&status)).len(), 1);
        assert_eq!(log.raised().len(), 2);
    }

    #[test]
    fn a_rank_that_stays_slow_is_told() {
        let mut log = AlertLog::default();
        let mut status = status(5);
        status.workers.push(worker(2, 11.0));
        for _ in 1..SLOW_LOOKS {
            assert!(log.look(&observed(&status)).is_empty());
        }
        let raised = log.look(&observed(&status));
        assert_eq!(kinds(&raised), [AlertKind::SlowRank]);
        assert!(raised[0].text.contains("worker 2 (node-2"), "{}", raised[0].text);
        assert!(raised[0].text.contains("5.5 ms for a micro-batch, the median rank 2.5 ms"), "{}", raised[0].text);
        // Chance interrupts a streak.
        let mut log = AlertLog::default();
        for look in 0..3 * SLOW_LOOKS {
            status.workers[2].compute_ms = if look % 5 == 0 { 4.0 } else { 11.0 };
            assert!(log.look(&observed(&status)).is_empty());
        }
        // One that has nothing to do is neither slow nor a measure.
        status.workers[2] = WorkerStatus { rank: None, ..worker(2, 99.0) };
        assert!(slow_ranks(&status).is_empty());
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_told() {
        let status = status(5);
        let with = |free, total| {
            let disk = Some(DiskSpace { free, total });
            kinds(&AlertLog::default().look(&Observed { disk, ..observed(&status) }))
        };
        assert_eq!(with(100 << 20, 1 << 40), [AlertKind::DiskNearlyFull]);
        assert_eq!(with(1 << 20, 64 << 20), [AlertKind::DiskNearlyFull]);
        assert!(with(60 << 20, 64 << 20).is_empty(), "a small disk that is empty");
    }
}
