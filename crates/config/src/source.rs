//! One source of settings (a YAML file, the environment, or the flags) as raw values by key. A source keeps its own
//! errors, so that all of them are reported at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::ConfigError;
use crate::key::{ENV_PREFIX, Key, flag, key, key_of_variable, keys, variable};
use crate::keys::{Recipe, Settings};
use crate::raw::Raw;
use crate::suggest::{nearest, unknown_hint};

/// Environment variables with the prefix that are not settings.
pub const RESERVED_ENV: &[&str] = &["NUMALIGN_TOKEN", "NUMALIGN_LOG"];

/// What the variables begin with that numalign passes to its own children.
pub const INTERNAL_ENV_PREFIX: &str = "NUMALIGN_INTERNAL_";

/// What top-level keys begin with that hold YAML anchors and are no settings.
pub(crate) const HELPER_PREFIX: &str = "x-";

/// The YAML key whose mapping, or list of them, is merged into the one that it stands in.
pub(crate) const MERGE_KEY: &str = "<<";

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Largest file that is read. A configuration has some kilobytes, and the time of the YAML parser
/// grows with the square of the depth, so a hostile file is done with in seconds.
const MAX_FILE_BYTES: u64 = 1 << 16;

/// Where a source's values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    File(PathBuf),
    Environment,
    Flags,
    /// Nobody wrote it: it follows from what this names.
    WorkedOut(&'static str),
}

impl Origin {
    /// What a user looks for to find the setting: the file, the variable or the flag.
    fn of_key(&self, name: &str) -> String {
        match self {
            Origin::File(path) => path.display().to_string(),
            Origin::Environment => variable(name),
            Origin::Flags => format!("--{}", flag(name)),
            Origin::WorkedOut(from) => (*from).to_string(),
        }
    }
}

/// The settings of one source, and what is wrong with it as a whole.
#[derive(Debug, Clone)]
pub struct Source {
    pub(crate) origin: Origin,
    values: BTreeMap<&'static str, Raw>,
    /// The keys that are set by an old name, with that name.
    old_names: BTreeMap<&'static str, String>,
    pub(crate) errors: Vec<ConfigError>,
    /// The source could not be read at all.
    pub(crate) is_unreadable: bool,
}

impl Source {
    fn new(origin: Origin) -> Source {
        Source { origin, values: BTreeMap::new(), old_names: BTreeMap::new(), errors: Vec::new(), is_unreadable: false }
    }

    /// Reads a YAML file. A file that cannot be read gives a source that `resolve` refuses.
    pub fn from_yaml_file(path: &Path) -> Source {
        match read_text(path) {
            Ok(text) => Source::from_yaml_text(path, &text),
            Err((message, hint)) => Source::new(Origin::File(path.to_path_buf())).refused(message, hint),
        }
    }

    /// Reads YAML text; `path` is named in messages and gives the default `run_id`.
    pub fn from_yaml_text(path: &Path, text: &str) -> Source {
        let mut source = Source::new(Origin::File(path.to_path_buf()));
        if is_blank(text) {
            return source;
        }
        // The parser takes a mark before more than one line for another document.
        match serde_yaml::from_str::<Raw>(text.trim_start_matches(BYTE_ORDER_MARK)) {
            Ok(Raw::Null) => source,
            Ok(Raw::Map(entries)) => {
                for (name, value) in with_merged(entries) {
                    source.add_yaml_entry(&name, value);
                }
                source
            }
            Ok(other) => {
                let message = format!("must be a list of `key: value` lines, not {}", other.kind());
                source.refused(message, "begin with a line such as `stage: nn`")
            }
            Err(error) => {
                let message = format!("is not valid YAML: {error}");
                source.refused(message, "check the indentation and the quotes there")
            }
        }
    }

    /// Reads settings from pairs of an environment variable's name and value. Variables without
    /// the prefix are passed over; `NUMALIGN_TOKEN`, `NUMALIGN_LOG` and `NUMALIGN_INTERNAL_…` too, and what a cluster sets
    /// for its services whose names begin with `numalign`.
    pub fn from_env(variables: impl IntoIterator<Item = (String, String)>) -> Source {
        let pairs = variables.into_iter();
        Source::from_env_os(pairs.map(|(name, value)| (name.into(), value.into())))
    }

    /// Like [`Source::from_env`], for `std::env::vars_os()`: values that are not UTF-8 are errors.
    pub fn from_env_os(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Source {
        let mut source = Source::new(Origin::Environment);
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            let is_reserved = RESERVED_ENV.contains(&name.as_str()) || name.starts_with(INTERNAL_ENV_PREFIX);
            if name.starts_with(ENV_PREFIX) && !is_reserved && !is_of_a_service(&name, &value) {
                source.add_variable(name, value);
            }
        }
        source
    }

