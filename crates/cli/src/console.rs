//! How much this program says, and its lines on stderr; the processes of a run share stderr, so a line is one write.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicI8, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use numalign_coordinator::stderr;

static VERBOSITY: AtomicI8 = AtomicI8::new(0);

/// A line about the course of things: nothing with `--quiet`.
macro_rules! note {
    ($($text:tt)*) => { ::numalign_coordinator::stderr::note(&format!($($text)*)) };
}
pub(crate) use note;

/// -1 says errors and results only, 1 and more add to the log.
pub fn set_verbosity(verbosity: i8) {
    VERBOSITY.store(verbosity, Ordering::Relaxed);
    stderr::set_quiet(verbosity < 0);
}

/// Whether errors and results are all that is wanted.
pub fn is_quiet() -> bool {
    stderr::is_quiet()
}

/// The log's filter by `-v` and `-q`; `default` is the level without either.
pub fn log_filter(default: &str) -> &str {
    filter_of(VERBOSITY.load(Ordering::Relaxed), default)
}

fn filter_of(verbosity: i8, default: &str) -> &str {
    match verbosity {
        i8::MIN..=-1 => "error",
        0 => default,
        1 => "info,numalign=debug",
        2.. => "debug,numalign=trace",
    }
}

/// Time between two lines of a [`Progress`] that is not on a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How far a long computation is: a bar on a terminal, elsewhere a line now and then, nothing with `--quiet`.
pub struct Progress {
    what: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    /// Of `total` samples; `what` such as `evaluating`.
    pub fn start(what: &'static str, total: u64) -> Self {
        let bar = (!is_quiet() && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg} {pos}/{len}  {elapsed}  ETA {eta}") {
                bar.set_style(style);
            }
            bar.set_message(what);
            bar
        });
        Self { what, total, bar, said: Instant::now() }
    }

    /// `done` samples are done.
    pub fn set(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if done < self.total && self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            note!("{} {done}/{}", self.what, self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_choose_the_filter() {
        assert_eq!(
            [-1, 0, 1, 2, 9].map(|verbosity| filter_of(verbosity, "warn")),
            ["error", "warn", "info,numalign=debug", "debug,numalign=trace", "debug,numalign=trace"]
        );
    }
}
