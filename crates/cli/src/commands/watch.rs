//! `numalign watch`: the page of runs that are over, from their files.

use clap::ArgMatches;
use numalign_dashboard::HttpAddress;

use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::launcher::signals::{Interrupt, Signals};
use crate::output::outln;
use crate::watching::{self, Page, WatchedRun, runs_of_this_folder};
use crate::{clock, credentials, logging, process};

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    logging::start("warn", false);
    clock::check()?;
    let runs = runs(matches)?;
    let own_token = text(matches, "http-token-file").map(|path| watching::read_token(path.as_ref())).transpose()?;
    let server = credentials::server(matches)?;
    let address = HttpAddress::of(text(matches, "http").unwrap_or_default());
    if address == HttpAddress::Off {
        return Err(CliError::usage("watch only serves the page: --http off leaves nothing to do"));
    }
    let runtime = process::runtime()?;
    let result = runtime.block_on(async {
        let signals = Signals::listen(Interrupt::Stop)?;
        let access = watching::access(own_token, server.token, server.tls);
        let Some(page) = Page::at(&address, access)? else {
            return Ok(());
        };
        page.show_files(runs);
        outln!("{}", page.url())?;
        note!("the page stays until Ctrl-C");
        signals.stop().await;
        Ok(())
    });
    runtime.shutdown_background();
    result
}

/// The runs named, or the newest one.
fn runs(matches: &ArgMatches) -> Result<Vec<WatchedRun>, CliError> {
    let mut names: Vec<String> = matches.get_many("runs").into_iter().flatten().cloned().collect();
    if names.is_empty() {
        names.extend(runs_of_this_folder().into_iter().next());
    }
    if names.is_empty() {
        return Err(CliError::new("there is no run in chk/ of this folder")
            .with_hint("`numalign launch` makes one; or give a run's folder"));
    }
    let mut seen = Vec::new();
    for name in names {
        let run = WatchedRun::of_files(&name)?;
        if seen.iter().any(|known: &WatchedRun| known.name() == run.name()) {
            return Err(CliError::usage(format!("run `{}` is named twice", run.name())));
        }
        seen.push(run);
    }
    Ok(seen)
}
