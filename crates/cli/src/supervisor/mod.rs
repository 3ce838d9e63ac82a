//! `launch`'s hands: starts the coordinator and the workers as direct children, replaces those that die, and
//! leaves none behind. Everything runs on the main thread, since a parent-death signal follows the thread that spawned.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use numalign_access::Token;
use numalign_config::{Config, DeviceChoice, Resume};
use numalign_gpu::driver::visible_gpus;
use numalign_protocol::StatusReply;
use rustix::process::{Pid, Signal, kill_process};

use crate::access::TOKEN_VARIABLE;
use crate::error::CliError;

use chaos::{Chaos, Fault, Record};
use watch::Watch;

pub mod chaos;
pub mod child;
mod watch;

/// Where a launched process finds its parent's id.
pub const PARENT_VARIABLE: &str = "NUMALIGN_INTERNAL_PARENT";
/// Where a launched coordinator finds its configuration, as JSON.
pub const CONFIG_VARIABLE: &str = "NUMALIGN_INTERNAL_CONFIG";

/// Where a launched worker finds how often it was started before.
pub const RESTARTS_VARIABLE: &str = "NUMALIGN_INTERNAL_RESTARTS";

/// Where a worker finds its number among those of its machine; torchrun sets it too.
pub const LOCAL_RANK_VARIABLE: &str = "LOCAL_RANK";

/// How often children are looked at.
const POLL: Duration = Duration::from_millis(20);
/// Time that children get to end by themselves.
const GRACE: Duration = Duration::from_secs(4);
/// Longest pause before a worker is started again.
const MOST_PAUSE: Duration = Duration::from_secs(5);
/// How often the coordinator is asked how the run is, while nothing is amiss.
const LOOK: Duration = Duration::from_secs(1);
/// A process that the coordinator has not counted among its workers for this long, and once did, hangs for good.
const HUNG: Duration = Duration::from_secs(20);

/// The worker that `--chaos` tells to compute wrong numbers, or slowly.
const FAULTY: usize = 1;

/// What arrived from the terminal or the scheduler.
#[derive(Debug, Default)]
pub struct Signals {
    /// SIGINT and SIGTERM.
    stop: AtomicUsize,
    /// SIGUSR1: SLURM's warning, for example.
    checkpoint: AtomicUsize,
}

impl Signals {
    /// Whether the run is to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst) > 0
    }
}

/// Begins to count signals; called once per process.
pub fn count_signals() -> Result<Arc<Signals>, CliError> {
    let signals = Arc::new(Signals::default());
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let counted = signals.clone();
        let action = move || {
            // The second signal ends everything at once; children follow their parent.
            if counted.stop.fetch_add(1, Ordering::SeqCst) >= 1 {
                signal_hook::low_level::exit(1);
            }
        };
        // SAFETY: the action only touches an atomic and `_exit`, both allowed in a signal handler.
        unsafe { signal_hook::low_level::register(signal, action) }?;
    }
    let counted = signals.clone();
    let action = move || {
        counted.checkpoint.fetch_add(1, Ordering::SeqCst);
    };
    // SAFETY: the action only touches an atomic.
    unsafe { signal_hook::low_level::register(signal_hook::consts::SIGUSR1, action) }?;
    Ok(signals)
}

/// Restarts of one process since the run last made progress.
#[derive(Debug, Default)]
struct Restarts {
    count: u32,
    /// Ever.
    in_all: u32,
    /// Committed step at the last one.
    step_then: u64,
}

impl Restarts {
    /// Counts one more, given the committed step where it is known; false when that is one too many.
    fn allow(&mut self, step: Option<u64>, most: u32) -> bool {
        if step.is_some_and(|step| step > self.step_then) {
            self.count = 0;
        }
        self.step_then = step.unwrap_or(self.step_then);
        if self.count >= most {
            return false;
        }
        self.count += 1;
        self.in_all += 1;
        true
    }

    fn pause(&self) -> Duration {
        (Duration::from_millis(100) * 2u32.saturating_pow(self.count.saturating_sub(1))).min(MOST_PAUSE)
    }
}

#[derive(Default)]
struct Worker {
    child: Option<Child>,
    restarts: Restarts,
    start_at: Option<Instant>,
    /// When the coordinator last counted the present process among its workers.
    counted: Option<Instant>,
}

/// One run's processes.
pub struct Supervisor {
    config: Config,
    /// Every process of the run has it; none on its command line.
    token: Option<Token>,
    listener: TcpListener,
    address: SocketAddr,
    coordinator: Child,
    coordinator_restarts: Restarts,
    /// Committed step when it was last asked.
    step: Option<u64>,
    workers: Vec<Worker>,
    signals: Arc<Signals>,
    /// Checkpoint signals that were passed on.
    checkpoints_asked: usize,
    watch: Watch,
    looked: Instant,
    chaos: Option<Chaos>,
    record: Record,
    /// Hanging workers and when they are woken.
    asleep: Vec<(Pid, Instant)>,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_all();
    }
}

