//! The page to watch a run: what `launch`, `coordinator` and `watch` have in common. `numalign_dashboard` serves it; here
//! it gets to know the run.

mod events;
mod run;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use numalign_access::{ServerTls, Token, warnings};
use numalign_config::Config;
use numalign_coordinator::StatusQueries;
use numalign_dashboard::{Access, Board, HttpAddress, RunSource, ServerError, serve};
use numalign_protocol::StatusReply;
use tokio::sync::{mpsc, oneshot};

use crate::console::note;
use crate::error::CliError;

pub use events::{EventWriter, FinishedEvents};
pub use run::{WatchedRun, runs_of_this_folder};

/// How often a coordinator asks itself, and how long the answer may take.
const LOOK: Duration = Duration::from_secs(1);

/// An open page. A copy is the same page.
#[derive(Clone)]
pub struct Page {
    board: Arc<Board>,
    url: String,
}

impl Page {
    /// Serves the page where the configuration says, or at `usual`; none where that is `off`. Beyond loopback it asks for
    /// the token of `http_token_file`, or `join_token`. Needs the context of a runtime.
    ///
    /// # Errors
    /// The address that the configuration names cannot be used, or there is no token where one is needed.
    pub fn open(
        config: &Config,
        usual: HttpAddress,
        join_token: Option<Token>,
        tls: Option<ServerTls>,
    ) -> Result<Option<Self>, CliError> {
        let is_asked_for = config.run.http.is_some();
        let address = config.run.http.as_deref().map_or(usual, HttpAddress::of);
        let own_token = config.run.http_token_file.as_deref().map(read_token).transpose()?;
        match Self::at(&address, access(own_token, join_token, tls)) {
            Ok(page) => {
                if let Some(page) = &page {
                    note!("watch it on {}", page.url);
                }
                Ok(page)
            }
            // Nobody asked for it: the run does not need it.
            Err(error) if !is_asked_for => {
                note!("warning: there is no page to watch the run: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Serves the page at `address`; none for `off`.
    ///
    /// # Errors
    /// The address cannot be used, or there is no token where one is needed.
    pub fn at(address: &HttpAddress, access: Access) -> Result<Option<Self>, CliError> {
        let socket = address.bind().map_err(|error| {
            CliError::new(format!("cannot serve the page on {address}: {error}"))
                .with_hint("--http takes HOST:PORT of this machine, with port 0 for any free one, or off")
        })?;
        let Some(socket) = socket else {
            return Ok(None);
        };
        let board = Board::new();
        let url = serve(socket, access, board.clone()).map_err(|error| match error {
            ServerError::Exposed(_) => CliError::usage(error.to_string())
                .with_hint("give --http-token-file FILE or the run's join token, or an address of loopback"),
            ServerError::Socket(_) => CliError::new(error.to_string()),
        })?;
        Ok(Some(Self { board, url }))
    }

    /// The URL for a browser on this machine.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Shows this run, of which [`Page::report`] will tell.
    pub fn show(&self, config: &Config) {
        self.board.show_live(Box::new(WatchedRun::of_config(config)));
    }

    /// Shows runs by their files alone.
    pub fn show_files(&self, runs: Vec<WatchedRun>) {
        self.board.show_files(runs.into_iter().map(|run| Box::new(run) as Box<dyn RunSource>).collect());
    }

    /// What the coordinator says of the run; none when it does not answer. Alerts are told on the way.
    pub fn report(&self, status: Option<StatusReply>) {
        for alert in self.board.report(status) {
            note!("warning: {}", alert.text);
        }
    }

    /// The training is over, and this is what happens now.
    pub fn closing(&self, phase: &str, reason: &str) {
        self.board.closing(phase, reason);
    }

    /// Reports what the coordinator of this process answers to the queries that this makes.
    pub fn follow(&self) -> StatusQueries {
        let (queries, asked) = mpsc::channel::<oneshot::Sender<StatusReply>>(1);
        let page = self.clone();
        tokio::spawn(async move {
            loop {
                let (reply, answer) = oneshot::channel();
                if queries.send(reply).await.is_err() {
                    return;
                }
                let answer = tokio::time::timeout(LOOK, answer).await;
                page.report(answer.ok().and_then(Result::ok));
                tokio::time::sleep(LOOK).await;
            }
        });
        asked
    }

    /// Tells open pages that the run has ended.
    pub async fn end(&self, well: bool) {
        let words = if well { "The run has ended." } else { "The run ended early: its log says why." };
        self.board.end(words).await;
    }
}

/// What the page demands: its own token everywhere, the join token beyond loopback.
pub fn access(own_token: Option<Token>, join_token: Option<Token>, tls: Option<ServerTls>) -> Access {
    let token_everywhere = own_token.is_some();
    Access { token: own_token.or(join_token), tls, names: names(), token_everywhere }
}

/// The page's own token.
pub fn read_token(path: &Path) -> Result<Token, CliError> {
    let token = Token::read(path)?;
    for warning in warnings::of_secret_file(path)
        .into_iter()
        .chain(warnings::of_token(token.reveal(), &path.display().to_string()))
    {
        note!("warning: {warning}");
    }
    Ok(token)
}

/// This machine's own name, whole and without its domain.
fn names() -> Vec<String> {
    let system = rustix::system::uname();
    let whole = system.nodename().to_string_lossy().into_owned();
    let short = whole.split('.').next().unwrap_or_default().to_owned();
    let mut names = vec![whole, short];
    names.retain(|name| !name.is_empty());
    names.dedup();
    names
}
