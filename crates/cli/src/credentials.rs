//! `--token-file`, `--tls-…` and `NUMALIGN_TOKEN`: what the commands that open or use a coordinator's port take.
//! A token is never an argument itself: every user of the machine can read a command line.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use numalign_access::tls::TlsFiles;
use numalign_access::{ClientAccess, ServerAccess, Token, warnings};

use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::launcher::child;

/// Where a process finds the join token when no file is named.
pub const TOKEN_VARIABLE: &str = "NUMALIGN_TOKEN";

/// The join token: of the file, else of the environment, where an empty one counts as none.
pub fn token(matches: &ArgMatches) -> Result<Option<Token>, CliError> {
    if let Some(path) = text(matches, "token-file") {
        let token = Token::read(Path::new(path))?;
        warn(warnings::of_secret_file(Path::new(path)));
        warn(warnings::of_token(token.reveal(), path));
        return Ok(Some(token));
    }
    match std::env::var(TOKEN_VARIABLE) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => {
            let token = Token::new(&text, TOKEN_VARIABLE)?;
            warn(warnings::of_token(token.reveal(), TOKEN_VARIABLE));
            Ok(Some(token))
        }
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(CliError::usage(format!("{TOKEN_VARIABLE} is not text"))),
    }
}

fn files(matches: &ArgMatches) -> TlsFiles {
    let path = |name| text(matches, name).map(PathBuf::from);
    let files = TlsFiles { cert: path("tls-cert"), key: path("tls-key"), ca: path("tls-ca") };
    warn(files.warnings());
    files
}

/// Tells what is unwise; a process that `launch` started leaves that to it.
fn warn(warnings: impl IntoIterator<Item = String>) {
    if !child::is_launched() {
        warnings.into_iter().for_each(|text| note!("warning: {text}"));
    }
}

/// What a coordinator demands.
pub fn server(matches: &ArgMatches) -> Result<ServerAccess, CliError> {
    Ok(ServerAccess { token: token(matches)?, tls: files(matches).server()?, publish_token: false })
}

/// What a client presents.
pub fn client(matches: &ArgMatches) -> Result<ClientAccess, CliError> {
    Ok(ClientAccess { token: token(matches)?, tls: files(matches).client()? })
}
