//! `numalign coordinator`: the coordinator alone, or the one that `launch` started.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use clap::ArgMatches;
use numalign_access::ServerAccess;
use numalign_config::Config;
use numalign_coordinator::CoordinatorError;
use numalign_dashboard::HttpAddress;

use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::launcher::child;
use crate::launcher::signals::Signals;
use crate::launcher::spawn::{CONFIG_VARIABLE, PUBLISH_TOKEN_VARIABLE};
use crate::watching::{EventWriter, Page};
use crate::{credentials, limits, logging, settings};

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    child::die_with_parent()?;
    logging::start("info", false);
    let config = match std::env::var(CONFIG_VARIABLE) {
        Ok(text) => {
            serde_json::from_str(&text).map_err(|error| CliError::new(format!("{CONFIG_VARIABLE}: {error}")))?
        }
        Err(_) => settings::load_for_run(matches, text(matches, "config"), text(matches, "stage-name"))?,
    };
    limits::open_files(0)?;
    let mut access = credentials::server(matches)?;
    access.publish_token = child::is_launched() && std::env::var_os(PUBLISH_TOKEN_VARIABLE).is_some();
    let insecure = matches.get_flag("insecure");
    let listen = text(matches, "listen").unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(config, listen, access, insecure));
    runtime.shutdown_background();
    result
}

async fn serve(config: Config, listen: &str, access: ServerAccess, insecure: bool) -> Result<(), CliError> {
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
    let result = numalign_coordinator::run(config, listener, access, signals.stop(), checkpoint_wanted, queries).await;
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
    let wrong = || CliError::usage(format!("fd:{number} is not a listening socket of this process"));
    let number: RawFd = number.parse().map_err(|_| wrong())?;
    if number <= 2 || !child::is_launched() {
        return Err(wrong());
    }
    // SAFETY: borrowed for this call only, which finds out whether the descriptor is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).map_err(|_| wrong())?;
    // SAFETY: it is open, and `launch` named it: it is the parent's gift, and nobody else here uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(std::net::TcpListener::from(socket))
}
