//! The answer to `numalign status`: what a run is doing and why, as the protocol's message. Pure.

use std::time::{Duration, Instant};

use numalign_config::Config;
use numalign_projector::{Evaluation, Evaluations};
use numalign_protocol as proto;

use super::failures::{Failure, FailureLog};
use crate::machine::{Activity, Machine, Member, MemberId, Process};

/// Missing micro-batches that are listed.
const MAX_MISSING: usize = 32;

/// What a status is made of.
pub struct StatusInput<'a> {
    /// Settings of the run.
    pub config: &'a Config,
    /// Members, generation, reason.
    pub machine: &'a Machine,
    /// The oldest unit that waits for rows, and the micro-batches it waits for.
    pub waiting_for: Option<(u64, Vec<usize>)>,
    /// Training steps per second of late.
    pub steps_per_second: f64,
    /// The latest loss; NaN before the first step.
    pub loss: f32,
    /// What went wrong so far.
    pub failures: &'a FailureLog,
    /// Checkpoints that could not be written.
    pub failed_checkpoints: u64,
    /// Messages that were found damaged.
    pub damaged_messages: u64,
}

/// The status at `now`.
pub fn status(now: Instant, input: &StatusInput<'_>) -> proto::StatusReply {
    let (config, machine, failures) = (input.config, input.machine, input.failures);
    let mut reason = machine.reason().to_owned();
    if let Some((step, missing)) = &input.waiting_for {
        let more = missing.len().saturating_sub(MAX_MISSING);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let shown = &missing[..missing.len().min(MAX_MISSING)];
        reason = format!("{reason}; step {step} waits for the rows of micro-batches {shown:?}{more}");
    }
    let evaluations = machine.committed().map(|state| state.evaluations());
    let range = config.recipe.range();
    let collective = machine.collective();
    proto::StatusReply {
        run_id: config.run.run_id.clone(),
        phase: machine.phase().to_owned(),
        reason,
        generation: machine.generation().map_or(0, |generation| generation.number),
        step: machine.committed().map_or(0, |state| state.step()),
        total_steps: config.recipe.total_steps(),
        steps_per_second: input.steps_per_second,
        loss: input.loss,
        workers: machine.members().iter().map(|(id, member)| worker(now, machine, *id, member)).collect(),
        collective: collective.map_or_else(String::new, |decision| decision.backend.name().to_owned()),
        collective_reason: collective.map_or_else(String::new, |decision| decision.reason.clone()),
        refused: machine.refused().map(refused).collect(),
        failures: failures.newest().map(failure).collect(),
        failures_total: failures.total(),
        recoveries_total: failures.recoveries(),
        median_recovery_ms: milliseconds(failures.median()),
        worst_recovery_ms: milliseconds(failures.worst()),
        failed_checkpoints: input.failed_checkpoints,
        damaged_messages: input.damaged_messages,
        latest_evaluation: evaluations.and_then(|made| made.list().last()).map(|made| evaluation(made, range)),
        best_evaluation: evaluations.and_then(Evaluations::best).map(|made| evaluation(made, range)),
    }
}

fn worker(now: Instant, machine: &Machine, id: MemberId, member: &Member) -> proto::WorkerStatus {
    let (state, rank) = match member.activity {
        Activity::Loading => ("loading", None),
        Activity::Waiting(_) => ("spare", None),
        Activity::Training(rank) => ("training", Some(rank)),
    };
    let timing = member.last_timing;
    proto::WorkerStatus {
        member: id.0,
        host: member.join_request.process.host.clone(),
        pid: member.join_request.process.pid,
        device: member.worker_ready.as_ref().map_or_else(String::new, |ready| ready.device.clone()),
        state: state.to_owned(),
        rank,
        micro_batches: machine.part_of(id).map_or(0, |part| part.len() as u32),
        ms_per_step: milliseconds(timing.compute + timing.data_wait + timing.reduce),
        last_heartbeat_seconds: now.saturating_duration_since(member.last_seen).as_secs_f64(),
        restarts: member.join_request.restarts,
        compute_ms: milliseconds(timing.compute),
        data_wait_ms: milliseconds(timing.data_wait),
        reduce_ms: milliseconds(timing.reduce),
        peak_rss_mib: timing.peak_rss_mib,
    }
}

fn refused(process: &Process) -> proto::RefusedProcess {
    proto::RefusedProcess { host: process.host.clone(), pid: process.pid, pid_namespace: process.namespace }
}

fn failure(failure: &Failure) -> proto::FailureStatus {
    proto::FailureStatus {
        text: failure.text.clone(),
        step: failure.step,
        recovered: failure.recovery.is_some(),
        recovery_ms: failure.recovery.map(milliseconds),
    }
}

