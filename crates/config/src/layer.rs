//! One source of settings — a YAML file, the environment, or the flags — as raw values by key.
//! Made by the `cli` and by tests; put together by `resolve`. A layer keeps its own problems, so
//! that all of them are reported at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::keys::{ENV_PREFIX, Key, key, keys};
use crate::problem::Problem;
use crate::raw::Raw;
use crate::suggest::{nearest, unknown_hint};

/// Environment variables with the prefix that are not settings.
pub const RESERVED_ENV: &[&str] = &["NUMALIGN_TOKEN", "NUMALIGN_LOG"];

/// What the variables begin with that numalign passes to its own children.
pub const INTERNAL_ENV_PREFIX: &str = "NUMALIGN_INTERNAL_";

/// Largest file that is read. A configuration has some kilobytes, and the time of the YAML parser
/// grows with the square of the depth, so a hostile file is done with in seconds.
const MAX_FILE_BYTES: u64 = 1 << 16;

/// Where a layer's values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    Environment,
    Flags,
}

impl Origin {
    /// What a user looks for to find the setting: the file, the variable or the flag.
    fn of_key(&self, key: &Key) -> String {
        match self {
            Origin::File(path) => path.display().to_string(),
            Origin::Environment => key.env_name(),
            Origin::Flags => format!("--{}", key.flag()),
        }
    }
}

/// The settings of one source, and what is wrong with it as a whole.
#[derive(Debug, Clone)]
pub struct Layer {
    origin: Origin,
    values: BTreeMap<&'static str, Raw>,
    problems: Vec<Problem>,
    unreadable: bool,
}

impl Layer {
    fn new(origin: Origin) -> Layer {
        Layer { origin, values: BTreeMap::new(), problems: Vec::new(), unreadable: false }
    }

    /// Reads a YAML file. A file that cannot be read gives a layer that `resolve` refuses.
    pub fn from_yaml_file(path: &Path) -> Layer {
        match read_text(path) {
            Ok(text) => Layer::from_yaml_text(path, &text),
            Err((message, hint)) => Layer::new(Origin::File(path.to_path_buf())).refused(message, hint),
        }
    }

    /// Reads YAML text; `path` is named in messages and gives the default `run_id`.
    pub fn from_yaml_text(path: &Path, text: &str) -> Layer {
        let mut layer = Layer::new(Origin::File(path.to_path_buf()));
        if is_blank(text) {
            return layer;
        }
        let entries = match serde_yaml::from_str::<Raw>(text) {
            Ok(Raw::Map(entries)) => entries,
            Ok(Raw::Null) => Vec::new(),
            Ok(other) => {
                let message = format!("must be a list of `key: value` lines, not {}", other.kind());
                return layer.refused(message, "begin with a line such as `stage: nn`");
            }
            Err(error) => {
                let message = format!("is not valid YAML: {error}");
                return layer.refused(message, "check the indentation and the quotes there");
            }
        };
        for (name, value) in entries {
            layer.add_yaml_entry(&name, value);
        }
        layer
    }

    /// Reads settings from pairs of an environment variable's name and value. Variables without
    /// the prefix are passed over; `NUMALIGN_TOKEN`, `NUMALIGN_LOG` and `NUMALIGN_INTERNAL_…` too.
    pub fn from_env(variables: impl IntoIterator<Item = (String, String)>) -> Layer {
        let pairs = variables.into_iter();
        Layer::from_env_os(pairs.map(|(name, value)| (name.into(), value.into())))
    }

    /// Like [`Layer::from_env`], for `std::env::vars_os()`: values that are not UTF-8 are problems.
    pub fn from_env_os(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Layer {
        let mut layer = Layer::new(Origin::Environment);
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(ENV_PREFIX) && !is_reserved(&name) {
                layer.add_variable(name, value);
            }
        }
        layer
    }

    /// Reads settings from pairs of a key (`batch_size`, or spelt as the flag) and a value.
    pub fn from_flags<K: AsRef<str>>(flags: impl IntoIterator<Item = (K, String)>) -> Layer {
        let mut layer = Layer::new(Origin::Flags);
        for (name, value) in flags {
            let name = name.as_ref();
            match key(&name.replace('-', "_")) {
                Some(key) => layer.add(key, Raw::Text(value)),
                None => {
                    let near = nearest(name).map(|key| format!("--{}", key.flag()));
                    layer.problems.push(Problem::of_key(
                        format!("--{name}"),
                        name,
                        "unknown key".to_string(),
                        unknown_hint(near),
                    ));
                }
            }
        }
        layer
    }

