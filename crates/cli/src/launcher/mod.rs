//! `launch`'s run: starts the coordinator and the workers as direct children, replaces those that die, and leaves none
//! behind. Everything runs on the main thread, since a parent-death signal follows the thread that started the child.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitStatus;
use std::task::Poll;
use std::time::{Duration, Instant};

use numalign_config::{Config, Resume};
use numalign_protocol::StatusReply;
use rustix::process::Signal;

use crate::console::note;
use crate::error::CliError;
use crate::process::ChildGuard;
use crate::settings::RunSettings;
use crate::watching::Page;

use chaos::Chaos;
use inject::FaultInjector;
use restart_policy::{AfterExit, Restarts, after_exit};
use signals::Signals;
use silence::Silence;
use spawn::{Inherited, WorkerPlace, spawn_coordinator, spawn_worker};
use status_client::StatusClient;

pub use spawn::JoinToken;

pub mod chaos;
pub mod child;
mod inject;
mod restart_policy;
pub mod signals;
mod silence;
pub mod spawn;
mod status_client;

/// Time that children get to end by themselves.
const GRACE: Duration = Duration::from_secs(4);
/// Time that a coordinator gets to say why no worker is left.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What is left of `max_time` at least for a coordinator that starts again.
const SHORTEST_RUN: Duration = Duration::from_millis(1);
/// How often the coordinator is asked how the run is.
const LOOK: Duration = Duration::from_secs(1);
/// A process that the coordinator has not counted among its workers for this long, and once did, hangs for good.
const HUNG: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Worker {
    child: Option<ChildGuard>,
    restarts: Restarts,
    start_at: Option<Instant>,
    /// When the coordinator last counted the present process among its workers.
    counted: Option<Instant>,
}

/// What the loop waits for.
enum Event {
    Stop,
    Checkpoint,
    CoordinatorEnded(ExitStatus),
    WorkerEnded(usize, ExitStatus),
    Timer,
}

/// One run's processes. They end with it: the workers first.
pub struct Launcher {
    config: Config,
    /// Every process of the run has it; none on its command line.
    token: JoinToken,
    inherited: Inherited,
    address: SocketAddr,
    workers: Vec<Worker>,
    coordinator: ChildGuard,
    coordinator_restarts: Restarts,
    /// Committed step when it was last asked.
    step: Option<u64>,
    signals: Signals,
    client: StatusClient,
    looked: Instant,
    silence: Silence,
    faults: FaultInjector,
    /// This machine's name, as its workers tell it.
    host: String,
    started: Instant,
    /// `max_time` as it was configured.
    limit: Option<Duration>,
    /// Gets to know what the coordinator says.
    page: Option<Page>,
}

