//! One flag per configuration key, from the keys' own table.

use clap::{Arg, ArgMatches, Command};
use numalign_config::{Key, keys};

/// Keys that decide what a stage's samples are.
const SAMPLE_KEYS: &[&str] = &[
    "stage",
    "seed",
    "min_val",
    "max_val",
    "decimals",
    "distribution",
    "log_threshold",
    "numeric_positions",
    "mixed_tasks",
    "mixed_max_numbers",
];

/// Keys that the help of a command shows. Every key is accepted where any is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// For a command that trains.
    All,
    /// For a command that makes samples.
    Samples,
    /// For a command that passes them on.
    None,
}

impl Shown {
    fn shows(self, key: &Key) -> bool {
        match self {
            Shown::All => key.is_settable(),
            Shown::Samples => SAMPLE_KEYS.contains(&key.name),
            Shown::None => false,
        }
    }
}

/// What commands say that do not show all keys.
pub const OTHER_KEYS: &str = "Every configuration key is accepted as a flag; `numalign launch --help` lists them.";

/// Identifier of a key's flag among clap's arguments, apart from a command's own.
fn key_id(name: &str) -> String {
    format!("key:{name}")
}

/// Adds a flag for every key.
pub fn with_keys(command: Command, shown: Shown) -> Command {
    with_keys_but(command, shown, &[])
}

/// Adds a flag for every key but these, which the command sets itself.
pub fn with_keys_but(command: Command, shown: Shown, set_by_command: &[&str]) -> Command {
    let mut command = command;
    for key in keys().iter().filter(|key| !set_by_command.contains(&key.name)) {
        let arg = Arg::new(key_id(key.name))
            .long(key.flag())
            .value_name(key.value_name())
            .help(format!("{} [default: {}]", key.help, key.default_text()))
            .help_heading(key.group)
            .hide(!shown.shows(key))
            .aliases(key.flag_aliases())
            .allow_hyphen_values(true);
        command = command.arg(arg);
    }
    command
}

/// Keys given as flags, with their values.
pub fn key_flags(matches: &ArgMatches) -> Vec<(String, String)> {
    let mut given = Vec::new();
    for key in keys() {
        // A command need not have all of them.
        if let Ok(Some(value)) = matches.try_get_one::<String>(&key_id(key.name)) {
            given.push((key.name.to_owned(), value.clone()));
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_samples_exist() {
        for name in SAMPLE_KEYS {
            assert!(keys().iter().any(|key| key.name == *name), "{name}");
        }
    }
}
