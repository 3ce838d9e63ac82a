//! `launch`'s hands: starts the coordinator and the workers as direct children, replaces those that die, and
//! leaves none behind. Everything runs on the main thread, since a parent-death signal follows the thread that spawned.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use numalign_access::{ClientAccess, Token};
use numalign_config::{Config, DeviceChoice, Resume};
use numalign_wire::StatusRequest;
use rustix::process::{Pid, Signal, kill_process};

use crate::access::TOKEN_VARIABLE;
use crate::failure::Failure;

pub mod child;

/// Where a launched process finds its parent's id.
pub const PARENT_VARIABLE: &str = "NUMALIGN_INTERNAL_PARENT";
/// Where a launched coordinator finds its configuration, as JSON.
pub const CONFIG_VARIABLE: &str = "NUMALIGN_INTERNAL_CONFIG";

/// How often children are looked at.
const POLL: Duration = Duration::from_millis(20);
/// Time that children get to end by themselves.
const GRACE: Duration = Duration::from_secs(4);
/// Longest pause before a worker is started again.
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// Counts SIGINT and SIGTERM; made once per process.
pub fn count_signals() -> Result<Arc<AtomicUsize>, Failure> {
    let count = Arc::new(AtomicUsize::new(0));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let count = count.clone();
        let action = move || {
            // The second signal ends everything at once; children follow their parent.
            if count.fetch_add(1, Ordering::SeqCst) >= 1 {
                signal_hook::low_level::exit(1);
            }
        };
        // SAFETY: the action only touches an atomic and `_exit`, both allowed in a signal handler.
        unsafe { signal_hook::low_level::register(signal, action) }?;
    }
    Ok(count)
}

struct Worker {
    child: Option<Child>,
    /// Restarts since the last progress.
    restarts: u32,
    /// Committed step at the last restart.
    step_then: u64,
    start_at: Option<Instant>,
}

/// One run's processes.
pub struct Supervisor {
    config: Config,
    /// Every process of the run has it; none on its command line.
    token: Option<Token>,
    listener: TcpListener,
    address: SocketAddr,
    coordinator: Child,
    coordinator_restarts: u32,
    workers: Vec<Worker>,
    signals: Arc<AtomicUsize>,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_all();
    }
}

