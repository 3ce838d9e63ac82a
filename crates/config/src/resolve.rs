//! Sources become one validated [`Config`], or all the reasons why not; and a configuration that is typed already is
//! checked by the same rules.

use std::path::PathBuf;

use crate::config::Config;
use crate::error::{ConfigError, ConfigErrors, ParseError};
use crate::key::Part;
use crate::keys::{Recipe, Settings};
use crate::origins::{Check, Origins};
use crate::parse;
use crate::raw::Raw;
use crate::rules;
use crate::source::{Origin, Source};
use crate::tap;

/// Puts the sources together: flags win over the environment, which wins over the file; what is still missing gets its
/// default.
///
/// # Errors
/// Every reason why not, not only the first.
pub fn resolve(yaml: Option<Source>, env: Source, flags: Source) -> Result<Config, ConfigErrors> {
    resolve_over(Vec::new(), yaml, env, flags)
}

/// As [`resolve`], over weaker sources, weakest first: what a program worked out where nobody set a key.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_over(
    weaker: Vec<Source>,
    yaml: Option<Source>,
    env: Source,
    flags: Source,
) -> Result<Config, ConfigErrors> {
    let file = yaml.as_ref().and_then(file_stem);
    let sources: Vec<Source> = weaker.into_iter().chain(yaml).chain([env, flags]).collect();
    let mut errors: Vec<ConfigError> = sources.iter().flat_map(|source| source.errors.clone()).collect();
    let origins = Origins::Sources(&sources);
    // Rules between keys would mislead where a source could not be read at all.
    let is_readable = !sources.iter().any(|source| source.is_unreadable);
    let mut settings = Settings::default();
    if let Some(file) = file.filter(|_| origins.written("run_id").is_none()) {
        settings.run_id_of_file = Some(run_id_of(file).map_err(|error| errors.push(error)).ok());
    }
    // Of two ways to say what is read the stronger source's holds; in one source they would contradict each other.
    let taps = origins.written("taps").filter(|taps| !tap::names_none(taps));
    let of_taps = taps.and_then(|_| origins.strength("taps"));
    let of_layer = origins.strength("layer").max(origins.strength("pooling"));
    let ignored: &[&str] = match (of_taps, of_layer) {
        (Some(taps), Some(layer)) if taps > layer => &["layer", "pooling"],
        (Some(taps), Some(layer)) if taps < layer => &["taps"],
        _ => &[],
    };
    let told = |name: &'static str| origins.written(name).filter(|_| !ignored.contains(&name));
    let product = tap::product(told("layer"), told("pooling")).unwrap_or_else(|(name, error)| {
        errors.push(origins.error(name, error, &settings));
        Some(Raw::List(Vec::new()))
    });
    if product.is_some() && taps.is_some() && ignored.is_empty() {
        let message = "say all that is read, and layer or pooling is a list too";
        let error = ParseError::with_hint(message, "give either taps or layer and pooling");
        errors.push(origins.error("taps", error, &settings));
    }
    let written = |name: &'static str| match (&product, name) {
        (Some(_), "layer" | "pooling") => None,
        (Some(taps), "taps") => Some(taps),
        _ => told(name),
    };
    for part in Part::ALL {
        let invalid = settings.read(part, written);
        errors.extend(invalid.into_iter().map(|(name, error)| origins.error(name, error, &settings)));
        settings.normalise();
        if is_readable {
            errors.extend(rules::apply(part, &Check { settings: &settings, origins: &origins }));
        }
    }
    match settings.complete() {
        Some((recipe, run)) if errors.is_empty() => Ok(Config { recipe, run }),
        _ => Err(ConfigErrors { errors }),
    }
}

/// The configuration as far as these sources, weakest first, give one: a key with a wrong value counts as not set, and no
/// rule between keys is applied. For what has to be known before [`resolve`]; `None` where even that fails.
pub fn draft(sources: &[Source]) -> Option<Config> {
    let origins = Origins::Sources(sources);
    let mut settings = Settings::default();
    let file = sources.iter().find_map(file_stem).filter(|_| origins.written("run_id").is_none());
    settings.run_id_of_file = file.map(|file| run_id_of(file).ok());
    for part in Part::ALL {
        let wrong: Vec<&str> =
            settings.read(part, |name| origins.written(name)).into_iter().map(|(name, _)| name).collect();
        settings.read(part, |name| origins.written(name).filter(|_| !wrong.contains(&name)));
        settings.normalise();
    }
    settings.complete().map(|(recipe, run)| Config { recipe, run })
}

/// The path of a file and its name without the extension.
fn file_stem(source: &Source) -> Option<(PathBuf, String)> {
    match &source.origin {
        Origin::File(path) => Some((path.clone(), path.file_stem()?.to_string_lossy().into_owned())),
        Origin::Environment | Origin::Flags | Origin::WorkedOut(_) => None,
    }
}

/// The name of a run after its configuration file.
fn run_id_of((path, stem): (PathBuf, String)) -> Result<String, ConfigError> {
    match parse::names_a_folder(&stem) {
        Ok(()) => Ok(stem),
        Err(error) => Err(ConfigError {
            origin: path.display().to_string(),
            key: Some("run_id".to_string()),
            value: Some(stem),
            message: format!("comes from the file's name and {}", error.message),
            hint: Some("set run_id, or rename the file".to_string()),
        }),
    }
}

impl Config {
    /// The defaults with some keys set, as by flags: for tests, and for runs that no user configures.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn with(settings: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let flags = settings.iter().map(|(name, value)| (name, value.to_string()));
        resolve(None, Source::from_env([]), Source::from_flags(flags))
    }

    /// Applies every rule of [`resolve`] to a configuration that was changed, or came from a message.
    ///
    /// # Errors
    /// All the reasons why it is not valid.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        check("the configuration", &Settings::of(&self.recipe, Some(&self.run)))
    }
}

impl Recipe {
    /// Applies every rule of [`resolve`] to a recipe that was changed, or came from a file.
    ///
    /// # Errors
    /// All the reasons why it is not valid.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        check("the recipe", &Settings::of(self, None))
    }
}

fn check(name: &'static str, values: &Settings) -> Result<(), ConfigErrors> {
    let origins = Origins::Typed(name, values);
    let mut settings = values.clone();
    let invalid = settings.drop_invalid();
    let mut errors: Vec<ConfigError> =
        invalid.into_iter().map(|(name, error)| origins.error(name, error, values)).collect();
    for part in Part::ALL {
        errors.extend(rules::apply(part, &Check { settings: &settings, origins: &origins }));
    }
    if errors.is_empty() { Ok(()) } else { Err(ConfigErrors { errors }) }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
