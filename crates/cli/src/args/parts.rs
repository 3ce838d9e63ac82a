//! Arguments that several commands have in common.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

/// A text argument of a command.
pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

pub fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

pub fn count_option(name: &'static str, help: &'static str, default: &'static str) -> Arg {
    option(name, "N", help).default_value(default).value_parser(value_parser!(u64).range(1..=1 << 24))
}

pub fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

pub fn json_flag() -> Arg {
    flag("json", "Print one JSON object on standard output and nothing else")
}

pub fn details_flag() -> Arg {
    flag("details", "Also show the error by decile of the target, and the worst samples")
}

pub fn best_flag() -> Arg {
    flag("best", "Use the projectors of the best evaluation during training (eval_every), not the last ones")
}

pub fn config_argument() -> Arg {
    option("config", "FILE", "Configuration file (YAML)")
}

pub fn model_argument() -> Arg {
    option(
        "model",
        "MODEL",
        "Frozen model: demo, synthetic:<size>[:seed], a folder, a .gguf file or a hub id; the checkpoint's by default",
    )
}

pub fn device_argument() -> Arg {
    option("device", "DEVICE", "auto, cpu, cuda or cuda:N").default_value("auto")
}

pub fn file_argument() -> Arg {
    Arg::new("file").value_name("FILE").help("Configuration file (YAML)").required(true)
}

pub fn stage_argument(stages: &[&'static str]) -> Arg {
    Arg::new("stage-name")
        .value_name("STAGE")
        .help("Stage; the configuration's by default")
        .value_parser(clap::builder::PossibleValuesParser::new(stages))
}

/// Appends examples, each a command line and what it does, to what is said after a command's help.
pub fn help_with_examples(text: &str, examples: &[(&str, &str)]) -> String {
    let mut help = text.to_owned();
    if !help.is_empty() {
        help.push_str("\n\n");
    }
    help.push_str("Examples:");
    for (line, what) in examples {
        help.push_str(&format!("\n  {line}\n      {what}"));
    }
    help
}

const ACCESS_HEADING: &str = "Access";

fn credential_file(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("FILE").help(help).help_heading(ACCESS_HEADING)
}

/// `--token-file`, for `launch`, whose processes talk over loopback.
pub fn token_argument() -> Arg {
    credential_file("token-file", "File with the run's join token; the environment's NUMALIGN_TOKEN by default")
}

/// For the command that listens.
pub fn server_arguments(command: Command) -> Command {
    let command = command.arg(token_argument()).arg(
        Arg::new("insecure")
            .long("insecure")
            .help("Listen beyond loopback without a join token: anybody who reaches the port can take part")
            .help_heading(ACCESS_HEADING)
            .action(ArgAction::SetTrue),
    );
    server_tls_arguments(command)
}

/// For the commands that serve a page or the run itself.
pub fn server_tls_arguments(command: Command) -> Command {
    command
        .arg(credential_file("tls-cert", "Certificate chain to serve with (PEM); with it the port takes TLS"))
        .arg(credential_file("tls-key", "The certificate's private key (PEM)"))
        .arg(credential_file("tls-ca", "CA that clients' certificates have to come from (PEM): mutual TLS"))
}

/// For the commands that connect.
pub fn client_arguments(command: Command) -> Command {
    command
        .arg(token_argument())
        .arg(credential_file(
            "tls-ca",
            "CA that the coordinator's certificate has to come from (PEM), for an https:// address",
        ))
        .arg(credential_file("tls-cert", "Certificate chain to show to a coordinator that demands one (PEM)"))
        .arg(credential_file("tls-key", "The certificate's private key (PEM)"))
}
