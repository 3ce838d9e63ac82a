//! One file per command. Called by `main` only.

use clap::ArgMatches;

use crate::failure::Failure;

mod bench;
mod config;
mod coordinator;
mod eval;
mod eval_plot;
mod eval_report;
mod generate;
mod hidden;
mod inspect;
mod launch;
mod predict;
mod verbal;
mod worker;

/// Runs the command that `matches` names.
pub fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("launch", matches)) => launch::run(matches),
        Some(("coordinator", matches)) => coordinator::run(matches),
        Some(("worker", matches)) => worker::run(matches),
        Some(("generate", matches)) => generate::run(matches),
        Some(("eval", matches)) => eval::run(matches),
        Some(("predict", matches)) => predict::run(matches),
        Some(("inspect", matches)) => inspect::run(matches),
        Some(("hidden", matches)) => hidden::run(matches),
        Some(("complete", matches)) => verbal::complete(matches),
        Some(("bench", matches)) => bench::run(matches),
        Some(("config", matches)) => config::run(matches),
        _ => Err(Failure::usage("no such command")),
    }
}