impl Supervisor {
    /// Starts the coordinator and `config.run.workers` workers.
    pub fn start(config: Config, token: Option<Token>, signals: Arc<AtomicUsize>) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .map_err(|error| Failure::new(format!("cannot listen on loopback: {error}")))?;
        let address = listener.local_addr()?;
        let coordinator = spawn_coordinator(&config, token.as_ref(), &listener)?;
        let count = config.run.workers;
        let mut supervisor = Self {
            config,
            token,
            listener,
            address,
            coordinator,
            coordinator_restarts: 0,
            workers: Vec::new(),
            signals,
        };
        for _ in 0..count {
            let child = supervisor.spawn_worker()?;
            supervisor.workers.push(Worker { child: Some(child), restarts: 0, step_then: 0, start_at: None });
        }
        Ok(supervisor)
    }

    /// Waits for the run's end; every child has ended when it answers.
    pub fn wait(mut self) -> Result<(), Failure> {
        loop {
            if self.signals.load(Ordering::SeqCst) > 0 {
                return self.stop();
            }
            if let Some(status) = self.coordinator.try_wait()?
                && let Some(end) = self.coordinator_ended(status)?
            {
                return end;
            }
            self.look_after_workers()?;
            if self.workers.iter().all(|worker| worker.child.is_none() && worker.start_at.is_none()) {
                return self.nobody_left();
            }
            std::thread::sleep(POLL);
        }
    }

    fn coordinator_ended(&mut self, status: ExitStatus) -> Result<Option<Result<(), Failure>>, Failure> {
        match status.code() {
            Some(0) => {
                self.wait_for_workers();
                Ok(Some(Ok(())))
            }
            // It printed why.
            Some(code) => Ok(Some(Err(Failure::silent(code.clamp(1, 255) as u8)))),
            None => {
                self.coordinator_restarts += 1;
                if self.coordinator_restarts > self.config.run.max_restarts {
                    return Ok(Some(Err(Failure::new(format!("the coordinator was killed again ({status})"))
                        .with_hint("see the log above; continue with --resume auto"))));
                }
                eprintln!("the coordinator was killed ({status}); starting it again");
                self.config.run.resume = Some(Resume::Auto);
                self.coordinator = spawn_coordinator(&self.config, self.token.as_ref(), &self.listener)?;
                Ok(None)
            }
        }
    }

    fn look_after_workers(&mut self) -> Result<(), Failure> {
        for index in 0..self.workers.len() {
            let now = Instant::now();
            if self.workers[index].start_at.is_some_and(|at| now >= at) {
                let child = self.spawn_worker()?;
                let worker = &mut self.workers[index];
                (worker.child, worker.start_at) = (Some(child), None);
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
            let step = committed_step(self.address, self.token.clone());
            let worker = &mut self.workers[index];
            if step.is_some_and(|step| step > worker.step_then) {
                worker.restarts = 0;
            }
            if worker.restarts >= self.config.run.max_restarts {
                eprintln!(
                    "worker {} (pid {pid}) ended ({status}) and is not started again: {} restarts brought no progress",
                    index + 1,
                    worker.restarts
                );
                continue;
            }
            worker.restarts += 1;
            worker.step_then = step.unwrap_or(worker.step_then);
            let pause = (Duration::from_millis(100) * 2u32.saturating_pow(worker.restarts - 1)).min(MOST_PAUSE);
            worker.start_at = Some(now + pause);
            tracing::info!("worker {} (pid {pid}) ended ({status}); a new one starts in {pause:?}", index + 1);
        }
        Ok(())
    }

    /// The last worker is gone for good: the coordinator may know why, in better words.
    fn nobody_left(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if let Some(status) = self.coordinator.try_wait()? {
                return match status.code() {
                    Some(0) => Ok(()),
                    code => Err(Failure::silent(code.unwrap_or(1).clamp(1, 255) as u8)),
                };
            }
            std::thread::sleep(POLL);
        }
        terminate(&self.coordinator);
        self.wait_for(Instant::now() + GRACE);
        Err(Failure::new("no worker is left").with_hint("the workers' messages are above; continue with --resume auto"))
    }

    fn stop(&mut self) -> Result<(), Failure> {
        terminate(&self.coordinator);
        self.wait_for(Instant::now() + GRACE);
        match self.coordinator.try_wait()? {
            Some(status) if status.code() == Some(0) => Ok(()),
            Some(_) => Err(Failure::silent(1)),
            None => Err(Failure::new("the coordinator did not end in time and was killed")
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

    fn spawn_worker(&self) -> Result<Child, Failure> {
        let mut command = Command::new(executable()?);
        command.arg("worker").arg("--coordinator").arg(format!("http://{}", self.address));
        match self.config.run.device {
            DeviceChoice::Auto => {}
            device => {
                command.arg("--device").arg(device.to_string());
            }
        }
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            // Workers on one machine share its cores.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", (cores / self.config.run.workers).max(1).to_string());
        }
        spawn(command, self.token.as_ref())
    }
}

fn spawn_coordinator(config: &Config, token: Option<&Token>, listener: &TcpListener) -> Result<Child, Failure> {
    let text = serde_json::to_string(config).map_err(|error| Failure::new(error.to_string()))?;
    let mut command = Command::new(executable()?);
    command.arg("coordinator").arg("--listen").arg(format!("fd:{}", listener.as_raw_fd())).env(CONFIG_VARIABLE, text);
    // The coordinator inherits the socket; workers do not.
    rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty()).map_err(std::io::Error::from)?;
    let child = spawn(command, token);
    rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    child
}

fn spawn(mut command: Command, token: Option<&Token>) -> Result<Child, Failure> {
    use std::io::IsTerminal;
    if let Some(token) = token {
        command.env(TOKEN_VARIABLE, token.reveal());
    }
    command.env(PARENT_VARIABLE, std::process::id().to_string()).stdin(Stdio::null());
    if std::env::var_os("NUMALIGN_LOG").is_none() {
        // Log lines would tear a progress bar.
        command.env("NUMALIGN_LOG", if std::io::stderr().is_terminal() { "warn" } else { "info" });
    }
    // Standard output is for results alone.
    command.stdout(std::io::stderr());
    command.spawn().map_err(|error| Failure::new(format!("cannot start a process: {error}")))
}

fn executable() -> Result<std::path::PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::new(format!("this program's own path is not known: {error}")))
}

fn terminate(child: &Child) {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        // It may have ended already.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// The run's committed step, asked of the coordinator; none when it does not answer within a second.
fn committed_step(address: SocketAddr, token: Option<Token>) -> Option<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let ask = async {
        let access = ClientAccess { token, tls: None };
        let endpoint = access.endpoint(&format!("http://{address}")).ok()?;
        let mut client = access.connect(&endpoint).await.ok()?;
        Some(client.status(StatusRequest {}).await.ok()?.into_inner().step)
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), ask).await.ok()? })
}
