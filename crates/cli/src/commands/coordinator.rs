//! `numalign coordinator`: the coordinator alone, or the one that `launch` started.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use clap::ArgMatches;
use numalign_access::ServerAccess;
use numalign_coordinator::{CoordinatorError, OpenedFiles};
use numalign_dashboard::HttpAddress;
use numalign_data::{DataError, Dataset};
use rustix::io::FdFlags;

use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::launcher::child;
use crate::launcher::signals::Signals;
use crate::launcher::spawn::{CONFIG_VARIABLE, HELD_OUT_ROWS_VARIABLE, PUBLISH_TOKEN_VARIABLE, ROWS_VARIABLE};
use crate::settings::RunSettings;
use crate::watching::{EventWriter, Page};
use crate::{clock, credentials, limits, logging, settings};

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    child::die_with_parent()?;
    logging::start("info", false);
    clock::check()?;
    let run = match std::env::var(CONFIG_VARIABLE) {
        Ok(text) => {
            let config =
                serde_json::from_str(&text).map_err(|error| CliError::new(format!("{CONFIG_VARIABLE}: {error}")))?;
            RunSettings { config, files: inherited_files()? }
        }
        Err(_) => settings::load_for_run(matches, text(matches, "config"), text(matches, "stage-name"))?,
    };
    limits::open_files(0)?;
    let mut access = credentials::server(matches)?;
    access.publish_token = child::is_launched() && std::env::var_os(PUBLISH_TOKEN_VARIABLE).is_some();
    let insecure = matches.get_flag("insecure");
    let listen = text(matches, "listen").unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(run, listen, access, insecure));
    runtime.shutdown_background();
    result
}

async fn serve(run: RunSettings, listen: &str, access: ServerAccess, insecure: bool) -> Result<(), CliError> {
    let RunSettings { config, files } = run;
    let listener = match listen.strip_prefix("fd:") {
        Some(number) => inherited(number)?,
        None => bind(listen).map_err(|error| {
            let message = format!("cannot listen on {listen}: {error}");
            match error.kind() {
                std::io::ErrorKind::InvalidInput => {
                    CliError::usage(message).with_hint("an address is HOST:PORT, such as 127.0.0.1:7400")
                }
                std::io::ErrorKind::AddrInUse => {
                    CliError::new(message).with_hint("another program uses the port: end it, or choose another port")
                }
                std::io::ErrorKind::PermissionDenied => CliError::new(message)
                    .with_hint("ports below 1024 belong to root on most machines: choose a higher one, such as 7400"),
                _ => CliError::new(message).with_hint("use an address of this machine, such as 0.0.0.0:7400"),
            }
        })?,
    };
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    access.check_exposure(address.ip(), insecure)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    if !listen.starts_with("fd:") {
        note!(
            "listening on {address}; start workers with: numalign worker --coordinator {}://HOST:{}{}{}",
            if access.tls.is_some() { "https" } else { "http" },
            address.port(),
            if access.tls.is_some() { " --tls-ca CA.pem" } else { "" },
            if access.token.is_some() { " --token-file TOKEN" } else { "" },
        );
    }
    let signals = Signals::listen(child::interrupt())?;
    let checkpoint_wanted = signals.checkpoint();
    // `launch` serves the page of the one that it starts.
    let page = match child::is_launched() {
        true => None,
        false => Page::open(&config, HttpAddress::Off, access.token.clone(), access.tls.clone())?,
    };
    let events = if child::is_launched() { None } else { EventWriter::start(&config) };
    let steps = config.recipe.total_steps();
    let run_id = config.run.run_id.clone();
    let queries = page.as_ref().map(|page| {
        page.show(&config);
        page.follow()
    });
    let result =
        numalign_coordinator::run(config, files, listener, access, signals.stop(), checkpoint_wanted, queries).await;
    if let Some(events) = events
        && let Some(events) = events.finish().await
        && result.is_ok()
    {
        events.close(steps, None);
    }
    if let Some(page) = page {
        page.end(result.is_ok()).await;
    }
    result.map(|_| ()).map_err(|error| {
        let is_saved = matches!(&error, CoordinatorError::Stopped { saved: Some(_), .. });
        let error = CliError::from(error);
        match is_saved && !child::is_launched() {
            true => error.with_hint(format!(
                "continue with: numalign coordinator --run-id {run_id} --resume auto --listen {address}, and the same \
                 access flags"
            )),
            false => error,
        }
    })
}

/// `:PORT` means every address of this machine.
fn bind(listen: &str) -> std::io::Result<std::net::TcpListener> {
    let Some(Ok(port)) = listen.strip_prefix(':').map(str::parse::<u16>) else {
        return std::net::TcpListener::bind(listen);
    };
    // Where there is IPv6, that socket takes IPv4 too.
    std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

/// A listening socket that `launch` opened, so that it outlives a coordinator.
fn inherited(number: &str) -> Result<std::net::TcpListener, CliError> {
    let descriptor = inherited_descriptor(number);
    let descriptor =
        descriptor.ok_or_else(|| CliError::usage(format!("fd:{number} is not a listening socket of this process")))?;
    Ok(std::net::TcpListener::from(descriptor))
}

/// The data files that `launch` read.
fn inherited_files() -> Result<OpenedFiles, CliError> {
    let rows_of = |variable: &str| -> Result<Option<Arc<Dataset>>, CliError> {
        let Ok(number) = std::env::var(variable) else { return Ok(None) };
        let descriptor = inherited_descriptor(&number)
            .ok_or_else(|| CliError::new(format!("{variable} is {number}, which is no open file of this process")))?;
        let dataset = Dataset::from_file(File::from(descriptor));
        Ok(Some(Arc::new(dataset.map_err(|source| DataError::RowFile { source })?)))
    };
    Ok(OpenedFiles { rows: rows_of(ROWS_VARIABLE)?, held_out: rows_of(HELD_OUT_ROWS_VARIABLE)? })
}

/// What `launch` left open for this process under that number; `None` if that is nothing.
fn inherited_descriptor(number: &str) -> Option<OwnedFd> {
    let number: RawFd = number.parse().ok()?;
    if number <= 2 || !child::is_launched() {
        return None;
    }
    // SAFETY: borrowed for this call only, which finds out whether the descriptor is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and `launch` named it: it is the parent's gift, and nobody else here uses it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
