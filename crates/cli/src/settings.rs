//! From the command line to a validated configuration: file (or the run that is continued), then environment, then flags.

use std::path::Path;
use std::time::Duration;

use clap::ArgMatches;
use numalign_checkpoint::{CONFIGURATION, Checkpoint, RunFolder};
use numalign_config::{Config, ConfigErrors, DeviceChoice, RUNS_FOLDER, Source, Stage, draft, recipe_to_yaml, resolve};
use numalign_coordinator::OpenedFiles;
use numalign_gpu::driver::visible_gpus;

use crate::args::{key_flags, text};
use crate::console::note;
use crate::dataset_settings::resolve_with_dataset;
use crate::error::CliError;

/// The configuration of a command; `stage` overrides where given.
pub fn load(matches: &ArgMatches, file: Option<&str>, stage: Option<&str>) -> Result<Config, CliError> {
    resolve_sources(sources(matches, file, stage, &[])?)
}

/// The configuration of a run, and those of its data files that were read to work it out.
#[derive(Clone)]
pub struct RunSettings {
    pub config: Config,
    pub files: OpenedFiles,
}

impl From<Config> for RunSettings {
    fn from(config: Config) -> Self {
        Self { config, files: OpenedFiles::default() }
    }
}

/// [`load`] for a run: with what follows from its dataset.
pub fn load_for_run(matches: &ArgMatches, file: Option<&str>, stage: Option<&str>) -> Result<RunSettings, CliError> {
    let (yaml, env, flags) = sources(matches, file, stage, &[])?;
    resolve_with_dataset(yaml, env, flags, not_valid)
}

/// [`load`] for a run on this machine: with further keys set as if by flags, and `workers: auto` counted.
pub fn load_for_launch(
    matches: &ArgMatches,
    file: Option<&str>,
    stage: Option<&str>,
    more: &[(&str, String)],
) -> Result<RunSettings, CliError> {
    load_with(matches, file, stage, more, |(yaml, env, flags)| resolve_with_dataset(yaml, env, flags, not_valid))
}

/// [`load_for_launch`] without a look at the dataset, which need not be there: to show a configuration, not to run it.
pub fn load_to_show(
    matches: &ArgMatches,
    file: Option<&str>,
    stage: Option<&str>,
    more: &[(&str, String)],
) -> Result<Config, CliError> {
    let settings = load_with(matches, file, stage, more, |sources| Ok(resolve_sources(sources)?.into()))?;
    Ok(settings.config)
}

/// Whether somebody names the run: the file by its own name, else `run_id` in the environment or a flag.
pub fn is_run_named(matches: &ArgMatches, file: Option<&str>) -> Result<bool, CliError> {
    let (yaml, env, flags) = sources(matches, file, None, &[])?;
    Ok(yaml.iter().chain([&env, &flags]).any(|source| source.is_set("run_id")) || file.is_some())
}

fn load_with(
    matches: &ArgMatches,
    file: Option<&str>,
    stage: Option<&str>,
    more: &[(&str, String)],
    resolve_sources: impl Fn(Sources) -> Result<RunSettings, CliError>,
) -> Result<RunSettings, CliError> {
    let (mut yaml, mut env, mut flags) = sources(matches, file, stage, more)?;
    let all = yaml.iter_mut().chain([&mut env, &mut flags]);
    let (mut is_auto, mut gpus) = (false, 0);
    for source in all {
        if source.is_set("workers") {
            // Counting loads the driver: only where somebody asks for it.
            is_auto = source.fill_in_auto("workers", || {
                gpus = visible_gpus();
                gpus.max(1)
            });
        }
    }
    let mut settings = resolve_sources((yaml, env, flags))?;
    let config = &mut settings.config;
    if is_auto {
        config.run.workers = (config.run.workers / config.run.devices_per_worker).max(1);
        config.check().map_err(|errors| CliError::usage(format!("the configuration is not valid\n{errors}")))?;
        note!("{}", auto_workers(config.run.workers, config.run.devices_per_worker, gpus));
        let (workers, parts) = (config.run.workers, config.recipe.micro_batches());
        if workers > parts {
            note!(
                "{} of them will be spares: a step has {parts} micro-batches; a larger batch_size or a smaller micro_batch_size gives them work",
                workers - parts
            );
        }
    }
    Ok(settings)
}

/// What `workers: auto` came to.
fn auto_workers(workers: usize, devices_per_worker: usize, gpus: usize) -> String {
    match (gpus, devices_per_worker) {
        (0, _) => "workers: auto is 1: no GPU is visible".to_owned(),
        (_, 1) => format!("workers: auto is {workers}, one for each visible GPU"),
        (_, each) => format!("workers: auto is {workers}: {gpus} GPUs are visible, {each} for each worker"),
    }
}

