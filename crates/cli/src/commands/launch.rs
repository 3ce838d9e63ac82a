//! `numalign launch`: coordinator and workers on this machine, then the evaluation of the result.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::{CollectiveChoice, Config};
use numalign_dashboard::HttpAddress;
use numalign_data::{Domain, SampleStream};
use numalign_engine::Purpose;
use numalign_model::load::name::ModelName;

use crate::args::text;
use crate::checkpointed::engine_of;
use crate::console::note;
use crate::error::CliError;
use crate::evaluation::evaluate_with_progress;
use crate::evaluation::plot::{Course, Subject, draw};
use crate::evaluation::report::Report;
use crate::launcher::chaos::Chaos;
use crate::launcher::child::die_with_parent;
use crate::launcher::signals::{Interrupt, Signals};
use crate::launcher::{JoinToken, Launcher};
use crate::output::outln;
use crate::watching::{EventWriter, FinishedEvents, Page};
use crate::{credentials, logging, process, settings};

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    logging::start("info", false);
    die_with_parent()?;
    let file = text(matches, "config");
    let stage = text(matches, "stage-name");
    let chaos = text(matches, "chaos").map(Chaos::parse).transpose()?;
    let runtime = process::runtime()?;
    let result = runtime.block_on(async {
        let signals = Signals::listen(Interrupt::Stop)?;
        if stage == Some("all") {
            return all(matches, file, &signals, chaos.as_ref()).await;
        }
        let config = settings::load_for_launch(matches, file, stage, &[])?;
        let page = open_page(matches, &config)?;
        let result = one(matches, &config, &signals, chaos.as_ref(), page.as_ref()).await;
        end_page(page, &result).await;
        result
    });
    // What the page still reads from a slow disk is not waited for.
    runtime.shutdown_background();
    result
}

async fn one(
    matches: &ArgMatches,
    config: &Config,
    signals: &Signals,
    chaos: Option<&Chaos>,
    page: Option<&Page>,
) -> Result<(), CliError> {
    let events = train(matches, config, signals, chaos, page).await?;
    match finish(matches, config, page, events).await? {
        Some(report) => report.print(matches.get_flag("json")),
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
    let mut whole = settings::load_for_launch(matches, file, None, &[])?;
    if file.is_none() && whole.run.run_id == whole.recipe.stage.to_string() {
        // Nobody named the run: it is not one stage's.
        whole = settings::load_for_launch(matches, file, None, &[("run_id", "all".to_owned())])?;
    }
    let save = whole.run.model_path_save.clone();
    let mut configs: Vec<Config> = Vec::new();
    // Every stage's configuration is checked before the first one trains.
    for stage in ["nn", "text", "mixed"] {
        let mut more = vec![
            ("run_id", format!("{}-{stage}", whole.run.run_id)),
            ("model_path_save", beside(&save, stage).display().to_string()),
        ];
        if let Some(last) = configs.last() {
            more.push(("model_path_load", last.run.model_path_save.display().to_string()));
        }
        configs.push(settings::load_for_launch(matches, file, Some(stage), &more)?);
    }
    let page = open_page(matches, &whole)?;
    let result = chain(matches, &configs, &save, signals, chaos, page.as_ref()).await;
    end_page(page, &result).await;
    result
}

/// Trains the stages one after another.
async fn chain(
    matches: &ArgMatches,
    configs: &[Config],
    save: &Path,
    signals: &Signals,
    chaos: Option<&Chaos>,
    page: Option<&Page>,
) -> Result<(), CliError> {
    let json = matches.get_flag("json");
    let mut results = serde_json::Map::new();
    let mut printed = Ok(());
    for config in configs {
        note!("stage {}", config.recipe.stage);
        let events = train(matches, config, signals, chaos, page).await?;
        match finish(matches, config, page, events).await? {
            Some(report) if json => {
                results.insert(config.recipe.stage.to_string(), serde_json::json!(report));
            }
            // The stages that follow do not need it.
            Some(report) => printed = printed.and(report.print(false)),
            None => {}
        }
    }
    if !results.is_empty() {
        printed = outln!("{}", serde_json::Value::Object(results));
    }
    if let Some(last) = configs.last() {
        let bytes = std::fs::read(&last.run.model_path_save)?;
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
    config: &Config,
    signals: &Signals,
    chaos: Option<&Chaos>,
    page: Option<&Page>,
) -> Result<Option<FinishedEvents>, CliError> {
    let token = JoinToken::or_random(credentials::token(matches)?)?;
    // A name that means nothing is found out before any process starts.
    ModelName::parse(&config.recipe.model_name)?;
    check_nccl(config)?;
    if let Some(page) = page {
        page.show(config);
    }
    let events = EventWriter::start(config);
    let launcher = Launcher::start(config.clone(), token, signals.clone(), chaos.cloned(), page.cloned())?;
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

/// The closing evaluation, on another thread: this one listens to signals.
async fn finish(
    matches: &ArgMatches,
    config: &Config,
    page: Option<&Page>,
    events: Option<FinishedEvents>,
) -> Result<Option<Report>, CliError> {
    if matches.get_flag("no-eval") {
        if let Some(events) = events {
            events.close(config.recipe.total_steps(), None);
        }
        return Ok(None);
    }
    if let Some(page) = page {
        page.closing("evaluating", "the training is over; the result is evaluated on held-out samples");
    }
    let config = config.clone();
    let evaluation = tokio::task::spawn_blocking(move || evaluated(&config, events));
    evaluation.await.map_err(|error| CliError::new(format!("the evaluation failed: {error}")))?.map(Some)
}

fn evaluated(config: &Config, events: Option<FinishedEvents>) -> Result<Report, CliError> {
    let path = &config.run.model_path_save;
    let checkpoint = Checkpoint::read(path)?;
    let mut engine = engine_of(&checkpoint, path, None, config.run.device, Purpose::Predict)?;
    let stream = SampleStream::generated(&config.recipe, Domain::Eval)?;
    let evaluation = evaluate_with_progress(&mut engine, &checkpoint.state, &stream, config.run.eval_count)?;
    if let Some(events) = events {
        let subject = Subject { checkpoint: path, without_model: None };
        let picture = draw(engine.recipe(), &evaluation, &Course::of(path), subject);
        events.close(checkpoint.state.step(), Some(&picture));
    }
    Ok(Report::of(engine.recipe(), &evaluation, &stream))
}
