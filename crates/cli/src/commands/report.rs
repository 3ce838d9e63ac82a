//! `numalign report`: trains and evaluates a list of configurations, one after another, and writes one page with their
//! figures and pictures.
//!
//! Each configuration is a `numalign launch` and a `numalign eval` of this binary, as a user would run them, with what
//! they say in a log beside the page. What is finished and unchanged is not done again.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use clap::ArgMatches;
use numalign_checkpoint::write_atomically;
use numalign_config::{Config, RUNS_FOLDER};
use rustix::process::Signal;

use super::report_page::{Figures, Outcome, Row, page};
use crate::args::{key_flags, text};
use crate::console::note;
use crate::error::CliError;
use crate::launcher::signals::{Interrupt, Signals};
use crate::output::outln;
use crate::process::{self, ChildGuard, this_program};
use crate::settings;

/// Where the configurations of the README's results lie.
const DEFAULT_FOLDER: &str = "config/experiments";

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    process::runtime()?.block_on(report(matches))
}

async fn report(matches: &ArgMatches) -> Result<(), CliError> {
    let given: Vec<&String> = matches.get_many::<String>("config").into_iter().flatten().collect();
    let out = Path::new(text(matches, "out").unwrap_or("report"));
    let mut entries = Vec::new();
    for file in files(&given)? {
        entries.push(Entry::of(matches, file)?);
    }
    check_names(&entries)?;
    std::fs::create_dir_all(out)
        .map_err(|error| CliError::new(format!("cannot make the folder {}: {error}", out.display())))?;
    let runner = Runner {
        out,
        flags: key_flags(matches),
        count: *matches.get_one("count").unwrap_or(&1000),
        picture: text(matches, "pictures").unwrap_or("png"),
        fresh: matches.get_flag("fresh"),
        signals: Signals::listen(Interrupt::Stop)?,
    };
    let mut rows: Vec<Row> = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        let row = runner.row(entry).await?;
        note!("{:>3}/{} {}", place + 1, entries.len(), row.line());
        rows.push(row);
        // After each one, so that an interrupted report is one too.
        write_atomically(&out.join("report.md"), page(&rows).as_bytes())?;
    }
    note!("wrote {}", out.join("report.md").display());
    if matches.get_flag("json") {
        outln!("{}", serde_json::json!({ "rows": rows }))?;
    }
    match rows.iter().filter(|row| row.has_failed()).count() {
        0 => Ok(()),
        failed => Err(CliError::new(format!("{failed} of {} configurations failed; their rows say why", rows.len()))
            .with_hint(format!("the logs are in {}; the others are not run again", out.display()))),
    }
}

/// The configuration files that were named: files as they are, the YAML files of folders in the order of their names.
fn files(given: &[&String]) -> Result<Vec<PathBuf>, CliError> {
    let default = DEFAULT_FOLDER.to_owned();
    let given = if given.is_empty() { vec![&default] } else { given.to_vec() };
    let mut found = Vec::new();
    for name in given {
        let path = PathBuf::from(name);
        if !path.is_dir() {
            found.push(path);
            continue;
        }
        let cannot_read = |error: std::io::Error| CliError::usage(format!("cannot read the folder {name}: {error}"));
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(cannot_read)? {
            let path = entry.map_err(cannot_read)?.path();
            if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                inside.push(path);
            }
        }
        if inside.is_empty() {
            return Err(CliError::usage(format!("the folder {name} holds no .yaml file"))
                .with_hint("name configuration files, or a folder of them"));
        }
        inside.sort();
        found.extend(inside);
    }
    Ok(found)
}

/// Names of runs, pictures and logs come from the files' names.
fn check_names(entries: &[Entry]) -> Result<(), CliError> {
    let mut names = BTreeSet::new();
    for entry in entries {
        if !names.insert(&entry.name) {
            return Err(CliError::usage(format!("two configurations have the name {}", entry.name))
                .with_hint("rename one of the files, or report on them apart"));
        }
    }
    Ok(())
}

/// One configuration of the list.
struct Entry {
    file: PathBuf,
    /// Of its row, run, picture and log.
    name: String,
    /// The first comment of the file.
    about: String,
    /// The configuration, or why it is none.
    config: Result<Box<Config>, String>,
}

impl Entry {
    fn of(matches: &ArgMatches, file: PathBuf) -> Result<Self, CliError> {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let content = std::fs::read_to_string(&file).unwrap_or_default();
        let comment = content.lines().find_map(|line| line.strip_prefix('#'));
        let about = comment.unwrap_or_default().trim().to_owned();
        let run = [("run_id", run_id(&name)), ("model_path_save", checkpoint(&name).display().to_string())];
        let config = settings::load_to_show(matches, Some(&file.to_string_lossy()), None, &run);
        let config = config.map(Box::new).map_err(|failure| failure.to_string());
        Ok(Self { file, name, about, config })
    }
}

fn run_id(name: &str) -> String {
    format!("report-{name}")
}

fn checkpoint(name: &str) -> PathBuf {
    Path::new(RUNS_FOLDER).join(format!("{}.safetensors", run_id(name)))
}

/// What all configurations of a report have in common.
struct Runner<'a> {
    out: &'a Path,
    /// Keys given on the command line, for every configuration.
    flags: Vec<(String, String)>,
    /// Held-out samples.
    count: u64,
    /// Extension of the pictures.
    picture: &'a str,
    fresh: bool,
    signals: Signals,
}

