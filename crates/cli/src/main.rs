//! `numalign`: one binary for every role. Parses, dispatches, and turns errors into a chain, a hint and an exit code.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

use std::process::ExitCode;

mod args;
mod commands;
mod connect;
mod console;
mod credentials;
mod error;
mod evaluation;
mod launcher;
mod limits;
mod logging;
mod plot;
mod process;
mod settings;
mod table;

fn main() -> ExitCode {
    exit_quietly_on_broken_pipe();
    #[cfg(feature = "cuda")]
    point_at_cuda_headers();
    let matches = match args::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are no errors; both go where clap sends them.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    console::set_verbosity(args::verbosity(&matches));
    match commands::run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                numalign_coordinator::stderr::write_line(&text);
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

/// A reader that has seen enough, such as `head`, ends this process without a word: `println!` panics on a closed pipe.
/// The signal itself stays ignored, since sockets raise it too.
fn exit_quietly_on_broken_pipe() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if said.starts_with("failed printing to stdout") && said.contains("Broken pipe") {
            std::process::exit(1);
        }
        usual(panic);
    }));
}