    /// Reads settings from pairs of a key (`batch_size`, or spelt as the flag) and a value.
    pub fn from_flags<K: AsRef<str>>(flags: impl IntoIterator<Item = (K, String)>) -> Source {
        let mut source = Source::new(Origin::Flags);
        for (name, value) in flags {
            let name = name.as_ref();
            match key(&name.replace('-', "_")) {
                Some(key) => source.add(key, &name.replace('-', "_"), Raw::Text(value)),
                None => {
                    let near = nearest(name).map(|key| format!("--{}", key.flag()));
                    let error = ConfigError::of_key(format!("--{name}"), name, "unknown key", unknown_hint(near));
                    source.errors.push(error);
                }
            }
        }
        source
    }

    /// Settings that a program worked out from what `from` names.
    pub fn worked_out(from: &'static str, settings: impl IntoIterator<Item = (&'static str, String)>) -> Source {
        let mut source = Source::new(Origin::WorkedOut(from));
        for (name, value) in settings {
            if let Some(key) = key(name) {
                source.add(key, name, Raw::Text(value));
            }
        }
        source
    }

    /// Those settings of a recipe whose keys are named, as a source that `from` names.
    pub fn of_recipe(from: &'static str, recipe: &Recipe, names: &[&str]) -> Source {
        let mut source = Source::new(Origin::WorkedOut(from));
        let settings = Settings::of(recipe, None);
        for key in keys().iter().filter(|key| key.stored().is_some() && names.contains(&key.name)) {
            if let Ok(raw) = serde_json::from_value((key.shown)(&settings)) {
                source.add(key, key.name, raw);
            }
        }
        source
    }

    /// Forgets the key where this source says `auto` for it; whether it does.
    pub fn forget_auto(&mut self, key: &str) -> bool {
        let is_auto = self.values.get(key).is_some_and(|raw| *raw == Raw::Text("auto".to_string()));
        if is_auto {
            self.values.remove(key);
        }
        is_auto
    }

    /// Puts a number where this source says `auto` for the key; whether it does. For keys whose `auto` only the caller can
    /// work out, such as the number of GPUs.
    pub fn fill_in_auto(&mut self, key: &str, value: impl FnOnce() -> usize) -> bool {
        let auto = self.values.get_mut(key).filter(|raw| **raw == Raw::Text("auto".to_string()));
        auto.map(|raw| *raw = Raw::Int(value() as i128)).is_some()
    }

    /// Whether this source sets the key.
    pub fn is_set(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of the key as text, where this source sets it.
    pub fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(ToString::to_string)
    }

    /// The value of the key; a null counts as not set.
    pub(crate) fn get(&self, key: &str) -> Option<&Raw> {
        self.values.get(key).filter(|value| **value != Raw::Null)
    }

    /// The key's name as this source has it.
    pub(crate) fn name_of<'a>(&'a self, key: &'a str) -> &'a str {
        self.old_names.get(key).map_or(key, String::as_str)
    }

    /// What a user looks for to find the key that this source sets.
    pub(crate) fn origin_of(&self, key: &str) -> String {
        self.origin.of_key(self.name_of(key))
    }

    /// A file that holds no settings at all.
    fn refused(mut self, message: String, hint: &str) -> Source {
        self.errors.push(ConfigError::of_source(self.origin.of_key(""), message, hint));
        self.is_unreadable = true;
        self
    }

    fn add(&mut self, key: &'static Key, name: &str, value: Raw) {
        if self.values.contains_key(key.name) {
            let hint = "keep one of them".to_string();
            self.errors.push(ConfigError::of_key(self.origin.of_key(name), name, "is set more than once", hint));
            return;
        }
        if name != key.name {
            self.old_names.insert(key.name, name.to_string());
        }
        self.values.insert(key.name, value);
    }

    fn add_variable(&mut self, name: String, value: OsString) {
        match (key_of_variable(&name), value.into_string()) {
            (Some((key, spelling)), Ok(value)) => self.add(key, spelling, Raw::Text(value)),
            (Some((key, _)), Err(_)) => {
                let hint = "set it again with plain text".to_string();
                self.errors.push(ConfigError::of_key(name, key.name, "is not UTF-8", hint));
            }
            // The value is not shown: it could be a misspelt token.
            (None, _) => {
                let hint = unknown_hint(nearest_variable(&name));
                self.errors.push(ConfigError::of_source(name, "unknown environment variable".to_string(), &hint));
            }
        }
    }

    fn add_yaml_entry(&mut self, name: &Raw, value: Raw) {
        let Raw::Text(name) = name else {
            self.add_unknown(&name.to_string());
            return;
        };
        if name.starts_with(HELPER_PREFIX) {
            return;
        }
        let is_group = |key: &Key| key.name.split_once('.').is_some_and(|(group, _)| group == name);
        if !keys().iter().any(is_group) {
            self.add_yaml_value(name, value);
            return;
        }
        match value {
            Raw::Null => {}
            Raw::Map(entries) => {
                for (inner, value) in with_merged(entries) {
                    self.add_yaml_value(&format!("{name}.{inner}"), value);
                }
            }
            other => {
                let first = keys().iter().find(|key| is_group(key)).map(|key| format!("set {}", key.name));
                self.errors.push(ConfigError {
                    origin: self.origin.of_key(name),
                    key: Some(name.clone()),
                    value: Some(other.to_string()),
                    message: format!("must be a mapping, not {}", other.kind()),
                    hint: first,
                });
            }
        }
    }

    fn add_yaml_value(&mut self, name: &str, value: Raw) {
        match key(name) {
            // A null is kept, so that a repetition is found; `resolve` takes it for "not set".
            Some(key) => self.add(key, name, value),
            None => self.add_unknown(name),
        }
    }

    fn add_unknown(&mut self, name: &str) {
        let hint = unknown_hint(nearest(name).map(|key| key.name.to_string()));
        self.errors.push(ConfigError::of_key(self.origin.of_key(name), name, "unknown key", hint));
    }
}

