//! Child processes of this program: one guard that ends them with their owner, and their logs.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;

use crate::error::CliError;

/// Where a child finds its parent's process id; see [`crate::launcher::child::die_with_parent`].
pub const PARENT_VARIABLE: &str = "NUMALIGN_INTERNAL_PARENT";

/// As much as the main thread usually has.
const STACK_BYTES: usize = 8 << 20;

/// A runtime on the calling thread alone: a child's parent-death signal follows the thread that started the child.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().thread_stack_size(STACK_BYTES).build()
}

/// A command that runs this program.
pub fn this_program() -> Result<Command, CliError> {
    let path = std::env::current_exe()
        .map_err(|error| CliError::new(format!("this program's own path is not known: {error}")))?;
    Ok(Command::new(path))
}

/// A child process that is killed and reaped when it is dropped.
pub struct ChildGuard {
    child: Child,
    pid: u32,
}

impl ChildGuard {
    /// Starts `command` without standard input. Needs the context of a runtime, on a thread that lives as long as the child.
    pub fn spawn(mut command: Command) -> Result<Self, CliError> {
        command.env(PARENT_VARIABLE, std::process::id().to_string()).stdin(Stdio::null());
        let started = command.spawn();
        let child = started.map_err(|error| CliError::new(format!("cannot start a process: {error}")))?;
        // Only a child that was waited for has no process id.
        let pid = child.id().unwrap_or_default();
        Ok(Self { child, pid })
    }

    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Waits for the end; cancelling is safe.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Waits for the end, for so long at most; none when it still runs.
    pub async fn wait_at_most(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        match tokio::time::timeout(timeout, self.child.wait()).await {
            Ok(status) => status.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Sends a signal, unless the child was waited for.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.running() {
            // It may have ended already.
            let _ = kill_process(pid, signal);
        }
    }

    /// The process id while nobody has waited for the end: until then the kernel does not use it again.
    fn running(&self) -> Option<Pid> {
        self.child.id().and_then(|pid| Pid::from_raw(pid as i32))
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if let Some(pid) = self.running() {
            let _ = kill_process(pid, Signal::KILL);
            // It is gone when the owner is; the runtime would reap it at some later time only.
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// The last lines of a log, on one line.
pub fn last_lines(log: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

/// The last error that a log of this program holds, without the prefix.
pub fn last_error(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("error: "))?;
    Some(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let runtime = runtime().expect("a runtime");
        let pid = runtime.block_on(async {
            let mut child = ChildGuard::spawn(sleeper()).unwrap_or_else(|error| panic!("{error}"));
            let waited = child.wait_at_most(Duration::from_millis(10)).await.expect("it can be waited for");
            assert!(waited.is_none(), "it still runs");
            child.id()
        });
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_signal_ends_a_child() {
        use std::os::unix::process::ExitStatusExt;
        let status = runtime().expect("a runtime").block_on(async {
            let mut child = ChildGuard::spawn(sleeper()).unwrap_or_else(|error| panic!("{error}"));
            child.signal(Signal::TERM);
            child.wait().await.expect("it can be waited for")
        });
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
    }

    #[test]
    fn a_log_tells_its_last_lines_and_its_last_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        std::fs::write(&log, "one\nerror: first\nerror: second\nhint: none\n").expect("it can be written");
        assert_eq!(last_lines(&log, 2), "error: second | hint: none");
        assert_eq!(last_error(&log).as_deref(), Some("second"));
        assert_eq!(last_lines(&folder.path().join("absent"), 2), "");
    }
}
