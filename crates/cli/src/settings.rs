//! From the command line to a validated configuration: file, then environment, then flags. Used by the commands that
//! take configuration keys.

use std::path::Path;
use std::time::Duration;

use clap::ArgMatches;
use numalign_config::{Config, DeviceChoice, Layer, resolve};

use crate::args::{key_flags, text};
use crate::failure::Failure;

/// The configuration of a command; `stage` overrides where given.
pub fn load(matches: &ArgMatches, file: Option<&str>, stage: Option<&str>) -> Result<Config, Failure> {
    load_with(matches, file, stage, &[])
}

/// [`load`], with further keys set as if by flags.
pub fn load_with(
    matches: &ArgMatches,
    file: Option<&str>,
    stage: Option<&str>,
    more: &[(&str, String)],
) -> Result<Config, Failure> {
    let mut flags = key_flags(matches);
    if let Some(stage) = stage {
        if flags.iter().any(|(key, value)| key == "stage" && value != stage) {
            return Err(Failure::usage(format!("the stage is given twice: `{stage}` and --stage")));
        }
        flags.retain(|(key, _)| key != "stage");
        flags.push(("stage".to_owned(), stage.to_owned()));
    }
    for (key, value) in more {
        flags.retain(|(known, _)| known != key);
        flags.push(((*key).to_owned(), value.clone()));
    }
    let yaml = file.map(|file| Layer::from_yaml_file(Path::new(file)));
    resolve(yaml, Layer::from_env_os(std::env::vars_os()), Layer::from_flags(flags)).map_err(|errors| {
        Failure::usage(format!("the configuration is not valid\n{errors}"))
            .with_hint("`numalign launch --help` lists every key with its default")
    })
}

/// `coordinator_wait` as the environment or the default has it, for a worker that has not met its coordinator yet.
pub fn coordinator_wait() -> Result<Duration, Failure> {
    const NAME: &str = "NUMALIGN_COORDINATOR_WAIT";
    let set = std::env::vars_os().filter(|(name, _)| name == NAME);
    let config = resolve(None, Layer::from_env_os(set), Layer::from_flags::<&str>([])).map_err(Failure::usage)?;
    Ok(config.run.coordinator_wait)
}

/// A device named on the command line.
pub fn device(matches: &ArgMatches) -> Result<Option<DeviceChoice>, Failure> {
    text(matches, "device").map(parse_device).transpose()
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
pub fn parse_device(name: &str) -> Result<DeviceChoice, Failure> {
    match name {
        "auto" => return Ok(DeviceChoice::Auto),
        "cpu" => return Ok(DeviceChoice::Cpu),
        "cuda" => return Ok(DeviceChoice::Cuda(None)),
        _ => {}
    }
    match name.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
        Some(index) => Ok(DeviceChoice::Cuda(Some(index))),
        None => {
            Err(Failure::usage(format!("device `{name}` is not known"))
                .with_hint("devices are auto, cpu, cuda and cuda:N"))
        }
    }
}