    /// Where the values come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Puts a number where this layer says `auto` for the key; whether it does. For keys whose `auto` only the caller can
    /// work out, such as the number of GPUs.
    pub fn fill_in_auto(&mut self, key: &str, value: impl FnOnce() -> usize) -> bool {
        match self.values.iter_mut().find(|(name, _)| **name == key) {
            Some((_, raw)) if *raw == Raw::Text("auto".to_string()) => {
                *raw = Raw::Int(value() as i128);
                true
            }
            _ => false,
        }
    }

    /// Whether this layer sets the key.
    pub fn is_set(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether the source could not be read at all.
    pub(crate) fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The value of the key; a null counts as not set.
    pub(crate) fn get(&self, key: &str) -> Option<&Raw> {
        self.values.get(key).filter(|value| **value != Raw::Null)
    }

    pub(crate) fn origin_of(&self, key: &Key) -> String {
        self.origin.of_key(key)
    }

    fn refused(mut self, message: String, hint: &str) -> Layer {
        let origin = match &self.origin {
            Origin::File(path) => path.display().to_string(),
            Origin::Environment => "environment".to_string(),
            Origin::Flags => "flags".to_string(),
        };
        self.problems.push(Problem::of_source(origin, message, hint));
        self.unreadable = true;
        self
    }

    fn add(&mut self, key: &'static Key, value: Raw) {
        if self.values.contains_key(key.name) {
            self.problems.push(repeated(self.origin.of_key(key), key.name));
            return;
        }
        self.values.insert(key.name, value);
    }

    fn add_variable(&mut self, name: String, value: OsString) {
        let Some(key) = keys().iter().find(|key| key.env_name() == name) else {
            // The value is not shown: it could be a misspelt token.
            let near = nearest_variable(&name);
            let message = "unknown environment variable".to_string();
            self.problems.push(Problem {
                origin: name,
                key: None,
                value: None,
                message,
                hint: Some(unknown_hint(near)),
            });
            return;
        };
        match value.into_string() {
            Ok(value) => self.add(key, Raw::Text(value)),
            Err(_) => self.problems.push(Problem::of_key(
                name,
                key.name,
                "is not UTF-8".to_string(),
                "set it again with plain text".to_string(),
            )),
        }
    }

    fn add_yaml_entry(&mut self, name: &Raw, value: Raw) {
        let Raw::Text(name) = name else {
            self.add_unknown(&name.to_string());
            return;
        };
        let is_group = |key: &Key| key.name.split_once('.').is_some_and(|(group, _)| group == name);
        if !keys().iter().any(is_group) {
            self.add_yaml_value(name, value);
            return;
        }
        match value {
            Raw::Null => {}
            Raw::Map(entries) => {
                for (inner, value) in entries {
                    self.add_yaml_value(&format!("{name}.{inner}"), value);
                }
            }
            other => {
                let members: Vec<&str> = keys().iter().filter(|key| is_group(key)).map(|key| key.name).collect();
                self.problems.push(Problem {
                    origin: self.file_name(),
                    key: Some(name.clone()),
                    value: Some(other.to_string()),
                    message: format!("must be a mapping, not {}", other.kind()),
                    hint: Some(format!("set {}", members.join(" or "))),
                });
            }
        }
    }

    fn add_yaml_value(&mut self, name: &str, value: Raw) {
        match key(name) {
            // A null is kept, so that a repetition is found; `resolve` takes it for "not set".
            Some(key) => self.add(key, value),
            None => self.add_unknown(name),
        }
    }

    fn add_unknown(&mut self, name: &str) {
        let near = nearest(name).map(|key| key.name.to_string());
        let origin = self.file_name();
        let message = "unknown key".to_string();
        self.problems.push(Problem::of_key(origin, name, message, unknown_hint(near)));
    }

    fn file_name(&self) -> String {
        match &self.origin {
            Origin::File(path) => path.display().to_string(),
            _ => String::new(),
        }
    }
}

fn repeated(origin: String, name: &str) -> Problem {
    let message = "is set more than once".to_string();
    Problem::of_key(origin, name, message, "keep one of them".to_string())
}

fn is_reserved(name: &str) -> bool {
    RESERVED_ENV.contains(&name) || name.starts_with(INTERNAL_ENV_PREFIX)
}

fn nearest_variable(name: &str) -> Option<String> {
    if let Some(reserved) = RESERVED_ENV.iter().find(|known| crate::suggest::close(known, name)) {
        return Some(reserved.to_string());
    }
    nearest(name.strip_prefix(ENV_PREFIX).unwrap_or(name)).map(Key::env_name)
}

/// Whether the text holds nothing but spaces, comments and document marks.
fn is_blank(text: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}');
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
    let file = std::fs::File::open(path).map_err(cannot_read)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let message = format!("is larger than {MAX_FILE_BYTES} bytes");
        return Err((message, "name a configuration file"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Err((format!("is not UTF-8 text (byte {at})"), "name a YAML file, saved as UTF-8"))
        }
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
