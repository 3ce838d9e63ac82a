//! `numalign completions`: shell completion and man pages, from the command line's own description.

use std::path::Path;

use clap::{ArgMatches, Command};
use clap_complete::Shell;

use crate::args;
use crate::error::CliError;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let kind = args::text(matches, "shell").unwrap_or_default();
    let out = args::text(matches, "out").map(Path::new);
    let mut command = args::command();
    let shell: Shell = match (kind, out) {
        ("man", None) => return print(&man_page(command)?),
        ("man", Some(folder)) => {
            make(folder)?;
            return clap_mangen::generate_to(command, folder).map_err(|error| cannot_write(folder, &error));
        }
        (shell, _) => shell.parse().map_err(CliError::usage)?,
    };
    match out {
        Some(folder) => {
            make(folder)?;
            let written = clap_complete::generate_to(shell, &mut command, "numalign", folder);
            written.map(|_| ()).map_err(|error| cannot_write(folder, &error))
        }
        None => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "numalign", &mut script);
            print(&script)
        }
    }
}

fn man_page(command: Command) -> Result<Vec<u8>, CliError> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

fn make(folder: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))
}

fn cannot_write(folder: &Path, error: &std::io::Error) -> CliError {
    CliError::new(format!("cannot write to {}: {error}", folder.display()))
        .with_hint("check the folder and its permissions")
}

fn print(text: &[u8]) -> Result<(), CliError> {
    crate::output::write(text)
}