impl Supervisor {
    /// Starts the coordinator and `config.run.workers` workers, with faults on purpose where `chaos` says so. Every process
    /// gets `token`.
    pub fn start(
        config: Config,
        token: Option<Token>,
        signals: Arc<Signals>,
        chaos: Option<Chaos>,
    ) -> Result<Self, CliError> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .map_err(|error| CliError::new(format!("cannot listen on loopback: {error}")))?;
        let address = listener.local_addr()?;
        let coordinator = spawn_coordinator(&config, &listener, |command| give_token(command, token.as_ref()))?;
        eprintln!("coordinator on http://{address} (see it with: numalign status --coordinator http://{address})");
        let count = config.run.workers;
        let mut supervisor = Self {
            config,
            watch: Watch::new(address, token.clone())?,
            token,
            listener,
            address,
            coordinator,
            coordinator_restarts: Restarts::default(),
            step: None,
            workers: Vec::new(),
            checkpoints_asked: signals.checkpoint.load(Ordering::SeqCst),
            signals,
            looked: Instant::now(),
            chaos,
            record: Record::default(),
            asleep: Vec::new(),
        };
        for index in 0..count {
            let child = supervisor.spawn_worker(index)?;
            supervisor.workers.push(Worker { child: Some(child), ..Worker::default() });
        }
        Ok(supervisor)
    }

    /// Waits for the run's end; every child has ended when it answers.
    pub fn wait(mut self) -> Result<(), CliError> {
        loop {
            if self.signals.stopped() {
                return self.stop();
            }
            self.pass_on_checkpoint_signals();
            if let Some(status) = self.coordinator.try_wait()?
                && let Some(end) = self.coordinator_ended(status)?
            {
                return end;
            }
            self.look_after_workers()?;
            self.look_around(Instant::now());
            self.make_trouble(Instant::now());
            if self.workers.iter().all(|worker| worker.child.is_none() && worker.start_at.is_none()) {
                return self.nobody_left();
            }
            std::thread::sleep(POLL);
        }
    }

    fn coordinator_ended(&mut self, status: ExitStatus) -> Result<Option<Result<(), CliError>>, CliError> {
        match status.code() {
            Some(0) => {
                self.tell_of_chaos();
                self.wait_for_workers();
                Ok(Some(Ok(())))
            }
            // It printed why.
            Some(code) => Ok(Some(Err(CliError::already_reported(code.clamp(1, 255) as u8)))),
            None => {
                if !self.coordinator_restarts.allow(self.step, self.config.run.max_restarts) {
                    return Ok(Some(Err(CliError::new(format!("the coordinator was killed again ({status})"))
                        .with_hint("see the log above; continue with --resume auto"))));
                }
                eprintln!("the coordinator was killed ({status}); starting it again");
                self.config.run.resume = Some(Resume::Auto);
                self.coordinator = spawn_coordinator(&self.config, &self.listener, |command| {
                    give_token(command, self.token.as_ref());
                })?;
                Ok(None)
            }
        }
    }

    fn look_after_workers(&mut self) -> Result<(), CliError> {
        for index in 0..self.workers.len() {
            let now = Instant::now();
            if self.workers[index].start_at.is_some_and(|at| now >= at) {
                let child = self.spawn_worker(index)?;
                let worker = &mut self.workers[index];
                (worker.child, worker.start_at, worker.counted) = (Some(child), None, None);
            }
            let Some(child) = &mut self.workers[index].child else {
                continue;
            };
            let pid = child.id();
            let Some(status) = child.try_wait()? else {
                continue;
            };
            self.workers[index].child = None;
            // A worker that was told that the run is done is not missed.
            if status.success() {
                continue;
            }
            let reply = self.ask(now);
            if reply.is_some_and(|reply| reply.refused_pids.contains(&pid)) {
                eprintln!("worker {} (pid {pid}) was told not to come back and is not started again", index + 1);
                continue;
            }
            let worker = &mut self.workers[index];
            if !worker.restarts.allow(self.step, self.config.run.max_restarts) {
                eprintln!(
                    "worker {} (pid {pid}) ended ({status}) and is not started again: {} restarts brought no progress",
                    index + 1,
                    worker.restarts.count
                );
                continue;
            }
            let pause = worker.restarts.pause();
            worker.start_at = Some(now + pause);
            tracing::info!("worker {} (pid {pid}) ended ({status}); a new one starts in {pause:?}", index + 1);
        }
        Ok(())
    }

    /// Asks the coordinator how the run is, and notes what it says.
    fn ask(&mut self, now: Instant) -> Option<StatusReply> {
        let reply = self.watch.status()?;
        self.looked = now;
        self.step = Some(self.step.unwrap_or(0).max(reply.step));
        self.record.observe(now, reply.step, reply.generation);
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
    fn look_around(&mut self, now: Instant) {
        let wait = if self.record.waiting() { POLL } else { LOOK };
        if now.saturating_duration_since(self.looked) < wait {
            return;
        }
        self.looked = now;
        if self.ask(now).is_none() {
            return;
        }
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if worker.counted.is_some_and(|counted| now.saturating_duration_since(counted) > HUNG)
                && let Some(child) = &mut worker.child
            {
                eprintln!(
                    "worker {} (pid {}) does not answer and has been out of the run for {} s: killing it",
                    index + 1,
                    child.id(),
                    HUNG.as_secs()
                );
                worker.counted = None;
                // It may have ended just now.
                let _ = child.kill();
            }
        }
    }

    fn pass_on_checkpoint_signals(&mut self) {
        let asked = self.signals.checkpoint.load(Ordering::SeqCst);
        if asked != self.checkpoints_asked {
            self.checkpoints_asked = asked;
            signal(&self.coordinator, Signal::USR1);
        }
    }

    /// The faults that `--chaos` asks for.
    fn make_trouble(&mut self, now: Instant) {
        self.asleep.retain(|(pid, until)| {
            if now < *until {
                return true;
            }
            // It may have been killed in its sleep.
            let _ = kill_process(*pid, Signal::CONT);
            false
        });
        let Some(fault) = self.chaos.as_mut().and_then(|chaos| chaos.due(now)) else {
            return;
        };
        // Trouble begins with the training, and finds only what stands.
        let reply = self.ask(now).filter(|reply| reply.step > 0);
        let sleeping = |pid: u32| self.asleep.iter().any(|(known, _)| known.as_raw_nonzero().get() as u32 == pid);
        let standing: Vec<u32> = self
            .workers
            .iter()
            .filter_map(|worker| worker.child.as_ref().map(Child::id))
            .filter(|pid| !sleeping(*pid))
            .filter(|pid| reply.iter().any(|reply| reply.workers.iter().any(|known| known.pid == *pid)))
            .collect();
        let Some(chaos) = &mut self.chaos else {
            return;
        };
        let Some(reply) = reply.filter(|_| !standing.is_empty()) else {
            return chaos.missed(fault, now);
        };
        self.record.begin(fault, now, reply.step, reply.generation);
        let victim = standing[chaos.victim(standing.len())];
        let pid = match fault {
            Fault::KillCoordinator => self.coordinator.id(),
            Fault::KillWorker | Fault::HangWorker(_) => victim,
        };
        tracing::info!("chaos: {fault} at step {} (pid {pid})", reply.step);
        let Some(pid) = Pid::from_raw(pid as i32) else {
            return;
        };
        let sent = match fault {
            Fault::HangWorker(length) => {
                self.asleep.push((pid, now + length));
                kill_process(pid, Signal::STOP)
            }
            _ => kill_process(pid, Signal::KILL),
        };
        if let Err(error) = sent {
            tracing::warn!("chaos: {fault} failed: {error}");
        }
    }

    /// The run is complete, and with it every recovery.
    fn tell_of_chaos(&mut self) {
        self.record.end(Instant::now());
        for line in self.record.table() {
            eprintln!("{line}");
        }
    }

    /// The last worker is gone for good: the coordinator may know why, in better words.
    fn nobody_left(&mut self) -> Result<(), CliError> {
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if let Some(status) = self.coordinator.try_wait()? {
                return match status.code() {
                    Some(0) => {
                        self.tell_of_chaos();
                        Ok(())
                    }
                    code => Err(CliError::already_reported(code.unwrap_or(1).clamp(1, 255) as u8)),
                };
            }
            std::thread::sleep(POLL);
        }
        signal(&self.coordinator, Signal::TERM);
        self.wait_for(Instant::now() + GRACE);
        Err(CliError::new("no worker is left")
            .with_hint("the workers' messages are above; continue with --resume auto"))
    }

    fn stop(&mut self) -> Result<(), CliError> {
        signal(&self.coordinator, Signal::TERM);
        self.wait_for(Instant::now() + GRACE);
        match self.coordinator.try_wait()? {
            Some(status) if status.code() == Some(0) => Ok(()),
            Some(_) => Err(CliError::already_reported(1)),
            None => Err(CliError::new("the coordinator did not end in time and was killed")
                .with_hint("continue with --resume auto")),
        }
    }

    fn wait_for(&mut self, until: Instant) {
        while Instant::now() < until && matches!(self.coordinator.try_wait(), Ok(None)) {
            std::thread::sleep(POLL);
        }
    }

    fn wait_for_workers(&mut self) {
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            let mut running = false;
            for worker in &mut self.workers {
                if let Some(child) = &mut worker.child {
                    running |= matches!(child.try_wait(), Ok(None));
                }
            }
            if !running {
                return;
            }
            std::thread::sleep(POLL);
        }
    }

    fn kill_all(&mut self) {
        let workers = self.workers.iter_mut().filter_map(|worker| worker.child.as_mut());
        for child in workers.chain(std::iter::once(&mut self.coordinator)) {
            // Killing a child that has ended is no error worth telling.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn spawn_worker(&self, index: usize) -> Result<Child, CliError> {
        let mut command = Command::new(executable()?);
        let restarts = self.workers.get(index).map_or(0, |worker| worker.restarts.in_all);
        command.env(RESTARTS_VARIABLE, restarts.to_string());
        if let Some(faults) = self.chaos.as_ref().and_then(|chaos| chaos.worker_faults.as_ref())
            && index == FAULTY
        {
            command.env(numalign_worker::fault::VARIABLE, faults);
        }
        command.arg("worker").arg("--coordinator").arg(format!("http://{}", self.address));
        command.env(LOCAL_RANK_VARIABLE, index.to_string());
        match self.config.run.device {
            DeviceChoice::Auto => {}
            DeviceChoice::Cuda(None) => {
                let first = first_gpu(index, self.config.run.devices_per_worker, visible_gpus());
                command.arg("--device").arg(DeviceChoice::Cuda(Some(first)).to_string());
            }
            device => {
                command.arg("--device").arg(device.to_string());
            }
        }
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            // Workers on one machine share its cores.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", (cores / self.config.run.workers).max(1).to_string());
        }
        spawn(command, |command| give_token(command, self.token.as_ref()))
    }
}

