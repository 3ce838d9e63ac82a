//! Logs on stderr, filtered by `NUMALIGN_LOG` (such as `info` or `numalign_worker=debug`). Workers' lines carry their rank.

use std::io::Write;
use std::sync::atomic::Ordering;

use numalign_coordinator::stderr::{write_bytes, write_line};
use numalign_worker::session::RANK;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging; `default` is the level where neither `NUMALIGN_LOG` nor `-v` or `-q` says more.
pub fn start(default: &str, worker: bool) {
    let default = crate::console::log_filter(default);
    let filter = match std::env::var("NUMALIGN_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).unwrap_or_else(|error| {
            write_line(&format!("NUMALIGN_LOG={text} is not understood ({error}); using {default}"));
            EnvFilter::new(default)
        }),
        _ => EnvFilter::new(default),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false).without_time();
    // It would tell of its own errors with a macro that panics where stderr is broken. A second start (in tests) changes
    // nothing.
    let _ = builder.log_internal_errors(false).with_writer(Lines { ranked: worker }).try_init();
}

/// Writes each line at once, and never fails. A worker's begin with `[rank 3]`, or `[worker 4711]` before it has a rank.
#[derive(Clone, Copy)]
struct Lines {
    ranked: bool,
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let mut text = match RANK.load(Ordering::Relaxed) {
            _ if !self.ranked => Vec::new(),
            rank if rank >= 0 => format!("[rank {rank}] ").into_bytes(),
            _ => format!("[worker {}] ", std::process::id()).into_bytes(),
        };
        text.extend_from_slice(line);
        write_bytes(&text);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