/// The entries with those of `<<` behind them, where they are not overruled: by an entry of the mapping itself, or by an
/// earlier one of the mappings that are merged.
fn with_merged(entries: Vec<(Raw, Raw)>) -> Vec<(Raw, Raw)> {
    let (mut own, mut merged) = (Vec::new(), Vec::new());
    for (name, value) in entries {
        let is_merge = name == Raw::Text(MERGE_KEY.to_string());
        let values = match value {
            Raw::List(items) if is_merge => items,
            other => vec![other],
        };
        for value in values {
            match value {
                Raw::Map(entries) if is_merge => merged.extend(with_merged(entries)),
                value => own.push((name.clone(), value)),
            }
        }
    }
    let mut known: BTreeSet<String> = own.iter().map(|(name, _)| name.to_string()).collect();
    own.extend(merged.into_iter().filter(|(name, _)| known.insert(name.to_string())));
    own
}

/// Whether a cluster set the variable for a service: Kubernetes does so in every container beside a service called
/// `numalign` or `numalign-…`. A key's own variable never is one.
fn is_of_a_service(name: &str, value: &OsStr) -> bool {
    if key_of_variable(name).is_some() {
        return false;
    }
    let words: Vec<&str> = name.split('_').skip(1).collect();
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let is_protocol = |text: &str| matches!(text, "TCP" | "UDP" | "SCTP");
    match &words[..] {
        [.., "SERVICE", "HOST" | "PORT"] => true,
        // `tcp://10.0.0.1:7400`; a plain number is somebody's mistake.
        [.., "PORT"] if value.to_string_lossy().contains("://") => true,
        [.., "PORT", port, protocol] if is_port(port) && is_protocol(protocol) => true,
        [.., "PORT", port, protocol, "PROTO" | "PORT" | "ADDR"] => is_port(port) && is_protocol(protocol),
        // A port with a name: `NUMALIGN_SERVICE_PORT_GRPC`.
        _ => words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]),
    }
}

fn nearest_variable(name: &str) -> Option<String> {
    if let Some(reserved) = RESERVED_ENV.iter().find(|known| crate::suggest::close(known, name)) {
        return Some(reserved.to_string());
    }
    nearest(name.strip_prefix(ENV_PREFIX).unwrap_or(name)).map(Key::env_name)
}

/// Whether the text holds nothing but spaces, comments and document marks.
fn is_blank(text: &str) -> bool {
    let text = text.trim_start_matches(BYTE_ORDER_MARK);
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// The text of a file, or what is wrong and what to do.
fn read_text(path: &Path) -> Result<String, (String, &'static str)> {
    if path.is_dir() {
        return Err(("is a folder, not a file".to_string(), "name a YAML file inside it"));
    }
    let cannot_read = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            ("does not exist".to_string(), "check the path; it starts from the current directory")
        }
        _ => (format!("cannot be read: {error}"), "check the permissions of the file"),
    };
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if read.map_err(cannot_read)? as u64 > MAX_FILE_BYTES {
        return Err((format!("is larger than {MAX_FILE_BYTES} bytes"), "name a configuration file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        (format!("is not UTF-8 text (byte {at})"), "name a YAML file, saved as UTF-8")
    })
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
