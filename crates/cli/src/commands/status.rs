//! `numalign status`: what a run is doing and why, its workers, and what went wrong so far.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use clap::ArgMatches;
use numalign_data::shown::fixed;
use numalign_protocol::{StatusReply, WorkerStatus};

use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::output::{self, outln};
use crate::table::table;
use crate::{connect, credentials};

const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7400";

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Failures shown in the table; `--json` has all that the coordinator remembers.
const MOST_SHOWN: usize = 10;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    let mut access = credentials::client(matches)?;
    let url = match text(matches, "coordinator") {
        Some(url) => url.to_owned(),
        None => connect::from_environment(&access)?.unwrap_or_else(found_here),
    };
    if access.token.is_none() {
        access.token = connect::token_of(&url);
    }
    let json = matches.get_flag("json");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        print(&connect::status(&access, &url, TIMEOUT).await?, json, false)?;
        if !matches.get_flag("watch") {
            return Ok(());
        }
        while !output::reader_gone() {
            tokio::time::sleep(WATCH_EVERY).await;
            match connect::status(&access, &url, TIMEOUT).await {
                Ok(status) => print(&status, json, true)?,
                Err(_) => {
                    note!("the coordinator at {url} is gone");
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

/// The address of this folder's run, else the usual one.
fn found_here() -> String {
    match connect::run_of_this_folder() {
        Some((file, url)) => {
            note!("coordinator at {url}, found in {}", file.display());
            url
        }
        None => DEFAULT_COORDINATOR.to_owned(),
    }
}

/// One JSON object on a line, or a page; `again` replaces the page before on a terminal.
fn print(status: &StatusReply, json: bool, again: bool) -> Result<(), CliError> {
    if json {
        return outln!("{}", as_json(status));
    }
    if again && std::io::stdout().is_terminal() {
        output::write(b"\x1b[H\x1b[2J")?;
    }
    output::write(page(status).as_bytes())
}

fn as_json(status: &StatusReply) -> serde_json::Value {
    // It holds nothing that JSON cannot say.
    serde_json::to_value(status).unwrap_or_default()
}

fn evaluation_line(status: &StatusReply, page: &mut String) {
    let (Some(latest), Some(best)) = (&status.latest_evaluation, &status.best_evaluation) else {
        return;
    };
    let right = latest.right_percent.map_or_else(String::new, |right| format!(", choice accuracy {right:.1} %"));
    let _ = writeln!(
        page,
        "  evaluated   step {}: error {:.4} % of the range{right}; best {:.4} % at step {}",
        latest.step, latest.mae_percent_of_range, best.mae_percent_of_range, best.step
    );
}

fn page(status: &StatusReply) -> String {
    let mut page = String::new();
    let percent = 100.0 * status.step as f64 / status.total_steps.max(1) as f64;
    let loss = if status.loss.is_finite() { fixed(status.loss.into(), 6) } else { "not known yet".to_owned() };
    let collective = match status.collective.as_str() {
        "" => "not chosen yet".to_owned(),
        name => format!("{name} ({})", status.collective_reason),
    };
    // Writing into a string cannot fail.
    let _ = write!(
        page,
        "run {}: {}\n  reason      {}\n  generation  {}, collective {collective}\n  step        {} of {} ({percent:.1} %), \
         {:.1} steps/s\n  loss        {loss}\n",
        status.run_id,
        status.phase,
        status.reason,
        status.generation,
        status.step,
        status.total_steps,
        status.steps_per_second,
    );
    evaluation_line(status, &mut page);
    if status.failed_checkpoints > 0 {
        let _ = writeln!(page, "  disk        {} checkpoints could not be written", status.failed_checkpoints);
    }
    if status.damaged_messages > 0 {
        let _ = writeln!(page, "  network     {} messages were damaged and sent again", status.damaged_messages);
    }
    let mut rows = vec![
        ["worker", "host", "pid", "device", "state", "rank", "micro-batches", "ms/step", "heard", "restarts"]
            .map(str::to_owned),
    ];
    rows.extend(status.workers.iter().map(row));
    page.push_str(&table(&rows));
    failures(status, &mut page);
    page
}

fn row(worker: &WorkerStatus) -> [String; 10] {
    [
        worker.member.to_string(),
        worker.host.clone(),
        worker.pid.to_string(),
        if worker.device.is_empty() { "-".to_owned() } else { worker.device.clone() },
        worker.state.clone(),
        worker.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string()),
        worker.micro_batches.to_string(),
        format!("{:.2}", worker.ms_per_step),
        format!("{:.1} s ago", worker.last_heartbeat_seconds),
        worker.restarts.to_string(),
    ]
}

fn failures(status: &StatusReply, page: &mut String) {
    if status.failures_total == 0 {
        page.push_str("  no failures so far\n");
        return;
    }
    let _ = writeln!(
        page,
        "  {} failures so far, {} recovered from: median {:.2} s, worst {:.2} s",
        status.failures_total,
        status.recoveries_total,
        status.median_recovery_ms / 1e3,
        status.worst_recovery_ms / 1e3
    );
    let hidden = status.failures.len().saturating_sub(MOST_SHOWN);
    for failure in status.failures.iter().skip(hidden) {
        let outcome = match failure.recovery_ms {
            Some(milliseconds) => format!("recovered in {:.2} s", milliseconds / 1e3),
            None => "not recovered yet".to_owned(),
        };
        let _ = writeln!(page, "    step {:>6}: {}; {outcome}", failure.step, failure.text);
    }
}

#[cfg(test)]
mod tests {
    use numalign_protocol::{EvaluationStatus, FailureStatus};

    use super::*;

    fn status() -> StatusReply {
        let worker = WorkerStatus {
            member: 7,
            host: "node-a".to_owned(),
            pid: 4711,
            device: "cpu (avx2, 1 thread)".to_owned(),
            state: "training".to_owned(),
            rank: Some(0),
            micro_batches: 5,
            ms_per_step: 1.25,
            last_heartbeat_seconds: 0.21,
            restarts: 2,
            ..WorkerStatus::default()
        };
        let failure =
            FailureStatus { text: "worker 3 left".to_owned(), step: 11, recovered: true, recovery_ms: Some(240.0) };
        StatusReply {
            run_id: "nn".to_owned(),
            phase: "training".to_owned(),
            reason: "training with 1 of 1 workers".to_owned(),
            generation: 2,
            step: 30,
            total_steps: 600,
            loss: f32::NAN,
            workers: vec![
                worker.clone(),
                WorkerStatus { member: 8, state: "loading".to_owned(), rank: None, ..worker },
            ],
            failures: vec![failure; 12],
            failures_total: 1200,
            damaged_messages: 17,
            recoveries_total: 1200,
            median_recovery_ms: 240.0,
            worst_recovery_ms: 1500.0,
            latest_evaluation: Some(EvaluationStatus { step: 20, mae_percent_of_range: 0.5, ..Default::default() }),
            best_evaluation: Some(EvaluationStatus { step: 10, mae_percent_of_range: 0.25, ..Default::default() }),
            ..StatusReply::default()
        }
    }

    #[test]
    fn the_page_says_what_and_why() {
        let page = page(&status());
        for part in [
            "run nn: training\n",
            "reason      training with 1 of 1 workers\n",
            "step        30 of 600 (5.0 %)",
            "loss        not known yet",
            "network     17 messages were damaged and sent again\n",
            "evaluated   step 20: error 0.5000 % of the range; best 0.2500 % at step 10\n",
            "  7       node-a  4711  cpu (avx2, 1 thread)  training  0     5              1.25     0.2 s ago  2\n",
            "1200 failures so far, 1200 recovered from: median 0.24 s, worst 1.50 s\n",
            "    step     11: worker 3 left; recovered in 0.24 s\n",
        ] {
            assert!(page.contains(part), "`{part}` is not in\n{page}");
        }
        assert_eq!(page.matches("worker 3 left").count(), MOST_SHOWN);
    }

    #[test]
    fn json_says_nothing_that_is_not_known() {
        let value = as_json(&status());
        assert_eq!(value["loss"], serde_json::Value::Null);
        assert_eq!(value["workers"][0]["rank"], 0);
        assert_eq!(value["workers"][1]["rank"], serde_json::Value::Null);
        assert_eq!(value["failures"].as_array().map(Vec::len), Some(12));
        assert_eq!(value["failures"][0]["recovery_ms"], 240.0);
    }
}