type Sources = (Option<Source>, Source, Source);

/// File, environment and flags, each on its own.
fn sources(
    matches: &ArgMatches,
    file: Option<&str>,
    stage: Option<&str>,
    more: &[(&str, String)],
) -> Result<Sources, CliError> {
    let mut flags = key_flags(matches);
    if let Some(stage) = stage {
        if flags.iter().any(|(key, value)| key == "stage" && value != stage) {
            return Err(CliError::usage(format!("the stage is given twice: `{stage}` and --stage")));
        }
        flags.retain(|(key, _)| key != "stage");
        flags.push(("stage".to_owned(), stage.to_owned()));
    }
    for (key, value) in more {
        flags.retain(|(known, _)| known != key);
        flags.push(((*key).to_owned(), value.clone()));
    }
    let (env, flags) = (Source::from_env_os(std::env::vars_os()), Source::from_flags(flags));
    let yaml = match file {
        Some(file) => Some(Source::from_yaml_file(Path::new(file))),
        None => of_resumed_run(&env, &flags)?,
    };
    Ok((yaml, env, flags))
}

/// The settings of the run that is to be continued, where no file gives them: as its folder has them, else the recipe
/// of its checkpoint.
fn of_resumed_run(env: &Source, flags: &Source) -> Result<Option<Source>, CliError> {
    let text = |key: &str| flags.text(key).or_else(|| env.text(key));
    let Some(resume) = text("resume") else { return Ok(None) };
    let run_id = text("run_id").or_else(|| text("stage")).unwrap_or_else(|| Stage::Nn.to_string());
    let folder = Path::new(RUNS_FOLDER).join(&run_id);
    let kept = folder.join(CONFIGURATION);
    let checkpoint = match resume.as_str() {
        "auto" if kept.exists() => None,
        "auto" if folder.is_dir() => RunFolder::open(&folder)?.newest_valid()?.0,
        path if Path::new(path).is_file() => Some((path.into(), Checkpoint::read(Path::new(path))?)),
        // Whoever starts the run says what is wrong with it.
        _ => return Ok(None),
    };
    let source = match checkpoint {
        Some((path, checkpoint)) => {
            let yaml = format!("{}run_id: {run_id:?}\n", recipe_to_yaml(&checkpoint.identity.recipe));
            Source::from_yaml_text(&path, &yaml)
        }
        None if kept.exists() => Source::from_yaml_file(&kept),
        None => return Ok(None),
    };
    // The settings of one stage do not fit another; the resume itself says that the stages differ.
    let is_other_stage = text("stage").is_some_and(|stage| source.text("stage").as_ref() != Some(&stage));
    Ok((!is_other_stage).then_some(source))
}

fn resolve_sources((mut yaml, mut env, mut flags): Sources) -> Result<Config, CliError> {
    let all: Vec<Source> = yaml.iter().chain([&env, &flags]).cloned().collect();
    if draft(&all).is_some_and(|config| config.run.dataset_file.is_some()) {
        // What `auto` comes to is known once the file is read.
        for source in yaml.iter_mut().chain([&mut env, &mut flags]) {
            source.forget_auto("min_val");
            source.forget_auto("max_val");
        }
    }
    resolve(yaml, env, flags).map_err(not_valid)
}

fn not_valid(errors: ConfigErrors) -> CliError {
    CliError::usage(format!("the configuration is not valid\n{errors}"))
        .with_hint("`numalign launch --help` lists every key with its default")
}

/// `coordinator_wait` as the environment or the default has it, for a worker that has not met its coordinator yet.
pub fn coordinator_wait() -> Result<Duration, CliError> {
    const NAME: &str = "NUMALIGN_COORDINATOR_WAIT";
    let set = std::env::vars_os().filter(|(name, _)| name == NAME);
    let config = resolve(None, Source::from_env_os(set), Source::from_flags::<&str>([])).map_err(CliError::usage)?;
    Ok(config.run.coordinator_wait)
}

/// A device named on the command line.
pub fn device(matches: &ArgMatches) -> Result<Option<DeviceChoice>, CliError> {
    text(matches, "device").map(parse_device).transpose()
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub fn parse_device(name: &str) -> Result<DeviceChoice, CliError> {
    numalign_config::device(name).map_err(|_| {
        CliError::usage(format!("device `{name}` is not known")).with_hint("devices are auto, cpu, cuda and cuda:N")
    })
}
