//! `numalign bench coordinator`: a real coordinator process with simulated workers, on loopback. Every message is real;
//! only the rows are made up. A step's time is therefore the overhead that the coordinator adds to a training step.

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ArgMatches;
use numalign_access::ClientAccess;
use numalign_config::Config;
use numalign_coordinator::OpenedFiles;
use numalign_engine::memory::status_kib;
use numalign_worker::Options;
use numalign_worker::simulated::Simulated;

use crate::credentials::TOKEN_VARIABLE;
use crate::error::CliError;
use crate::launcher::spawn::{Inherited, spawn_coordinator};
use crate::limits;
use crate::output::outln;
use crate::process::{ChildGuard, last_lines};

/// Steps before the measured ones.
const WARM_UP: u64 = 10;
const MIB: f64 = 1024.0;

/// What was measured.
struct Figures {
    workers: u64,
    steps: u64,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Resident memory of the coordinator, in KiB: before the first worker came, and at most.
    idle_kib: u64,
    peak_kib: u64,
    /// Processor time that the coordinator took, in all its threads, for a step.
    cpu_ms_per_step: f64,
}

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let count = |name: &str| *matches.get_one::<u64>(name).unwrap_or(&1);
    let (workers, steps, hidden) = (count("workers"), count("steps"), count("hidden"));
    limits::open_files(workers)?;
    let config = configuration(workers, steps + WARM_UP)?;
    let folder = tempfile::tempdir()?;
    let listener = TcpListener::bind("127.0.0.1:0")
        .map_err(|error| CliError::new(format!("cannot listen on loopback: {error}")))?;
    let address = listener.local_addr()?;
    let inherited = Inherited::new(listener, &OpenedFiles::default())?;
    let log = folder.path().join("coordinator.log");
    let stderr = std::fs::File::create(&log)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let context = runtime.enter();
    let mut coordinator = spawn_coordinator(&config, &inherited, |command| {
        command.current_dir(folder.path()).stderr(stderr).env("NUMALIGN_LOG", "warn").env_remove(TOKEN_VARIABLE);
    })?;
    drop(context);
    let url = format!("http://{address}");
    let figures = runtime
        .block_on(measure(&mut coordinator, &url, workers, steps, hidden as usize))
        .map_err(|failure| with_log(failure, &log))?;
    print(&figures, matches.get_flag("json"))
}

/// One micro-batch of one sample for each worker. Workers that wait for a core are not dead: the time limits are wide.
fn configuration(workers: u64, steps: u64) -> Result<Config, CliError> {
    let workers = workers.to_string();
    Config::with(&[
        ("model_name", "simulated"),
        ("run_id", "bench"),
        ("num_epochs", "1"),
        ("num_batches", &steps.to_string()),
        ("batch_size", &workers),
        ("micro_batch_size", "1"),
        ("workers", &workers),
        ("max_workers", &workers),
        ("checkpoint_every", &(steps + 1).to_string()),
        ("dead_after", "120s"),
        ("coordinator_wait", "120s"),
    ])
    .map_err(CliError::usage)
}

