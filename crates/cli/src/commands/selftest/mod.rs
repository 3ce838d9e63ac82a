//! `numalign selftest`: from one binary on a bare machine, whether it computes the right numbers, keeps the promise in real
//! runs, and how fast it is. A table at the end, exit code 1 where anything fails.

use std::time::Instant;

use clap::ArgMatches;
use numalign_config::DeviceChoice;
use serde::Serialize;

use crate::error::CliError;
use crate::output::outln;
use crate::table::row;
use crate::{logging, settings};

mod numbers;
mod reductions;
mod runs;
mod speed;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Passed,
    Failed,
    /// This machine cannot show it; the detail says why.
    Skipped,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Outcome {
    name: String,
    status: Status,
    detail: String,
    seconds: f64,
}

/// A check's result: what was seen, or what was wrong.
type Seen = Result<String, String>;

/// Collects outcomes and prints each as it comes.
struct Table {
    outcomes: Vec<Outcome>,
    quiet: bool,
    /// Whether the lines could be printed.
    printed: Result<(), CliError>,
}

impl Table {
    fn run(&mut self, name: impl Into<String>, check: impl FnOnce() -> Seen) {
        let started = Instant::now();
        let (status, detail) = match check() {
            Ok(seen) => (Status::Passed, seen),
            Err(wrong) => (Status::Failed, wrong),
        };
        self.add(Outcome { name: name.into(), status, detail, seconds: started.elapsed().as_secs_f64() });
    }

    fn skip(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.add(Outcome { name: name.into(), status: Status::Skipped, detail: why.into(), seconds: 0.0 });
    }

    fn add(&mut self, outcome: Outcome) {
        if !self.quiet && self.printed.is_ok() {
            self.printed = outln!("{}", line(&outcome));
        }
        self.outcomes.push(outcome);
    }
}

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    logging::start("warn", false);
    let wanted = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let device = numalign_model::load::choose_device(wanted, None, 1);
    let json = matches.get_flag("json");
    let mut table = Table { outcomes: Vec::new(), quiet: json, printed: Ok(()) };
    if !json {
        outln!("numalign {} on {device}", env!("CARGO_PKG_VERSION"))?;
    }
    numbers::check(&mut table, device);
    reductions::check(&mut table);
    runs::check(&mut table, device)?;
    if !matches.get_flag("quick") {
        speed::check(&mut table, device);
    }
    let count = |status: Status| table.outcomes.iter().filter(|outcome| outcome.status == status).count();
    let (passed, failed, skipped) = (count(Status::Passed), count(Status::Failed), count(Status::Skipped));
    if json {
        let object = serde_json::json!({ "ok": failed == 0, "device": device.to_string(), "checks": table.outcomes });
        outln!("{object}")?;
    } else {
        outln!("{passed} passed, {failed} failed, {skipped} skipped")?;
    }
    table.printed?;
    if failed == 0 { Ok(()) } else { Err(CliError::already_reported(1)) }
}

fn line(outcome: &Outcome) -> String {
    let status = match outcome.status {
        Status::Passed => "passed",
        Status::Failed => "FAILED",
        Status::Skipped => "skipped",
    };
    let seconds = format!("{:>6.1} s ", outcome.seconds);
    row(1, &[(8, status), (34, &outcome.name), (0, &seconds), (0, &outcome.detail)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_what_failed_and_what_was_skipped() {
        let mut table = Table { outcomes: Vec::new(), quiet: true, printed: Ok(()) };
        table.run("good", || Ok("seen".to_owned()));
        table.run("bad", || Err("wrong".to_owned()));
        table.skip("absent", "no GPU");
        let statuses: Vec<Status> = table.outcomes.iter().map(|outcome| outcome.status).collect();
        assert_eq!(statuses, [Status::Passed, Status::Failed, Status::Skipped]);
        assert!(line(&table.outcomes[1]).starts_with("FAILED   bad "));
        assert!(line(&table.outcomes[2]).ends_with("no GPU"));
    }
}
