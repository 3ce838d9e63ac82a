//! `--token-file`, `--tls-…` and `NUMALIGN_TOKEN`: what the commands that open or use a coordinator's port take.
//! A token is never an argument itself: every user of the machine can read a command line.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use numalign_access::tls::TlsFiles;
use numalign_access::{ClientAccess, ServerAccess, Token};

use crate::args::text;
use crate::error::CliError;

/// Where a process finds the join token when no file is named.
pub const TOKEN_VARIABLE: &str = "NUMALIGN_TOKEN";

const HEADING: &str = "Access";

fn file(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("FILE").help(help).help_heading(HEADING)
}

/// `--token-file`, for `launch`, whose processes talk over loopback.
pub fn token_argument() -> Arg {
    file("token-file", "File with the run's join token; the environment's NUMALIGN_TOKEN by default")
}

/// For the command that listens.
pub fn server_arguments(command: Command) -> Command {
    command
        .arg(token_argument())
        .arg(
            Arg::new("insecure")
                .long("insecure")
                .help("Listen beyond loopback without a join token: whoever reaches the port can take part")
                .help_heading(HEADING)
                .action(ArgAction::SetTrue),
        )
        .arg(file("tls-cert", "This coordinator's certificate chain (PEM); with it the port takes TLS"))
        .arg(file("tls-key", "The certificate's private key (PEM)"))
        .arg(file("tls-ca", "CA that clients' certificates have to come from (PEM): mutual TLS"))
}

/// For the commands that connect.
pub fn client_arguments(command: Command) -> Command {
    command
        .arg(token_argument())
        .arg(file("tls-ca", "CA that the coordinator's certificate has to come from (PEM), for an https:// address"))
        .arg(file("tls-cert", "Certificate chain to show to a coordinator that demands one (PEM)"))
        .arg(file("tls-key", "The certificate's private key (PEM)"))
}

/// The join token: of the file, else of the environment, where an empty one counts as none.
pub fn token(matches: &ArgMatches) -> Result<Option<Token>, CliError> {
    if let Some(path) = text(matches, "token-file") {
        return Ok(Some(Token::read(Path::new(path))?));
    }
    match std::env::var(TOKEN_VARIABLE) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(Token::new(&text, TOKEN_VARIABLE)?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(CliError::usage(format!("{TOKEN_VARIABLE} is not text"))),
    }
}

fn files(matches: &ArgMatches) -> TlsFiles {
    let path = |name| text(matches, name).map(PathBuf::from);
    TlsFiles { cert: path("tls-cert"), key: path("tls-key"), ca: path("tls-ca") }
}

/// What a coordinator demands.
pub fn server(matches: &ArgMatches) -> Result<ServerAccess, CliError> {
    Ok(ServerAccess { token: token(matches)?, tls: files(matches).server()? })
}

/// What a client presents.
pub fn client(matches: &ArgMatches) -> Result<ClientAccess, CliError> {
    Ok(ClientAccess { token: token(matches)?, tls: files(matches).client()? })
}