impl Launcher {
    /// Starts the coordinator of `run` and its workers, with the faults that `chaos` asks for. Every process gets
    /// `token`; `page` is told how the run is. Needs the context of a runtime on the main thread.
    pub fn start(
        run: &RunSettings,
        token: JoinToken,
        signals: Signals,
        chaos: Option<Chaos>,
        page: Option<Page>,
    ) -> Result<Self, CliError> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .map_err(|error| CliError::new(format!("cannot listen on loopback: {error}")))?;
        let address = listener.local_addr()?;
        let inherited = Inherited::new(listener, &run.files)?;
        let config = run.config.clone();
        let coordinator = spawn_coordinator(&config, &inherited, |command| token.give_to_coordinator(command))?;
        note!("coordinator on http://{address} (see it with: numalign status --coordinator http://{address})");
        signals.forget_checkpoint();
        let count = config.run.workers;
        let mut launcher = Self {
            started: Instant::now(),
            limit: config.run.max_time,
            config,
            client: StatusClient::new(address, Some(token.token.clone()))?,
            token,
            inherited,
            address,
            workers: Vec::new(),
            coordinator,
            coordinator_restarts: Restarts::default(),
            step: None,
            signals,
            looked: Instant::now(),
            silence: Silence::new(Instant::now()),
            faults: FaultInjector::new(chaos),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            page,
        };
        for index in 0..count {
            let child = launcher.spawn_worker(index)?;
            launcher.workers.push(Worker { child: Some(child), ..Worker::default() });
        }
        Ok(launcher)
    }

    /// Waits for the run's end; every child has ended when it answers.
    pub async fn wait(mut self) -> Result<(), CliError> {
        loop {
            if self.workers.iter().all(|worker| worker.child.is_none() && worker.start_at.is_none()) {
                return self.all_workers_gone().await;
            }
            match self.next_event().await? {
                Event::Stop => return self.stop().await,
                Event::Checkpoint => self.coordinator.signal(Signal::USR1),
                Event::CoordinatorEnded(status) => {
                    if let Some(end) = self.coordinator_ended(status).await? {
                        return end;
                    }
                }
                Event::WorkerEnded(index, status) => self.worker_ended(index, status).await,
                Event::Timer => {
                    self.start_due_workers(Instant::now())?;
                    self.poll_status(Instant::now()).await;
                    self.inject_faults(Instant::now()).await;
                }
            }
        }
    }

    async fn next_event(&mut self) -> Result<Event, CliError> {
        let wake = self.next_wake(Instant::now());
        let checkpoint = self.signals.checkpoint();
        Ok(tokio::select! {
            biased;
            () = self.signals.clone().stop() => Event::Stop,
            () = checkpoint.notified() => Event::Checkpoint,
            status = self.coordinator.wait() => Event::CoordinatorEnded(status?),
            (index, status) = next_exit(&mut self.workers) => Event::WorkerEnded(index, status?),
            () = tokio::time::sleep_until(wake.into()) => Event::Timer,
        })
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let look = self.looked + self.faults.look_every(LOOK);
        let starts = self.workers.iter().filter_map(|worker| worker.start_at);
        starts.chain(self.faults.next_wake(now)).fold(look, Instant::min)
    }

    async fn coordinator_ended(&mut self, status: ExitStatus) -> Result<Option<Result<(), CliError>>, CliError> {
        match status.code() {
            Some(0) => {
                self.faults.print_chaos_report();
                self.wait_for_workers().await;
                Ok(Some(Ok(())))
            }
            // It printed why.
            Some(code) => Ok(Some(Err(CliError::already_reported(code.clamp(1, 255) as u8)))),
            None => {
                if !self.coordinator_restarts.allow(self.step, self.config.run.max_restarts) {
                    return Ok(Some(Err(CliError::new(format!("the coordinator was killed again ({status})"))
                        .with_hint(format!("see the log above; {}", self.resume_hint())))));
                }
                note!("the coordinator was killed ({status}); starting it again");
                self.coordinator_starts_again(Instant::now());
                self.config.run.resume = Some(Resume::Auto);
                // The new one's clock begins anew.
                let rest = |limit: Duration| limit.saturating_sub(self.started.elapsed()).max(SHORTEST_RUN);
                self.config.run.max_time = self.limit.map(rest);
                self.coordinator = spawn_coordinator(&self.config, &self.inherited, |command| {
                    self.token.give_to_coordinator(command);
                })?;
                Ok(None)
            }
        }
    }

    async fn worker_ended(&mut self, index: usize, status: ExitStatus) {
        let pid = self.workers[index].child.take().map_or(0, |child| child.id());
        // It was told that the run is done.
        if status.success() {
            return;
        }
        let now = Instant::now();
        let reply = self.ask(now).await;
        let evicted = reply.as_ref().is_some_and(|reply| was_refused(reply, &self.host, pid));
        let worker = &mut self.workers[index];
        let number = index + 1;
        match after_exit(&mut worker.restarts, reply.is_some(), evicted, self.step, self.config.run.max_restarts) {
            AfterExit::Restart(pause) => {
                worker.start_at = Some(now + pause);
                tracing::info!("worker {number} (pid {pid}) ended ({status}); a new one starts in {pause:?}");
            }
            AfterExit::Evicted => {
                note!("worker {number} (pid {pid}) was told not to come back and is not started again");
            }
            AfterExit::GiveUp => note!(
                "worker {number} (pid {pid}) ended ({status}) and is not started again: {} restarts brought no progress",
                worker.restarts.count
            ),
        }
    }

    fn start_due_workers(&mut self, now: Instant) -> Result<(), CliError> {
        for index in 0..self.workers.len() {
            if self.workers[index].start_at.is_some_and(|at| now >= at) {
                let child = self.spawn_worker(index)?;
                let worker = &mut self.workers[index];
                (worker.child, worker.start_at, worker.counted) = (Some(child), None, None);
            }
        }
        Ok(())
    }

    /// Asks the coordinator how the run is, and notes what it says.
    async fn ask(&mut self, now: Instant) -> Option<StatusReply> {
        let reply = self.client.status().await;
        if let Some(page) = &self.page {
            page.report(reply.clone());
        }
        let reply = reply?;
        self.looked = now;
        self.silence.answered(now);
        self.step = Some(self.step.unwrap_or(0).max(reply.step));
        self.faults.observe(now, &reply);
        for worker in &mut self.workers {
            if let Some(child) = &worker.child
                && reply.workers.iter().any(|known| known.pid == child.id())
            {
                worker.counted = Some(now);
            }
        }
        Some(reply)
    }

    /// Now and then, and often while something is being recovered from: who is still counted? A process that was
    /// declared dead and never came back hangs, and makes place for another.
    async fn poll_status(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked) < self.faults.look_every(LOOK) {
            return;
        }
        self.looked = now;
        if self.ask(now).await.is_none() {
            return self.coordinator_is_silent().await;
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if worker.counted.is_some_and(|counted| now.saturating_duration_since(counted) > HUNG)
                && let Some(child) = &worker.child
            {
                note!(
                    "worker {} (pid {}) does not answer and has been out of the run for {} s: killing it",
                    index + 1,
                    child.id(),
                    HUNG.as_secs()
                );
                worker.counted = None;
                child.signal(Signal::KILL);
            }
        }
    }

    /// It did not say how the run is. One that writes a large file answers the health service all the same; one that
    /// answers nothing for too long makes place for another.
    async fn coordinator_is_silent(&mut self) {
        let is_alive = self.client.is_alive().await;
        let now = Instant::now();
        if is_alive {
            return self.silence.answered(now);
        }
        let more = self.silence.unanswered(now);
        // It could not count its workers meanwhile.
        for worker in &mut self.workers {
            worker.counted = worker.counted.map(|counted| (counted + more).min(now));
        }
        let Some(lasted) = self.silence.too_long() else {
            return;
        };
        note!(
            "the coordinator (pid {}) has not answered for {:.0} s: killing it, to start it again from its newest checkpoint",
            self.coordinator.id(),
            lasted.as_secs_f64()
        );
        self.silence.restarted(now);
        self.coordinator.signal(Signal::KILL);
    }

    /// Another coordinator starts, and has not counted anybody yet.
    fn coordinator_starts_again(&mut self, now: Instant) {
        self.silence.restarted(now);
        for worker in &mut self.workers {
            worker.counted = worker.counted.map(|_| now);
        }
    }

    async fn inject_faults(&mut self, now: Instant) {
        self.faults.resume_stopped(now);
        let Some(fault) = self.faults.due(now) else {
            return;
        };
        let reply = self.ask(now).await;
        let children = self.workers.iter().filter_map(|worker| worker.child.as_ref());
        let workers: Vec<u32> = children.map(ChildGuard::id).collect();
        self.faults.inject(fault, now, reply.as_ref(), self.coordinator.id(), &workers);
    }

    /// The last worker is gone for good: the coordinator may know better why.
    async fn all_workers_gone(&mut self) -> Result<(), CliError> {
        match self.coordinator.wait_at_most(LAST_WORDS).await? {
            Some(status) if status.code() == Some(0) => {
                self.faults.print_chaos_report();
                return Ok(());
            }
            Some(status) => return Err(CliError::already_reported(status.code().unwrap_or(1).clamp(1, 255) as u8)),
            None => {}
        }
        self.coordinator.signal(Signal::TERM);
        self.coordinator.wait_at_most(GRACE).await?;
        Err(CliError::new("no worker is left")
            .with_hint(format!("the workers' messages are above; {}", self.resume_hint())))
    }

    async fn stop(&mut self) -> Result<(), CliError> {
        self.coordinator.signal(Signal::TERM);
        match self.coordinator.wait_at_most(GRACE).await? {
            Some(status) if status.code() == Some(0) => Ok(()),
            Some(status) => Err(CliError::already_reported(status.code().unwrap_or(1).clamp(1, 255) as u8)),
            None => {
                Err(CliError::new("the coordinator did not end in time and was killed").with_hint(self.resume_hint()))
            }
        }
    }

    fn resume_hint(&self) -> String {
        format!("continue with: numalign launch --run-id {} --resume auto", self.config.run.run_id)
    }

    async fn wait_for_workers(&mut self) {
        let all = async {
            for child in self.workers.iter_mut().filter_map(|worker| worker.child.as_mut()) {
                // One that cannot be waited for is killed like one that does not end.
                let _ = child.wait().await;
            }
        };
        let _ = tokio::time::timeout(GRACE, all).await;
    }

    fn spawn_worker(&self, index: usize) -> Result<ChildGuard, CliError> {
        let restarts = self.workers.get(index).map_or(0, |worker| worker.restarts.in_all);
        let place = WorkerPlace { index, restarts, faults: self.faults.worker_faults(index, restarts) };
        spawn_worker(&self.config, self.address, &self.token.token, place)
    }
}

