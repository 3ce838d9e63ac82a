//! How the commands that only ask or simulate reach a coordinator; a worker's own connection is in
//! `numalign_worker::session`.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use numalign_access::rate_limited_log::sanitize;
use numalign_access::{Client, ClientAccess, Token, client::Unconnected, client::status_words};
use numalign_config::RUNS_FOLDER;
use numalign_coordinator::address;
use numalign_protocol::{StatusReply, StatusRequest};

use crate::error::CliError;

/// A client that connects when it is first used, and again when the connection broke. Needs the runtime's context.
pub fn lazy_client(access: &ClientAccess, url: &str) -> Result<Client, CliError> {
    let endpoint = access.endpoint(url)?;
    Ok(access.connect_lazily(&endpoint))
}

/// What the coordinator at `url` says about its run, within `limit`.
pub async fn status(access: &ClientAccess, url: &str, limit: Duration) -> Result<StatusReply, CliError> {
    let ask = async {
        let endpoint = access.endpoint(url)?;
        let mut client = match access.connect(&endpoint).await {
            Ok(client) => client,
            Err(Unconnected::Lost(reason)) => return Err(silent(url, &reason)),
            Err(Unconnected::Refused(error)) => return Err(error.into()),
        };
        match client.status(StatusRequest {}).await {
            Ok(reply) => Ok(shown(reply.into_inner())),
            Err(status) => Err(match access.refusal(&status) {
                Some(error) => error.into(),
                None => silent(url, &status_words(&status)),
            }),
        }
    };
    match tokio::time::timeout(limit, ask).await {
        Ok(answer) => answer,
        Err(_) => Err(silent(url, &format!("nothing came within {:.0} s", limit.as_secs_f64()))),
    }
}

/// Characters that are kept of a reason, and of a name.
const MAX_REASON: usize = 4096;
const MAX_NAME: usize = 128;

/// The status with its text made safe to show: whatever answers at an address may say anything.
fn shown(mut reply: StatusReply) -> StatusReply {
    let StatusReply { run_id, phase, reason, collective, collective_reason, .. } = &mut reply;
    for (text, most) in [
        (run_id, MAX_NAME),
        (phase, MAX_NAME),
        (reason, MAX_REASON),
        (collective, MAX_NAME),
        (collective_reason, MAX_REASON),
    ] {
        *text = sanitize(text, most);
    }
    for worker in &mut reply.workers {
        for text in [&mut worker.host, &mut worker.device, &mut worker.state] {
            *text = sanitize(text, MAX_NAME);
        }
    }
    for failure in &mut reply.failures {
        failure.text = sanitize(&failure.text, MAX_REASON);
    }
    reply
}

fn silent(url: &str, reason: &str) -> CliError {
    CliError::new(format!("no coordinator answers at {url}: {reason}"))
        .with_hint("`numalign launch` and `numalign coordinator` print their address; give it with --coordinator")
}

/// The newest run in this folder whose coordinator can be reached: the file that says so, and the address.
pub fn run_of_this_folder() -> Option<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(RUNS_FOLDER).ok()?.flatten() {
        let file = entry.path().join(address::FILE_NAME);
        if let Ok(written) = file.metadata().and_then(|metadata| metadata.modified())
            && let Ok(url) = std::fs::read_to_string(&file)
        {
            found.push((written, file, url.trim().to_owned()));
        }
    }
    found.sort();
    // One that was killed has left its file.
    found.into_iter().rev().find(|(_, _, url)| is_open(url)).map(|(_, file, url)| (file, url))
}

/// The token that `launch` made for the run at `url`, if that is one of this folder.
pub fn token_of(url: &str) -> Option<Token> {
    for entry in std::fs::read_dir(RUNS_FOLDER).ok()?.flatten() {
        let address = std::fs::read_to_string(entry.path().join(address::FILE_NAME));
        if address.is_ok_and(|address| address.trim() == url)
            && let Ok(token) = Token::read(&entry.path().join(address::TOKEN_FILE_NAME))
        {
            return Some(token);
        }
    }
    None
}

/// Whether somebody listens at `url`.
fn is_open(url: &str) -> bool {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let address = url.split_once("://").and_then(|(_, address)| address.parse().ok());
    address.is_some_and(|address| TcpStream::connect_timeout(&address, TIMEOUT).is_ok())
}

/// The address that `MASTER_ADDR` and `MASTER_PORT` name, where both are set; with TLS where `access` has it.
pub fn from_environment(access: &ClientAccess) -> Result<Option<String>, CliError> {
    let scheme = if access.tls.is_some() { "https" } else { "http" };
    match (std::env::var("MASTER_ADDR"), std::env::var("MASTER_PORT")) {
        (Ok(host), Ok(port)) => Ok(Some(format!("{scheme}://{}:{port}", host.trim()))),
        (Err(std::env::VarError::NotUnicode(_)), _) | (_, Err(std::env::VarError::NotUnicode(_))) => {
            Err(CliError::usage("MASTER_ADDR or MASTER_PORT is not UTF-8"))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use numalign_protocol::{FailureStatus, WorkerStatus};

    use super::*;

    #[test]
    fn a_status_is_safe_to_show_whoever_sent_it() {
        let hostile = || format!("\x1b[2J\u{9b}\u{202e}{}", "x".repeat(1 << 20));
        let worker = WorkerStatus { host: hostile(), device: hostile(), state: hostile(), ..WorkerStatus::default() };
        let reply = shown(StatusReply {
            run_id: hostile(),
            phase: hostile(),
            reason: hostile(),
            collective: hostile(),
            collective_reason: hostile(),
            workers: vec![worker],
            failures: vec![FailureStatus { text: hostile(), ..FailureStatus::default() }],
            ..StatusReply::default()
        });
        let (worker, failure) = (&reply.workers[0], &reply.failures[0]);
        let names = [&reply.run_id, &reply.phase, &reply.collective, &worker.host, &worker.device, &worker.state];
        let reasons = [&reply.reason, &reply.collective_reason, &failure.text];
        for (text, most) in names.map(|name| (name, MAX_NAME)).into_iter().chain(reasons.map(|text| (text, MAX_REASON)))
        {
            assert_eq!(text.chars().count(), most);
            assert!(text.starts_with("\u{fffd}[2J\u{fffd}\u{fffd}x"), "{text:.20?}");
        }
    }
}
