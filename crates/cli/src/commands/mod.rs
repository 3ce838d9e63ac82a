//! One file per command.

use clap::ArgMatches;

use crate::args::{key_flags, text};
use crate::error::CliError;

mod bench;
mod bench_coordinator;
mod cert;
mod completions;
mod config;
mod coordinator;
mod doctor;
mod eval;
mod features;
mod generate;
mod generate_text;
mod hidden;
mod import;
mod inspect;
mod launch;
mod predict;
mod probe;
mod probe_page;
mod replay;
mod report;
mod report_page;
mod selftest;
mod status;
mod verify;
mod watch;
mod worker;

/// Runs the command that `matches` names.
pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    match matches.subcommand() {
        Some(("launch", matches)) => launch::run(matches),
        Some(("probe", matches)) => probe::run(matches),
        Some(("coordinator", matches)) => coordinator::run(matches),
        Some(("worker", matches)) => worker::run(matches),
        Some(("cert", matches)) => cert::run(matches),
        Some(("completions", matches)) => completions::run(matches),
        Some(("generate", matches)) => generate::run(matches),
        Some(("eval", matches)) => eval::run(matches),
        Some(("predict", matches)) => predict::run(matches),
        Some(("features", matches)) => features::run(matches),
        Some(("inspect", matches)) => inspect::run(matches),
        Some(("hidden", matches)) => hidden::run(matches),
        Some(("import", matches)) => import::run(matches),
        Some(("generate-text", matches)) => generate_text::run(matches),
        Some(("verify", matches)) => verify::run(matches),
        Some(("replay", matches)) => replay::run(matches),
        Some(("report", matches)) => report::run(matches),
        Some(("status", matches)) => status::run(matches),
        Some(("watch", matches)) => watch::run(matches),
        Some(("bench", matches)) => bench::run(matches),
        Some(("doctor", matches)) => doctor::run(matches),
        Some(("selftest", matches)) => selftest::run(matches),
        Some(("config", matches)) => config::run(matches),
        _ => Err(CliError::usage("no such command")),
    }
}

/// Whether somebody chose a stage: the default alone would be a surprise.
fn names_a_stage(matches: &ArgMatches, argument: Option<&str>) -> bool {
    argument.is_some()
        || text(matches, "config").is_some()
        || key_flags(matches).iter().any(|(key, _)| key == "stage")
        || std::env::var_os("NUMALIGN_STAGE").is_some()
}