/// Whether the coordinator refused the process `pid` of this machine: another machine's, or another container's, may have
/// the same id.
fn was_refused(reply: &StatusReply, host: &str, pid: u32) -> bool {
    let namespace = numalign_worker::pid_namespace();
    reply
        .refused
        .iter()
        .any(|process| process.pid == pid && process.host == host && [0, namespace].contains(&process.pid_namespace))
}

/// The next worker that ends, by its index; cancelling is safe.
async fn next_exit(workers: &mut [Worker]) -> (usize, std::io::Result<ExitStatus>) {
    let mut waits = Vec::new();
    for (index, worker) in workers.iter_mut().enumerate() {
        if let Some(child) = &mut worker.child {
            waits.push((index, Box::pin(child.wait())));
        }
    }
    std::future::poll_fn(|context| {
        for (index, wait) in &mut waits {
            if let Poll::Ready(status) = wait.as_mut().poll(context) {
                return Poll::Ready((*index, status));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use numalign_protocol::RefusedProcess;

    use super::*;

    #[test]
    fn only_a_process_of_this_machine_counts_as_refused() {
        let process = |host: &str, pid, pid_namespace| RefusedProcess { host: host.to_owned(), pid, pid_namespace };
        let own = numalign_worker::pid_namespace();
        assert_ne!(own, 0);
        let reply = |process| StatusReply { refused: vec![process], ..StatusReply::default() };
        for (refused, expected) in [
            (process("here", 7, own), true),
            (process("here", 7, 0), true),
            (process("here", 8, own), false),
            (process("there", 7, own), false),
            (process("here", 7, own + 1), false),
        ] {
            assert_eq!(was_refused(&reply(refused.clone()), "here", 7), expected, "{refused:?}");
        }
    }
}
