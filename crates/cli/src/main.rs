//! `numalign`: one binary for every role. Parses, dispatches, and turns errors into a chain, a hint and an exit code.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

use std::io::Write;
use std::process::ExitCode;

use error::CliError;
use numalign_coordinator::stderr::write_line;

mod args;
mod checkpointed;
mod clock;
mod commands;
mod connect;
mod console;
mod credentials;
mod dataset_settings;
mod error;
mod evaluation;
mod launcher;
mod limits;
mod logging;
mod output;
mod plot;
mod prediction;
mod process;
mod settings;
mod table;
mod watching;

fn main() -> ExitCode {
    report_panics();
    launcher::signals::ignore_file_size_signal();
    #[cfg(feature = "cuda")]
    point_at_cuda_headers();
    let matches = match args::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are no errors; both go where clap sends them.
            let printed = error.print();
            if error.use_stderr() {
                return ExitCode::from(2);
            }
            return exit_code(output::checked(printed.and_then(|()| std::io::stdout().flush())));
        }
    };
    console::set_verbosity(args::verbosity(&matches));
    exit_code(commands::run(&matches))
}

/// Tells the error, and what this process exits with.
fn exit_code(result: Result<(), CliError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                write_line(&text);
            }
            ExitCode::from(error.code)
        }
    }
}

/// Tells cubecl where CUDA's headers are, where it would not find them by itself: Python's packages have them too.
/// Children inherit it.
#[cfg(feature = "cuda")]
fn point_at_cuda_headers() {
    let paths = numalign_gpu::search::SearchPaths::from_env();
    if let Some(folder) = numalign_gpu::toolkit::needed_cuda_path(&paths) {
        // SAFETY: this process has no other thread yet.
        unsafe { std::env::set_var("CUDA_PATH", folder) };
    }
}

/// A panic is told like any other error: in one write, which cannot panic itself. A thread that the system refuses and a
/// clock before 1970, which libraries answer with a panic, end the process in plain words.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let said = payload.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        if let Some(why) = limits::refused_thread(said) {
            let error =
                CliError::new(format!("the system refuses another thread: {why}")).with_hint(limits::THREADS_HINT);
            write_line(&error.to_string());
            std::process::exit(1);
        }
        if clock::is_to_blame(said) {
            write_line(&clock::before_1970().to_string());
            std::process::exit(1);
        }
        // Once something failed on a GPU, the backend's calls may panic: the failure is what there is to tell.
        if let Err(failure) = numalign_model::ops::device_failure::check() {
            write_line(&CliError::from(failure).to_string());
            std::process::exit(1);
        }
        let thread = std::thread::current();
        let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
        let mut text = format!("thread '{}' panicked{place}:\n{said}", thread.name().unwrap_or("<unnamed>"));
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            text.push_str(&format!("\n{backtrace}"));
        }
        write_line(&text);
    }));
}