impl Runner<'_> {
    /// The row of one configuration: as it was stored, or trained and evaluated now. Only a stop ends the report.
    async fn row(&self, entry: &Entry) -> Result<Row, CliError> {
        let config = match &entry.config {
            Ok(config) => config,
            Err(why) => return Ok(self.row_of(entry, Outcome::Failed(why.clone()))),
        };
        let digest = self.digest(config);
        if !self.fresh
            && let Some(figures) = self.stored(&entry.name, &digest)
        {
            return Ok(self.row_of(entry, Outcome::Done { figures: Box::new(figures), again: false }));
        }
        note!("        {} …", entry.name);
        match self.measured(entry, &digest).await {
            Ok(figures) => Ok(self.row_of(entry, Outcome::Done { figures: Box::new(figures), again: true })),
            Err(_) if self.signals.stopped() => Err(CliError::new("the report was stopped")
                .with_hint("repeat the command: what is finished is not run again")),
            Err(failure) => Ok(self.row_of(entry, Outcome::Failed(failure.to_string()))),
        }
    }

    fn row_of(&self, entry: &Entry, outcome: Outcome) -> Row {
        let recipe = entry.config.as_ref().ok().map(|config| config.recipe.clone());
        Row { name: entry.name.clone(), about: entry.about.clone(), recipe, outcome }
    }

    /// What decides the figures: another one is another row.
    fn digest(&self, config: &Config) -> String {
        let text = format!("{} {} {}", config.digest_text(), self.count, env!("CARGO_PKG_VERSION"));
        let dataset = config.run.dataset_file.as_ref().and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
        let loaded = config.run.model_path_load.as_ref().and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
        let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 report");
        for part in [text.as_bytes(), &dataset, &loaded] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().to_hex().to_string()
    }

    fn figures_file(&self, name: &str) -> PathBuf {
        self.out.join(format!("{name}.json"))
    }

    /// The figures of an earlier report, where they are of the same configuration and their picture is still there.
    fn stored(&self, name: &str, digest: &str) -> Option<Figures> {
        let text = std::fs::read_to_string(self.figures_file(name)).ok()?;
        let figures: Figures = serde_json::from_str(&text).ok()?;
        let is_whole = figures.digest == digest && self.out.join(&figures.picture).exists();
        is_whole.then_some(figures)
    }

    /// Trains and evaluates.
    async fn measured(&self, entry: &Entry, digest: &str) -> Result<Figures, CliError> {
        let log_path = self.out.join(format!("{}.log", entry.name));
        let log = File::create(&log_path)
            .map_err(|error| CliError::new(format!("cannot write {}: {error}", log_path.display())))?;
        // An earlier attempt of this name, whatever it was trained on.
        let folder = Path::new(RUNS_FOLDER).join(run_id(&entry.name));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let started = Instant::now();
        let mut launch = vec!["launch".to_owned(), "--no-eval".to_owned()];
        launch.extend(["--config".to_owned(), entry.file.to_string_lossy().into_owned()]);
        let checkpoint = checkpoint(&entry.name).display().to_string();
        let own = [("run_id", run_id(&entry.name)), ("model_path_save", checkpoint.clone())];
        for (key, value) in self.flags.iter().map(|(key, value)| (key.as_str(), value)) {
            if own.iter().all(|(name, _)| *name != key) {
                launch.push(format!("--{key}={value}"));
            }
        }
        launch.extend(own.map(|(key, value)| format!("--{key}={value}")));
        self.child(&launch, &log, Stdio::null(), &log_path).await?;
        let train_seconds = started.elapsed().as_secs_f64();

        let picture = format!("{}.{}", entry.name, self.picture);
        let metrics_path = self.out.join(format!("{}.eval.json", entry.name));
        let metrics_file = File::create(&metrics_path)?;
        let mut eval: Vec<String> =
            ["eval", "--json", "--checkpoint", &checkpoint, "--count"].map(str::to_owned).to_vec();
        eval.extend([self.count.to_string(), "--plot".to_owned(), self.out.join(&picture).display().to_string()]);
        let run = entry.config.as_ref().ok().map(|config| &config.run);
        match run.and_then(|run| run.dataset_eval_file.as_ref().or(run.dataset_file.as_ref())) {
            Some(file) => eval.extend(["--dataset".to_owned(), file.display().to_string()]),
            None => eval.push("--ablation".to_owned()),
        }
        let outcome = self.child(&eval, &log, metrics_file.into(), &log_path).await;
        let metrics = std::fs::read_to_string(&metrics_path);
        // It is part of the figures from here on.
        let _ = std::fs::remove_file(&metrics_path);
        outcome?;
        let metrics = serde_json::from_str(&metrics?)
            .map_err(|error| CliError::new(format!("its evaluation cannot be read: {error}")))?;
        let eval_seconds = started.elapsed().as_secs_f64() - train_seconds;
        let figures = Figures { digest: digest.to_owned(), metrics, picture, train_seconds, eval_seconds };
        let stored = serde_json::to_string_pretty(&figures).map_err(|error| CliError::new(error.to_string()))?;
        write_atomically(&self.figures_file(&entry.name), stored.as_bytes())?;
        Ok(figures)
    }

    /// Runs this program with `arguments` to its end; its stderr goes to `log`.
    async fn child(&self, arguments: &[String], log: &File, stdout: Stdio, log_path: &Path) -> Result<(), CliError> {
        let mut command = this_program()?;
        command.args(arguments).stdout(stdout).stderr(log.try_clone()?);
        let mut child = ChildGuard::spawn(command)?;
        let early = tokio::select! {
            status = child.wait() => Some(status?),
            () = self.signals.clone().stop() => None,
        };
        let status = match early {
            Some(status) => status,
            None => {
                child.signal(Signal::TERM);
                child.wait().await?
            }
        };
        if status.success() {
            return Ok(());
        }
        let why = process::last_error(log_path).unwrap_or_else(|| format!("{} ended: {status}", arguments[0]));
        Err(CliError::new(why))
    }
}