/// The first GPU of the worker with this number, in turn; more workers than GPUs share them. Where there is none, worker and
/// driver say so.
fn first_gpu(index: usize, devices_per_worker: usize, gpus: usize) -> usize {
    let places = gpus / devices_per_worker.max(1);
    (index % places.max(1)) * devices_per_worker
}

/// Starts a coordinator on `listener`, which stays open here; `adjust` has the last word on the command.
pub fn spawn_coordinator(
    config: &Config,
    listener: &TcpListener,
    adjust: impl FnOnce(&mut Command),
) -> Result<Child, CliError> {
    let text = serde_json::to_string(config).map_err(|error| CliError::new(error.to_string()))?;
    let mut command = Command::new(executable()?);
    command.arg("coordinator").arg("--listen").arg(format!("fd:{}", listener.as_raw_fd())).env(CONFIG_VARIABLE, text);
    // The coordinator inherits the socket; workers do not.
    rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty()).map_err(std::io::Error::from)?;
    let child = spawn(command, adjust);
    rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    child
}

/// The environment is where other users cannot read it.
fn give_token(command: &mut Command, token: Option<&Token>) {
    match token {
        Some(token) => command.env(TOKEN_VARIABLE, token.reveal()),
        None => command.env_remove(TOKEN_VARIABLE),
    };
}

