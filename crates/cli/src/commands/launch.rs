//! `numalign launch`: coordinator and workers on this machine, then the evaluation of the result.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{CollectiveChoice, Config, DeviceChoice};
use numalign_dashboard::HttpAddress;
use numalign_engine::Purpose;
use numalign_model::LoadOptions;
use numalign_model::load::hub::is_offline;
use numalign_model::load::name::ModelName;

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::console::note;
use crate::error::CliError;
use crate::evaluation::closing::{advice, next_command};
use crate::evaluation::held_out::HeldOut;
use crate::evaluation::plot::{Course, Subject, draw};
use crate::evaluation::report::Report;
use crate::evaluation::{evaluate_with_progress, without_model};
use crate::launcher::chaos::Chaos;
use crate::launcher::child::die_with_parent;
use crate::launcher::signals::{Interrupt, Signals};
use crate::launcher::{JoinToken, Launcher};
use crate::output::outln;
use crate::settings::RunSettings;
use crate::watching::{EventWriter, FinishedEvents, Page};
use crate::{clock, credentials, logging, process, settings};

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    logging::start("info", false);
    clock::check()?;
    die_with_parent()?;
    let file = text(matches, "config");
    let stage = text(matches, "stage-name");
    let chaos = text(matches, "chaos").map(Chaos::parse).transpose()?;
    let runtime = process::runtime()?;
    // Before signals are listened to: until then, Ctrl-C ends a process that reads a large file.
    let single = match stage {
        Some("all") => None,
        _ => Some(settings::load_for_launch(matches, file, stage, &[])?),
    };
    let result = runtime.block_on(async {
        let signals = Signals::listen(Interrupt::Stop)?;
        let Some(run) = single else {
            return all(matches, file, &signals, chaos.as_ref()).await;
        };
        let page = open_page(matches, &run.config)?;
        let result = one(matches, &run, &signals, chaos.as_ref(), page.as_ref()).await;
        end_page(page, &result).await;
        result
    });
    // Neither an evaluation that was stopped nor what the page still reads from a slow disk is waited for.
    runtime.shutdown_background();
    result
}

async fn one(
    matches: &ArgMatches,
    run: &RunSettings,
    signals: &Signals,
    chaos: Option<&Chaos>,
    page: Option<&Page>,
) -> Result<(), CliError> {
    let events = train(matches, run, signals, chaos, page).await?;
    match finish(matches, run, signals, page, events).await? {
        Some(closing) => closing.print(matches),
        None => Ok(()),
    }
}

/// On loopback, unless the configuration says otherwise.
fn open_page(matches: &ArgMatches, config: &Config) -> Result<Option<Page>, CliError> {
    Page::open(config, HttpAddress::loopback(), credentials::token(matches)?, None)
}

async fn end_page(page: Option<Page>, result: &Result<(), CliError>) {
    if let Some(page) = page {
        page.end(result.is_ok()).await;
    }
}

/// nn, then text, then mixed, each from the last one's projectors.
async fn all(
    matches: &ArgMatches,
    file: Option<&str>,
    signals: &Signals,
    chaos: Option<&Chaos>,
) -> Result<(), CliError> {
    // A run that nobody names is not one stage's.
    let named = if settings::is_run_named(matches, file)? { vec![] } else { vec![("run_id", "all".to_owned())] };
    let whole = settings::load_for_launch(matches, file, None, &named)?.config;
    let save = whole.run.model_path_save.clone();
    let mut runs: Vec<RunSettings> = Vec::new();
    // Every stage's configuration is checked before the first one trains.
    for stage in ["nn", "text", "mixed"] {
        let mut more = vec![
            ("run_id", format!("{}-{stage}", whole.run.run_id)),
            ("model_path_save", beside(&save, stage).display().to_string()),
        ];
        if let Some(last) = runs.last() {
            more.push(("model_path_load", last.config.run.model_path_save.display().to_string()));
        }
        runs.push(settings::load_for_launch(matches, file, Some(stage), &more)?);
    }
    let page = open_page(matches, &whole)?;
    let result = chain(matches, &runs, &save, signals, chaos, page.as_ref()).await;
    end_page(page, &result).await;
    result
}

/// Trains the stages one after another.
async fn chain(
    matches: &ArgMatches,
    runs: &[RunSettings],
    save: &Path,
    signals: &Signals,
    chaos: Option<&Chaos>,
    page: Option<&Page>,
) -> Result<(), CliError> {
    let json = matches.get_flag("json");
    let mut results = serde_json::Map::new();
    let mut printed = Ok(());
    for run in runs {
        let stage = run.config.recipe.stage;
        note!("stage {stage}");
        let events = train(matches, run, signals, chaos, page).await?;
        match finish(matches, run, signals, page, events).await? {
            Some(closing) if json => {
                results.insert(stage.to_string(), serde_json::json!(closing.report));
            }
            // The stages that follow do not need it.
            Some(closing) => printed = printed.and(closing.print(matches)),
            None => {}
        }
    }
    if !results.is_empty() {
        printed = outln!("{}", serde_json::Value::Object(results));
    }
    if let Some(last) = runs.last() {
        let bytes = std::fs::read(&last.config.run.model_path_save)?;
        numalign_checkpoint::write_atomically(save, &bytes)?;
        note!("wrote {}", save.display());
    }
    printed
}

/// `chk/run.safetensors` → `chk/run-nn.safetensors`
fn beside(path: &Path, stage: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or_else(String::new, |extension| format!(".{}", extension.to_string_lossy()));
    path.with_file_name(format!("{stem}-{stage}{extension}"))
}

