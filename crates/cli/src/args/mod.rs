//! The command line: one flag per configuration key from the keys' own table, the rest by hand.

use clap::{Arg, ArgAction, ArgMatches, Command};

mod checkpoints;
mod keys;
mod machine;
mod parts;
mod runs;

pub use keys::key_flags;
pub use parts::text;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
Environment: NUMALIGN_<KEY> sets a configuration key, NUMALIGN_LOG filters the log (such as info) and wins over -v and -q, \
NUMALIGN_TOKEN is the run's join token.";

/// The whole command line.
pub fn command() -> Command {
    Command::new("numalign")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Teaches a frozen language model to read and write numbers, on many workers, to the same bytes")
        .after_help(parts::help_with_examples(
            AFTER_HELP,
            &[
                ("numalign launch --config config/quickstart.yaml", "trains and evaluates; the result is in chk/"),
                ("numalign predict --checkpoint chk/quickstart.safetensors 42.5", "asks the result"),
            ],
        ))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .help("More log; -vv for still more")
                .action(ArgAction::Count)
                .global(true)
                .conflicts_with("quiet"),
        )
        .arg(
            Arg::new("quiet")
                .short('q')
                .long("quiet")
                .help("Errors and the result only")
                .action(ArgAction::SetTrue)
                .global(true),
        )
        .subcommands(runs::commands())
        .subcommands(checkpoints::commands())
        .subcommands(machine::commands())
}

/// How much is said, by `-v` and `-q` anywhere on the command line: -1 for `-q`, the number of `v` otherwise.
pub fn verbosity(matches: &ArgMatches) -> i8 {
    let quiet = |matches: &ArgMatches| matches.get_flag("quiet");
    let verbose = |matches: &ArgMatches| matches.get_count("verbose");
    match quiet(matches) {
        true => -1,
        false => i8::try_from(verbose(matches)).unwrap_or(i8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn verbosity_is_read_wherever_it_stands() {
        let of = |line: &str| verbosity(&command().get_matches_from(line.split(' ')));
        assert_eq!(of("numalign doctor"), 0);
        assert_eq!(of("numalign -q doctor"), -1);
        assert_eq!(of("numalign doctor --quiet"), -1);
        assert_eq!(of("numalign -vv doctor"), 2);
        assert!(command().try_get_matches_from(["numalign", "doctor", "-q", "-v"]).is_err());
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &Command) {
            if command.has_subcommands() {
                return command.get_subcommands().for_each(check);
            }
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  numalign "), "{}", command.get_name());
        }
        command().get_subcommands().for_each(check);
    }
}