async fn measure(
    coordinator: &mut ChildGuard,
    url: &str,
    workers: u64,
    steps: u64,
    hidden: usize,
) -> Result<Figures, CliError> {
    let pid = coordinator.id();
    let moments: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = moments.clone();
    let watched = Simulated { hidden, observer: Arc::new(move |_| lock(&seen).push(Instant::now())) };
    // It answers once it is up.
    let started = Instant::now();
    while let Err(failure) = crate::connect::status(&ClientAccess::default(), url, Duration::from_secs(5)).await {
        if started.elapsed() > Duration::from_secs(30) {
            return Err(failure);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let idle_kib = resident_kib(pid, "VmRSS")?;
    let (peak_kib, cpu_seconds) = async {
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..workers {
            let simulated = if worker == 0 { watched.clone() } else { Simulated::new(hidden) };
            let options = Options {
                coordinator: url.to_owned(),
                access: ClientAccess::default(),
                device: None,
                local_rank: None,
                first_contact: Duration::from_secs(120),
                restarts: 0,
                simulated: Some(simulated),
            };
            tasks.spawn(numalign_worker::run(options, std::future::pending()));
        }
        let (mut peak, mut cpu) = (idle_kib, 0.0);
        let mut look = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    None => return Ok::<(u64, f64), CliError>((peak, cpu)),
                    Some(Ok(result)) => result?,
                    Some(Err(error)) => return Err(CliError::new(format!("a simulated worker panicked: {error}"))),
                },
                // Its process may have ended a moment before its workers.
                _ = look.tick() => {
                    peak = peak.max(resident_kib(pid, "VmHWM").unwrap_or(peak));
                    cpu = cpu_seconds_of(pid).unwrap_or(cpu);
                }
            }
        }
    }
    .await?;
    let status = coordinator.wait().await?;
    if !status.success() {
        return Err(CliError::new(format!("the coordinator ended with {status}")));
    }
    let mut milliseconds = Vec::new();
    let moments = lock(&moments);
    let measured = &moments[moments.len().saturating_sub(steps as usize + 1)..];
    for pair in measured.windows(2) {
        milliseconds.push((pair[1] - pair[0]).as_secs_f64() * 1e3);
    }
    let seconds = milliseconds.iter().sum::<f64>() / 1e3;
    milliseconds.sort_by(f64::total_cmp);
    let (p50_ms, p99_ms) = (quantile(&milliseconds, 0.5), quantile(&milliseconds, 0.99));
    let steps = milliseconds.len() as u64;
    let cpu_ms_per_step = 1e3 * cpu_seconds / (steps + WARM_UP) as f64;
    Ok(Figures { workers, steps, seconds, p50_ms, p99_ms, idle_kib, peak_kib, cpu_ms_per_step })
}

fn lock(moments: &Mutex<Vec<Instant>>) -> std::sync::MutexGuard<'_, Vec<Instant>> {
    moments.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The value below which the share `q` of a sorted list lies; zero for an empty one.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = (q * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

/// A line of `/proc/<pid>/status`, in KiB.
fn resident_kib(pid: u32, name: &str) -> Result<u64, CliError> {
    status_kib(&pid.to_string(), name).ok_or_else(|| CliError::new(format!("/proc/{pid}/status has no {name}")))
}

/// Processor time of a process so far, from `/proc/<pid>/stat`.
fn cpu_seconds_of(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold blanks; user and system time are the 14th and 15th field.
    let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The coordinator's log says more than the workers' errors.
fn with_log(error: CliError, log: &Path) -> CliError {
    match last_lines(log, 5) {
        lines if lines.is_empty() => error,
        lines => error.with_hint(format!("the coordinator's log ends with: {lines}")),
    }
}

fn print(figures: &Figures, json: bool) -> Result<(), CliError> {
    let steps_per_s = figures.steps as f64 / figures.seconds.max(1e-9);
    let per_worker_kib = figures.peak_kib.saturating_sub(figures.idle_kib) as f64 / figures.workers as f64;
    if json {
        return outln!(
            "{}",
            serde_json::json!({
                "workers": figures.workers, "steps": figures.steps, "steps_per_s": steps_per_s,
                "p50_ms": figures.p50_ms, "p99_ms": figures.p99_ms, "idle_rss_mib": figures.idle_kib as f64 / MIB,
                "coordinator_cpu_ms_per_step": figures.cpu_ms_per_step, "peak_rss_mib": figures.peak_kib as f64 / MIB, "rss_per_worker_kib": per_worker_kib,
            })
        );
    }
    outln!(
        "{} simulated workers: {steps_per_s:.1} steps/s; a step takes {:.2} ms (median), {:.2} ms (99th percentile of {})",
        figures.workers,
        figures.p50_ms,
        figures.p99_ms,
        figures.steps
    )?;
    outln!(
        "  coordinator: {:.2} ms of processor time a step; {:.1} MiB before the first worker, {:.1} MiB at most, \
         {per_worker_kib:.0} KiB per worker",
        figures.cpu_ms_per_step,
        figures.idle_kib as f64 / MIB,
        figures.peak_kib as f64 / MIB
    )
}
