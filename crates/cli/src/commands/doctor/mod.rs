//! `numalign doctor`: what this machine has for a worker, line by line, and what to do about what it lacks.
//! It asks what a worker asks before it joins, by the same code.

use clap::ArgMatches;
use serde::Serialize;

use crate::error::CliError;
use crate::output::outln;
use crate::table::row;

mod folders;
mod gpus;
mod machine;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// A run works without it.
    Warning,
    /// A run on this machine would fail.
    Failure,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    /// What to do; empty when there is nothing to do.
    hint: String,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), hint: String::new() }
    }

    fn bad(name: &'static str, status: Status, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, status, detail: detail.into(), hint: hint.into() }
    }
}

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let mut checks = machine::checks();
    checks.extend(gpus::checks());
    checks.extend(folders::checks());
    let ok = checks.iter().all(|check| check.status != Status::Failure);
    if matches.get_flag("json") {
        outln!("{}", serde_json::json!({ "ok": ok, "checks": checks }))?;
    } else {
        for check in &checks {
            outln!("{}", line(check))?;
        }
    }
    if ok { Ok(()) } else { Err(CliError::already_reported(1)) }
}

fn line(check: &Check) -> String {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Failure => "failure",
    };
    let mut line = row(1, &[(8, status), (12, check.name), (0, &check.detail)]);
    if !check.hint.is_empty() {
        line.push_str(&format!("\n{:>22}{}", "→ ", check.hint));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_to_do() {
        let bad = Check::bad("nccl", Status::Warning, "libnccl.so.2 is not found", "install it");
        assert_eq!(line(&bad), "warning  nccl         libnccl.so.2 is not found\n                    → install it");
        assert_eq!(line(&Check::ok("cpu", "2 cores")), "ok       cpu          2 cores");
        let json = serde_json::json!(bad);
        assert_eq!(json["status"], "warning");
    }
}
