//! Does to the processes of a run what `--chaos` asks for, and notes how long the run needed to go on.

use std::time::{Duration, Instant};

use numalign_protocol::StatusReply;
use rustix::process::{Pid, Signal, kill_process};

use crate::console::note;

use super::chaos::{Chaos, Fault, Record};

/// The worker that is told to compute wrong numbers, or slowly.
const FAULTY: usize = 1;

/// Faults to come, and recoveries that are waited for.
pub struct FaultInjector {
    chaos: Option<Chaos>,
    record: Record,
    /// Stopped workers and when they go on.
    stopped: Vec<(Pid, Instant)>,
}

impl FaultInjector {
    pub fn new(chaos: Option<Chaos>) -> Self {
        Self { chaos, record: Record::default(), stopped: Vec::new() }
    }

    /// What the worker with this number is told to do wrong. Only its first process freezes, or it would at every start.
    pub fn worker_faults(&self, index: usize, restarts: u32) -> Option<String> {
        let chaos = self.chaos.as_ref().filter(|_| index == FAULTY)?;
        let faults = chaos.worker_faults.as_deref()?.split(',');
        let faults: Vec<&str> = faults.filter(|fault| restarts == 0 || !fault.starts_with("freeze=")).collect();
        (!faults.is_empty()).then(|| faults.join(","))
    }

    /// When there is something to do next.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        let next_fault = self.chaos.as_ref().and_then(|chaos| chaos.next_due(now));
        self.stopped.iter().map(|(_, until)| *until).chain(next_fault).min()
    }

    /// Lets stopped workers go on whose time is over.
    pub fn resume_stopped(&mut self, now: Instant) {
        self.stopped.retain(|(pid, until)| {
            if now < *until {
                return true;
            }
            // It may have been killed meanwhile.
            let _ = kill_process(*pid, Signal::CONT);
            false
        });
    }

    /// The fault that is due, if one is.
    pub fn due(&mut self, now: Instant) -> Option<Fault> {
        self.chaos.as_mut()?.due(now)
    }

    /// Does `fault` to one of `processes`. Faults begin with the training: without a committed step, or without a worker
    /// that takes part, it is put off.
    pub fn inject(
        &mut self,
        fault: Fault,
        now: Instant,
        reply: Option<&StatusReply>,
        coordinator: u32,
        workers: &[u32],
    ) {
        let Some(chaos) = &mut self.chaos else {
            return;
        };
        let reply = reply.filter(|reply| reply.step > 0);
        let is_stopped = |pid: u32| self.stopped.iter().any(|(known, _)| known.as_raw_nonzero().get() as u32 == pid);
        let takes_part = |pid: u32| reply.is_some_and(|reply| reply.workers.iter().any(|known| known.pid == pid));
        let standing: Vec<u32> = workers.iter().copied().filter(|pid| !is_stopped(*pid) && takes_part(*pid)).collect();
        let Some(reply) = reply.filter(|_| !standing.is_empty()) else {
            return chaos.reschedule(fault, now);
        };
        self.record.begin(fault, now, reply.step, reply.generation);
        let victim = standing[chaos.victim(standing.len())];
        let pid = match fault {
            Fault::KillCoordinator => coordinator,
            Fault::KillWorker | Fault::HangWorker(_) => victim,
        };
        tracing::info!("chaos: {fault} at step {} (pid {pid})", reply.step);
        let Some(pid) = Pid::from_raw(pid as i32) else {
            return;
        };
        let sent = match fault {
            Fault::HangWorker(length) => {
                self.stopped.push((pid, now + length));
                kill_process(pid, Signal::STOP)
            }
            _ => kill_process(pid, Signal::KILL),
        };
        if let Err(error) = sent {
            tracing::warn!("chaos: {fault} failed: {error}");
        }
    }

    /// How long to wait between two looks at the run: little while a recovery is timed.
    pub fn look_every(&self, usual: Duration) -> Duration {
        const WHILE_RECOVERING: Duration = Duration::from_millis(20);
        if self.record.waiting() { WHILE_RECOVERING } else { usual }
    }

    /// What the coordinator says just now.
    pub fn observe(&mut self, now: Instant, reply: &StatusReply) {
        self.record.observe(now, reply.step, reply.generation);
    }

    /// The run is complete, and with it every recovery.
    pub fn print_chaos_report(&mut self) {
        self.record.end(Instant::now());
        for line in self.record.table() {
            note!("{line}");
        }
    }
}
