//! `numalign config check|show|schema`: validates a file, with environment and flags on top, and shows the result; or
//! prints the JSON Schema by which editors complete and check such files.

use clap::ArgMatches;

use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::output::{self, outln};
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let (name, matches) = matches.subcommand().ok_or_else(|| CliError::usage("check, show or schema?"))?;
    if name == "schema" {
        outln!("{:#}", numalign_config::schema())?;
        return Ok(());
    }
    let file = text(matches, "file");
    let config = settings::load_to_show(matches, file, None, &[])?;
    if name == "show" {
        output::write(numalign_config::to_yaml(&config).as_bytes())?;
    } else {
        note!("{} is valid", file.unwrap_or_default());
    }
    Ok(())
}