fn evaluation(made: &Evaluation, range: f64) -> proto::EvaluationStatus {
    proto::EvaluationStatus {
        step: made.step,
        samples: made.samples,
        mae: made.mae,
        mae_percent_of_range: 100.0 * made.mae / range,
        right_percent: made.right_percent(),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixtures::worker_ready;
    use crate::machine::{Event, JoinRequest, Report, Timing};

    fn config() -> Config {
        let flags = [("run_id", "mine"), ("batch_size", "4"), ("micro_batch_size", "1"), ("workers", "1")];
        Config::with(&flags).unwrap()
    }

    fn join(machine: &mut Machine, now: Instant, member: u64) {
        let request = JoinRequest {
            process: Process { host: "node".to_owned(), pid: 40 + member as u32, namespace: 5 },
            restarts: 2,
            rejoin_state: None,
            mac_holds: false,
            returns: false,
        };
        machine.handle(now, Event::Joined(MemberId(member), request));
    }

    fn input<'a>(config: &'a Config, machine: &'a Machine, failures: &'a FailureLog) -> StatusInput<'a> {
        StatusInput {
            config,
            machine,
            waiting_for: None,
            steps_per_second: 2.5,
            loss: 0.125,
            failures,
            failed_checkpoints: 3,
            damaged_messages: 4,
        }
    }

    #[test]
    fn a_run_without_workers_says_what_it_waits_for() {
        let (config, failures) = (Arc::new(config()), FailureLog::default());
        let (mut machine, now) = (Machine::new(config.clone(), 1, None, None), Instant::now());
        machine.handle(now, Event::Tick);
        let reply = status(now, &input(&config, &machine, &failures));
        assert_eq!((reply.run_id.as_str(), reply.phase.as_str()), ("mine", "waiting"));
        assert_eq!(reply.reason, "waiting for 1 workers to connect");
        assert_eq!((reply.generation, reply.step, reply.total_steps), (0, 0, config.recipe.total_steps()));
        assert_eq!((reply.steps_per_second, reply.loss, reply.failed_checkpoints), (2.5, 0.125, 3));
        assert_eq!(reply.damaged_messages, 4);
        assert!(reply.workers.is_empty() && reply.latest_evaluation.is_none() && reply.collective.is_empty());
    }

    #[test]
    fn each_worker_is_shown_with_what_it_does() {
        let (config, failures) = (Arc::new(config()), FailureLog::default());
        let (mut machine, start) = (Machine::new(config.clone(), 1, None, None), Instant::now());
        join(&mut machine, start, 1);
        machine.handle(start, Event::Ready(MemberId(1), worker_ready()));
        let later = start + Duration::from_millis(500);
        join(&mut machine, later, 2);
        let timing = Timing {
            compute: Duration::from_millis(3),
            data_wait: Duration::from_millis(2),
            reduce: Duration::from_millis(1),
            peak_rss_mib: 9,
        };
        // Far ahead, so that nothing is committed.
        let report = Report {
            generation: machine.generation().unwrap(),
            unit: 5,
            loss: 0.0,
            digest: machine.committed().unwrap().digest(),
            state: None,
            features: None,
            rows: Vec::new(),
            received: None,
            timing,
        };
        machine.handle(later, Event::Reported(MemberId(1), report));
        let mut input = input(&config, &machine, &failures);
        input.waiting_for = Some((0, vec![2, 3]));
        let reply = status(later + Duration::from_millis(250), &input);
        assert!(reply.reason.ends_with("; step 0 waits for the rows of micro-batches [2, 3]"), "{}", reply.reason);
        assert_eq!((reply.phase.as_str(), reply.generation), ("training", 1));
        assert_eq!(
            (reply.collective.as_str(), reply.collective_reason.as_str()),
            ("grpc", "worker 1 (node, pid 41): no GPU")
        );
        let [training, loading] = &reply.workers[..] else { panic!("two workers") };
        let expected = proto::WorkerStatus {
            member: 1,
            host: "node".to_owned(),
            pid: 41,
            device: "cpu".to_owned(),
            state: "training".to_owned(),
            rank: Some(0),
            micro_batches: 4,
            ms_per_step: 6.0,
            last_heartbeat_seconds: 0.25,
            restarts: 2,
            compute_ms: 3.0,
            data_wait_ms: 2.0,
            reduce_ms: 1.0,
            peak_rss_mib: 9,
        };
        assert_eq!(*training, expected);
        assert_eq!((loading.state.as_str(), loading.rank, loading.micro_batches), ("loading", None, 0));
        assert!(loading.device.is_empty());
    }

    #[test]
    fn failures_have_a_recovery_time_once_they_are_over() {
        let config = Arc::new(config());
        let (machine, start) = (Machine::new(config.clone(), 1, None, None), Instant::now());
        let mut failures = FailureLog::default();
        failures.record(start, 7, "a left".to_owned());
        failures.committed(start + Duration::from_millis(40));
        failures.record(start, 8, "b left".to_owned());
        let reply = status(start, &input(&config, &machine, &failures));
        let shown: Vec<_> =
            reply.failures.iter().map(|one| (one.text.as_str(), one.step, one.recovered, one.recovery_ms)).collect();
        assert_eq!(shown, [("a left", 7, true, Some(40.0)), ("b left", 8, false, None)]);
        assert_eq!((reply.failures_total, reply.recoveries_total), (2, 1));
        assert_eq!((reply.median_recovery_ms, reply.worst_recovery_ms), (40.0, 40.0));
    }
}