async fn train(
    matches: &ArgMatches,
    run: &RunSettings,
    signals: &Signals,
    chaos: Option<&Chaos>,
    page: Option<&Page>,
) -> Result<Option<FinishedEvents>, CliError> {
    let config = &run.config;
    let token = JoinToken::or_random(credentials::token(matches)?)?;
    // A name that means nothing is found out before any process starts.
    let name = ModelName::parse(&config.recipe.model_name)?;
    if matches!(name, ModelName::Hub(_)) && !name.is_at_hand() && is_offline() {
        // Says so once, where every worker would.
        numalign_model::load::configuration(&config.recipe.model_name)?;
    }
    check_nccl(config)?;
    check_base(config)?;
    if let Some(page) = page {
        page.show(config);
    }
    let events = EventWriter::start(config);
    let launcher = Launcher::start(run, token, signals.clone(), chaos.cloned(), page.cloned())?;
    let result = launcher.wait().await;
    let events = match events {
        Some(events) => events.finish().await,
        None => None,
    };
    result.map(|()| events)
}

/// All workers are here: what they will miss is known before the first one starts.
fn check_nccl(config: &Config) -> Result<(), CliError> {
    if config.run.collective != CollectiveChoice::Nccl {
        return Ok(());
    }
    let ability = numalign_worker::nccl::ability_on(0, false);
    ability.map(|_| ()).map_err(|error| {
        CliError::new(format!("collective: nccl cannot be used: {error}"))
            .with_hint(format!("{}; or use collective: auto or grpc", error.hint()))
    })
}

/// Projectors fit one base only. Where the names differ, the models may be the same nevertheless.
fn check_base(config: &Config) -> Result<(), CliError> {
    let Some(path) = &config.run.model_path_load else { return Ok(()) };
    let loaded = Checkpoint::read(path)?.identity;
    let (name, stored) = (&config.recipe.model_name, &loaded.recipe.model_name);
    if name == stored {
        return Ok(());
    }
    let options = LoadOptions { dtype: loaded.recipe.dtype, ..LoadOptions::new(DeviceChoice::Cpu, false) };
    let found = numalign_model::load_with(name, options)?.lm.fingerprint().to_hex().to_string();
    if found == loaded.base_fingerprint {
        return Ok(());
    }
    Err(CliError::new(format!(
        "{} belongs to the model {stored} (fingerprint {:.16}), and model_name is {name} (fingerprint {found:.16})",
        path.display(),
        loaded.base_fingerprint
    ))
    .with_hint(format!(
        "a projector is valid for one base only: set model_name to {stored}, or leave model_path_load out"
    )))
}

/// What is said at the end.
struct Closing {
    report: Report,
    /// What to try where the result is no better than a constant.
    advice: Option<String>,
    /// The command that comes next.
    next: String,
}

impl Closing {
    fn print(&self, matches: &ArgMatches) -> Result<(), CliError> {
        self.report.print(matches.get_flag("json"), matches.get_flag("details"))?;
        if let Some(advice) = &self.advice {
            note!("hint: {advice}");
        }
        note!("{}", self.next);
        Ok(())
    }
}

/// The closing evaluation, on another thread: this one listens to signals.
async fn finish(
    matches: &ArgMatches,
    run: &RunSettings,
    signals: &Signals,
    page: Option<&Page>,
    events: Option<FinishedEvents>,
) -> Result<Option<Closing>, CliError> {
    if matches.get_flag("no-eval") {
        if let Some(events) = events {
            events.close(run.config.recipe.total_steps(), None);
        }
        return Ok(None);
    }
    if let Some(page) = page {
        page.closing("evaluating", "the training is over; the result is evaluated on held-out samples");
    }
    let path = run.config.run.model_path_save.clone();
    let run = run.clone();
    let evaluation = tokio::task::spawn_blocking(move || evaluated(&run, events));
    tokio::select! {
        evaluation = evaluation => {
            evaluation.map_err(|error| CliError::new(format!("the evaluation failed: {error}")))?
        }
        () = signals.clone().stop() => Err(CliError::stopped(format!(
            "the evaluation was stopped; the run is complete: {} holds the result",
            path.display()
        ))
        .with_hint(format!("evaluate it with: numalign eval --checkpoint {}", path.display()))),
    }
}

/// `None` where no row of the dataset is held out.
fn evaluated(run: &RunSettings, events: Option<FinishedEvents>) -> Result<Option<Closing>, CliError> {
    let config = &run.config;
    let path = &config.run.model_path_save;
    let Some((HeldOut { stream, count }, training)) = HeldOut::of_run(run)? else {
        if let Some(events) = events {
            events.close(config.recipe.total_steps(), None);
        }
        return Ok(None);
    };
    let checkpoint = Checkpoint::read(path)?;
    let mut engine = engine_of(&checkpoint, path, None, config.run.device, Purpose::Predict)?;
    let evaluation = evaluate_with_progress(&mut engine, &checkpoint.state, &stream, count)?;
    let mut report = Report::of(engine.recipe(), &evaluation, &stream);
    let advice = advice(engine.recipe(), engine.lm().layers(), &report.metrics);
    report.ablation = match without_model(engine, training, &stream, count) {
        Ok(ablation) => Some(ablation),
        // The result does not depend on it.
        Err(error) => {
            note!("the same without the language model could not be measured: {error}");
            None
        }
    };
    if let Some(events) = events {
        let subject = Subject { checkpoint: path, without_model: report.ablation.as_ref().map(|it| it.metrics.mae) };
        let picture = draw(&checkpoint.identity.recipe, &evaluation, &Course::of(path), subject);
        events.close(checkpoint.state.step(), Some(&picture));
    }
    Ok(Some(Closing { advice, next: next_command(path, &stream.sample(0).input), report }))
}
