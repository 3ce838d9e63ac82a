//! The commands of a run's processes: arguments, environment, the inherited socket.

use std::fs::File;
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use numalign_access::Token;
use numalign_config::{Config, DeviceChoice};
use numalign_coordinator::OpenedFiles;
use numalign_data::{DataError, Dataset};
use numalign_gpu::assignment::{Sharing, first_gpu};
use numalign_gpu::driver::visible_gpus;
use rustix::io::FdFlags;
use tokio::process::Command;

use crate::console;
use crate::credentials::TOKEN_VARIABLE;
use crate::error::CliError;
use crate::process::{ChildGuard, this_program};

/// Where a launched coordinator finds its configuration, as JSON.
pub const CONFIG_VARIABLE: &str = "NUMALIGN_INTERNAL_CONFIG";
/// Where a launched worker finds how often it was started before.
pub const RESTARTS_VARIABLE: &str = "NUMALIGN_INTERNAL_RESTARTS";
/// Where a worker finds its number among those of its machine; torchrun sets it too.
pub const LOCAL_RANK_VARIABLE: &str = "LOCAL_RANK";

/// Set where the coordinator keeps its token in the run's folder: nobody gave it by hand.
pub const PUBLISH_TOKEN_VARIABLE: &str = "NUMALIGN_INTERNAL_PUBLISH_TOKEN";

/// Where a launched coordinator finds the descriptors of the data files that were read already.
pub const ROWS_VARIABLE: &str = "NUMALIGN_INTERNAL_ROWS";
pub const HELD_OUT_ROWS_VARIABLE: &str = "NUMALIGN_INTERNAL_HELD_OUT_ROWS";

/// What a coordinator inherits as open descriptors.
pub struct Inherited {
    /// Stays open here, so that it outlives a coordinator.
    pub listener: TcpListener,
    /// `dataset.file` and `dataset.eval_file` as they were read, so that a coordinator does not read them again.
    rows: Option<File>,
    held_out: Option<File>,
}

impl Inherited {
    /// A listening socket and the files of a run that were read already.
    pub fn new(listener: TcpListener, files: &OpenedFiles) -> Result<Self, CliError> {
        let written = |rows: &Option<Arc<Dataset>>| {
            let written = rows.as_ref().map(|rows| rows.to_file()).transpose();
            written.map_err(|source| CliError::from(DataError::RowFile { source }))
        };
        Ok(Self { listener, rows: written(&files.rows)?, held_out: written(&files.held_out)? })
    }

    fn set_flags(&self, flags: FdFlags) -> std::io::Result<()> {
        let files = [&self.rows, &self.held_out].into_iter().flatten().map(File::as_fd);
        let mut all = files.chain([self.listener.as_fd()]);
        Ok(all.try_for_each(|descriptor: BorrowedFd<'_>| rustix::io::fcntl_setfd(descriptor, flags))?)
    }
}

/// Starts a coordinator; `adjust` is applied to the command last.
pub fn spawn_coordinator(
    config: &Config,
    inherited: &Inherited,
    adjust: impl FnOnce(&mut Command),
) -> Result<ChildGuard, CliError> {
    let text = serde_json::to_string(config).map_err(|error| CliError::new(error.to_string()))?;
    let mut command = this_program()?;
    let listen = format!("fd:{}", inherited.listener.as_raw_fd());
    command.arg("coordinator").arg("--listen").arg(listen).env(CONFIG_VARIABLE, text);
    for (variable, file) in [(ROWS_VARIABLE, &inherited.rows), (HELD_OUT_ROWS_VARIABLE, &inherited.held_out)] {
        match file {
            Some(file) => command.env(variable, file.as_raw_fd().to_string()),
            None => command.env_remove(variable),
        };
    }
    // The coordinator inherits them; workers do not.
    inherited.set_flags(FdFlags::empty())?;
    let child = spawn(command, adjust);
    inherited.set_flags(FdFlags::CLOEXEC)?;
    child
}

/// What distinguishes a worker from the others of its run.
pub struct WorkerPlace {
    /// Its number among the workers of this machine.
    pub index: usize,
    /// How often it was started before.
    pub restarts: u32,
    /// Faults on purpose, as [`numalign_worker::fault::VARIABLE`] has them.
    pub faults: Option<String>,
}

/// Starts a worker of the coordinator at `address`.
pub fn spawn_worker(
    config: &Config,
    address: SocketAddr,
    token: &Token,
    place: WorkerPlace,
) -> Result<ChildGuard, CliError> {
    let mut command = this_program()?;
    command.env(RESTARTS_VARIABLE, place.restarts.to_string());
    if let Some(faults) = place.faults {
        command.env(numalign_worker::fault::VARIABLE, faults);
    }
    command.arg("worker").arg("--coordinator").arg(format!("http://{address}"));
    command.env(LOCAL_RANK_VARIABLE, place.index.to_string());
    match config.run.device {
        DeviceChoice::Auto => {}
        DeviceChoice::Cuda(None) => {
            let first = first_gpu(place.index, config.run.devices_per_worker, visible_gpus(), Sharing::Shared);
            command.arg("--device").arg(DeviceChoice::Cuda(Some(first)).to_string());
        }
        device => {
            command.arg("--device").arg(device.to_string());
        }
    }
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Workers on one machine share its cores.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("RAYON_NUM_THREADS", (cores / config.run.workers).max(1).to_string());
    }
    spawn(command, |command| give_token(command, token))
}

/// What every process of a run has to present.
pub struct JoinToken {
    /// The token.
    pub token: Token,
    /// Nobody gave it by hand.
    is_random: bool,
}

impl JoinToken {
    /// The token that the user gave, or a random one: other users of this machine can reach the coordinator's port too.
    pub fn or_random(given: Option<Token>) -> Result<Self, CliError> {
        Ok(match given {
            Some(token) => Self { token, is_random: false },
            None => Self { token: Token::random()?, is_random: true },
        })
    }

    /// `numalign status` has to find a token that nobody knows.
    pub fn give_to_coordinator(&self, command: &mut Command) {
        give_token(command, &self.token);
        match self.is_random {
            true => command.env(PUBLISH_TOKEN_VARIABLE, "1"),
            false => command.env_remove(PUBLISH_TOKEN_VARIABLE),
        };
    }
}

/// The environment is where other users cannot read it.
fn give_token(command: &mut Command, token: &Token) {
    command.env(TOKEN_VARIABLE, token.reveal());
}

fn spawn(mut command: Command, adjust: impl FnOnce(&mut Command)) -> Result<ChildGuard, CliError> {
    if std::env::var_os("NUMALIGN_LOG").is_none() {
        // Log lines would tear a progress bar.
        let usual = if std::io::stderr().is_terminal() { "warn" } else { "info" };
        command.env("NUMALIGN_LOG", console::log_filter(usual));
    }
    if console::is_quiet() {
        command.arg("--quiet");
    }
    // Standard output is for results alone.
    command.stdout(std::io::stderr());
    adjust(&mut command);
    ChildGuard::spawn(command)
}