fn spawn(mut command: Command, adjust: impl FnOnce(&mut Command)) -> Result<Child, CliError> {
    use std::io::IsTerminal;
    command.env(PARENT_VARIABLE, std::process::id().to_string()).stdin(Stdio::null());
    if std::env::var_os("NUMALIGN_LOG").is_none() {
        // Log lines would tear a progress bar.
        command.env("NUMALIGN_LOG", if std::io::stderr().is_terminal() { "warn" } else { "info" });
    }
    // Standard output is for results alone.
    command.stdout(std::io::stderr());
    adjust(&mut command);
    command.spawn().map_err(|error| CliError::new(format!("cannot start a process: {error}")))
}

/// The path of this program.
pub fn executable() -> Result<std::path::PathBuf, CliError> {
    std::env::current_exe().map_err(|error| CliError::new(format!("this program's own path is not known: {error}")))
}

/// Sends a signal to a child.
pub fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        // It may have ended already.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_get_gpus_in_turn() {
        let firsts = |per_worker, gpus| (0..5).map(|index| first_gpu(index, per_worker, gpus)).collect::<Vec<_>>();
        assert_eq!(firsts(1, 3), [0, 1, 2, 0, 1]);
        assert_eq!(firsts(2, 5), [0, 2, 0, 2, 0]);
        assert_eq!(firsts(1, 1), [0; 5]);
        assert_eq!(firsts(1, 0), [0; 5], "the driver says that there is none");
    }
}
