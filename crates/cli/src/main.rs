//! `numalign`: one binary for every role. Parses, dispatches, and turns errors into a chain, a hint and an exit code.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

use std::process::ExitCode;

mod access;
mod args;
mod commands;
mod connect;
mod failure;
mod limits;
mod logging;
mod settings;
mod supervisor;

fn main() -> ExitCode {
    let matches = match args::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are no errors; both go where clap sends them.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match commands::run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                eprintln!("{text}");
            }
            ExitCode::from(failure.code)
        }
    }
}
