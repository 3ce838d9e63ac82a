//! The page of a run over real sockets: what it tells, whom it refuses, and how it looks in a browser. Real processes.

// Says what it skips.
#![allow(clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod api;
mod browser;
mod http;
mod tensorboard;
mod webdriver;

use common::{Child, Folder};

/// Starts a launch with a page, its settings separated by blanks; answers with the page's `HOST:PORT`.
fn launch(folder: &Folder, settings: &str) -> (Child, String) {
    let line = format!("launch nn --no-eval {settings}");
    let mut launch = folder.spawn(&line.split_whitespace().collect::<Vec<_>>());
    let address = page_of(&mut launch);
    (launch, address)
}

/// Starts `watch` with these arguments; answers with the page's `HOST:PORT`.
fn watch(folder: &Folder, args: &[&str]) -> (Child, String) {
    let mut watch = folder.spawn(&[&["watch"], args].concat());
    watch.wait_for_stderr("the page stays");
    common::run::wait_for("the URL", || watch.stdout().ends_with('\n'));
    let url = watch.stdout();
    let address = url.trim().trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/');
    let address = address.to_owned();
    (watch, address)
}

/// The page's `HOST:PORT`, once the process has told it.
fn page_of(child: &mut Child) -> String {
    child.wait_for_stderr("watch it on http://");
    let stderr = child.stderr();
    let after = stderr.split("watch it on http://").nth(1).expect("the URL");
    after.split('/').next().expect("an address").to_owned()
}
