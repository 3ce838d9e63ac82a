//! The command line: commands by hand, one flag per configuration key from the keys' own table.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use numalign_config::keys;

use crate::access::{client_arguments, server_arguments, token_argument};

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
Environment: NUMALIGN_<KEY> sets a configuration key, NUMALIGN_LOG filters the log (such as info), NUMALIGN_TOKEN is the run's join token.";

/// The whole command line.
pub fn command() -> Command {
    Command::new("numalign")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Teaches a frozen language model to read and write numbers, on many workers, to the same bytes")
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_keys(
            Command::new("launch")
                .about("Runs a coordinator and its workers on this machine, then evaluates the result")
                .after_help(
                    "`all` chains nn, text and mixed, each starting from the last one's projectors; every stage is a run \
                     of its own, <run-id>-<stage>, saved beside model_path_save.",
                )
                .arg(stage_argument(&["nn", "text", "mixed", "all"]))
                .arg(config_argument())
                .arg(flag("no-eval", "Do not evaluate the result at the end"))
                .arg(token_argument())
                .arg(
                    option("chaos", "SPEC", "Faults on purpose, from a seed: the result has the same bytes")
                        .long_help(crate::launcher::chaos::SYNTAX),
                )
                .arg(json_flag()),
        ))
        .subcommand(with_keys(server_arguments(
            Command::new("coordinator")
                .about("Runs the coordinator alone: for workers on several machines")
                .arg(stage_argument(&["nn", "text", "mixed"]))
                .arg(config_argument())
                .arg(option("listen", "ADDR", "Address to listen on, such as 0.0.0.0:7400").required(true)),
        )))
        .subcommand(client_arguments(
            Command::new("worker")
                .about("Runs one worker; it gets its whole configuration from the coordinator")
                .after_help(
                    "Without --coordinator, MASTER_ADDR and MASTER_PORT name it. With device cuda or auto, LOCAL_RANK (or \
                     SLURM_LOCALID) chooses the GPU among the visible ones; a single visible GPU is everybody's. \
                     NUMALIGN_COORDINATOR_WAIT is the timeout for a coordinator that was never reached (30s).",
                )
                .arg(option("coordinator", "URL", "The coordinator, such as http://10.0.0.1:7400"))
                .arg(option("device", "DEVICE", "auto, cpu, cuda or cuda:N; the run's own setting by default")),
        ))
        .subcommand(
            Command::new("cert")
                .about("Makes a CA of your own with a coordinator's and a worker's certificate, for --tls-…")
                .arg(option("out", "DIR", "Folder to write to; files that are there are never replaced").required(true))
                .arg(option("days", "N", "Days that they are valid").default_value("365").value_parser(value_parser!(u64).range(1..=36_500)))
                .arg(
                    Arg::new("host")
                        .value_name("HOST")
                        .help("Host name or IP address by which workers reach the coordinator")
                        .required(true)
                        .num_args(1..),
                ),
        )
        .subcommand(with_keys(
            Command::new("generate")
                .about("Writes a stage's dataset as JSONL")
                .arg(stage_argument(&["nn", "text", "mixed"]).required(true))
                .arg(config_argument())
                .arg(option("count", "N", "Samples to write").required(true).value_parser(value_parser!(u64)))
                .arg(option("out", "FILE", "File to write; - for standard output").required(true)),
        ))
        .subcommand(
            Command::new("eval")
                .about("Evaluates a checkpoint on a held-out stream, beside the constant predictor")
                .after_help(
                    "Percentages are of the value range. The relative error divides by the target, but never by less than \
                     1 % of the range; its median divides by the target itself. The baseline always answers the median \
                     target. --ablation trains the same projectors from the start with the frozen model bypassed: the hidden \
                     state is then the mean of the input embeddings. --verbal asks up to 200 questions of stage mixed as \
                     plain text. The right-number share counts a question as right where the listed number nearest to the \
                     answer is the right one; an answer below all numbers always names the smallest, so the share of a \
                     constant stands beside it, and a strict one that wants the error below half the gap to the next number.",
                )
                .arg(option("checkpoint", "FILE", "Checkpoint to evaluate").required(true))
                .arg(option("count", "N", "Held-out samples").default_value("1000").value_parser(value_parser!(u64).range(1..=100_000_000)))
                .arg(option("seed", "S", "Seed of the held-out stream; the run's by default").value_parser(value_parser!(u64)))
                .arg(option("dataset", "FILE", "Evaluate on this JSONL file instead, from its first line"))
                .arg(best_flag())
                .arg(flag("ablation", "Also train and evaluate the same projectors without the language model"))
                .arg(flag("verbal", "Also ask the frozen model in words (stage mixed)"))
                .arg(option("plot", "FILE.svg|png", "Draw predicted against true, error over value and the loss curve"))
                .arg(model_argument())
                .arg(device_argument())
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("predict")
                .about("Reads numbers, texts, or texts with $$…&& and answers with numbers")
                .after_help("A bare number given to a text or mixed checkpoint is marked first: 12.5 becomes $$12.5&&.")
                .arg(option("checkpoint", "FILE", "Checkpoint to use").required(true))
                .arg(
                    Arg::new("input")
                        .value_name("INPUT")
                        .help("A number or a text, as the checkpoint's stage wants")
                        .required(true)
                        .num_args(1..)
                        .allow_negative_numbers(true),
                )
                .arg(best_flag())
                .arg(model_argument())
                .arg(device_argument())
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("inspect")
                .about("Shows everything a checkpoint says")
                .arg(Arg::new("file").value_name("FILE").help("Checkpoint").required(true))
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("features")
                .about("Exports the hidden states and encoded targets that a checkpoint was solved on, as safetensors")
                .after_help(
                    "Solver exact: the samples of its pass. Solver alternate: those of the latest round, which belong to the \
                     solution as long as no step was made since, as in a final checkpoint. Solver adam: the first training \
                     samples. Tensors: hidden [N, d], target [N]; the metadata say which samples, and the ridge.",
                )
                .arg(option("checkpoint", "FILE", "Checkpoint").required(true))
                .arg(option("out", "FILE", "File to write").required(true))
                .arg(option("count", "N", "Samples, from the first one on; all of them by default").value_parser(value_parser!(u64).range(1..=100_000_000)))
                .arg(option("dataset", "FILE", "The JSONL file of the run, where it had one"))
                .arg(model_argument())
                .arg(device_argument()),
        )
        .subcommand(
            Command::new("hidden")
                .about("Shows token ids and the frozen model's hidden state at the read position")
                .arg(model_argument())
                .arg(option("text", "TEXT", "Tokenise this text").allow_hyphen_values(true))
                .arg(option("ids", "IDS", "Token ids, separated by commas, instead of a text"))
                .arg(option("checkpoint", "FILE", "Projectors for --value and --mixed"))
                .arg(option("value", "X", "One number, projected").allow_hyphen_values(true).value_parser(value_parser!(f64)))
                .arg(option("mixed", "TEXT", "A text whose $$…&& are projected").allow_hyphen_values(true))
                .arg(device_argument())
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("complete")
                .about("Continues a text in the frozen model's own words, by the likeliest token at a time")
                .arg(model_argument().default_value("demo"))
                .arg(Arg::new("prompt").value_name("TEXT").help("Text to continue").required(true))
                .arg(count_option("max-tokens", "Tokens to add at most", "16"))
                .arg(device_argument())
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("verify")
                .about("Proves that a checkpoint is whole and took every sample once, in order")
                .after_help(
                    "The stream is regenerated from the checkpoint's own seeds and settings. The frozen model's fingerprint is \
                     compared where the model can be loaded without the network. Exit code 0, or 1 with the reason.",
                )
                .arg(Arg::new("file").value_name("FILE").help("Checkpoint").required(true))
                .arg(option("dataset", "FILE", "The JSONL file of a run that was trained from one"))
                .arg(model_argument())
                .arg(flag("no-base", "Do not look at the frozen model").conflicts_with("model"))
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("replay")
                .about("Recomputes the steps after a checkpoint in this process, with loss and state digest of each")
                .after_help(
                    "The digest after a step is the state_digest of a checkpoint of that step: two builds or machines that \
                     agree print the same lines.",
                )
                .arg(option("checkpoint", "FILE", "Checkpoint to start from").required(true))
                .arg(count_option("steps", "Steps to recompute", "1"))
                .arg(option("eval-every", "N", "The run's eval_every; what the checkpoint's history shows by default").value_parser(value_parser!(u64)))
                .arg(option("eval-samples", "N", "The run's eval_samples; what the history shows by default, else 200").value_parser(value_parser!(u64).range(1..=1 << 20)))
                .arg(option("dataset", "FILE", "The JSONL file of a run that was trained from one"))
                .arg(model_argument())
                .arg(device_argument())
                .arg(json_flag()),
        )
        .subcommand(with_keys(
            Command::new("report")
                .about("Trains and evaluates a list of configurations and writes one page with figures and pictures")
                .after_help(
                    "Each configuration is trained as by `launch` and evaluated as by `eval --ablation`, one after another; \
                     its log and figures lie beside the page. A configuration that is finished and unchanged is not run \
                     again, so an interrupted report goes on where it was. One that fails has a row that says why, and the \
                     exit code is 1. Configuration keys given here hold for all of them.",
                )
                .arg(
                    Arg::new("config")
                        .value_name("FILE|FOLDER")
                        .help("Configurations, or folders whose .yaml files are meant [default: config/results]")
                        .num_args(0..),
                )
                .arg(option("out", "DIR", "Folder of the page, report.md").default_value("report"))
                .arg(flag("fresh", "Run everything again, finished or not"))
                .arg(count_option("count", "Held-out samples of each evaluation", "1000"))
                .arg(option("pictures", "png|svg", "Format of the pictures").default_value("png").value_parser(["png", "svg"]))
                .arg(json_flag()),
        ))
        .subcommand(client_arguments(
            Command::new("status")
                .about("Shows what a run is doing, and why")
                .after_help(
                    "Without --coordinator, MASTER_ADDR and MASTER_PORT name it, else http://127.0.0.1:7400. \
                     With --watch and --json, one JSON object per line.",
                )
                .arg(option("coordinator", "URL", "The coordinator, such as http://10.0.0.1:7400"))
                .arg(flag("watch", "Show it again every second, until the coordinator is gone"))
                .arg(json_flag()),
        ))
        .subcommand(
            Command::new("bench").about("Measures").subcommand_required(true).subcommand(
                Command::new("step")
                    .about("Stage nn's forward, backward and update, without a network")
                    .arg(option("model", "MODEL", "Frozen model").default_value("synthetic:small"))
                    .arg(count_option("batch", "Samples of a step", "8"))
                    .arg(count_option("positions", "Positions that a number fills", "1"))
                    .arg(count_option("steps", "Steps to measure", "20"))
                    .arg(count_option("devices", "Devices over which the model's blocks are spread", "1"))
                    .arg(option("dtype", "f32|bf16|f16", "How the weights lie in memory").default_value("f32"))
                    .arg(flag("matrix-rate", "Also measure how fast the device multiplies matrices"))
                    .arg(device_argument())
                    .arg(json_flag()),
            )
            .subcommand(
                Command::new("coordinator")
                    .about("A real coordinator with simulated workers on loopback: no model, every message real")
                    .after_help(
                        "Each worker has one micro-batch of every step; its row is made up, everything else is the real \
                         worker's code. The workers share this machine's cores with the coordinator.",
                    )
                    .arg(count_option("workers", "Simulated workers", "10"))
                    .arg(count_option("steps", "Steps to measure", "200"))
                    .arg(count_option("hidden", "Hidden size of the model that is not there", "768"))
                    .arg(json_flag()),
            ),
        )
        .subcommand(
            Command::new("doctor")
                .about("Says what this machine has for a worker, and what to do about what it lacks")
                .after_help(
                    "Each line is ok, warning or failure. A machine without a GPU is fine: it trains on the CPU. Exit code 1 \
                     where something fails that a run would need.",
                )
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("selftest")
                .about("Proves this build on this machine: right numbers, the same bytes over worlds and collectives, a kill, speed")
                .after_help(
                    "Starts real runs of its own in a temporary folder. On the CPU it compares with stored values from \
                     `transformers`; on a GPU with this machine's CPU too, and with NCCL's own sums. What a machine cannot \
                     show is skipped, in words. Exit code 1 where anything fails.",
                )
                .arg(device_argument())
                .arg(flag("quick", "Leave out the measurement of speed"))
                .arg(json_flag()),
        )
        .subcommand(
            Command::new("config")
                .about("Checks or shows a configuration")
                .subcommand_required(true)
                .subcommand(with_keys(
                    Command::new("check").about("Validates a configuration file").arg(file_argument()),
                ))
                .subcommand(with_keys(
                    Command::new("show").about("Prints the resolved configuration as YAML").arg(file_argument()),
                )),
        )
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn count_option(name: &'static str, help: &'static str, default: &'static str) -> Arg {
    option(name, "N", help).default_value(default).value_parser(value_parser!(u64).range(1..=1 << 24))
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn json_flag() -> Arg {
    flag("json", "Print one JSON object on standard output and nothing else")
}

fn best_flag() -> Arg {
    flag("best", "Use the projectors of the best evaluation during training (eval_every), not the last ones")
}

fn config_argument() -> Arg {
    option("config", "FILE", "Configuration file (YAML)")
}

fn model_argument() -> Arg {
    option(
        "model",
        "MODEL",
        "Frozen model: demo, synthetic:<size>[:seed], a folder or a hub id; the checkpoint's by default",
    )
}

fn device_argument() -> Arg {
    option("device", "DEVICE", "auto, cpu, cuda or cuda:N").default_value("auto")
}

fn file_argument() -> Arg {
    Arg::new("file").value_name("FILE").help("Configuration file (YAML)").required(true)
}

fn stage_argument(stages: &[&'static str]) -> Arg {
    Arg::new("stage-name")
        .value_name("STAGE")
        .help("Stage; the configuration's by default")
        .value_parser(clap::builder::PossibleValuesParser::new(stages))
}

/// Identifier of a key's flag among clap's arguments, apart from a command's own.
fn key_id(name: &str) -> String {
    format!("key:{name}")
}

fn with_keys(command: Command) -> Command {
    let mut command = command;
    for key in keys() {
        let mut arg = Arg::new(key_id(key.name))
            .long(key.flag())
            .value_name(key.value_name)
            .help(format!("{} [default: {}]", key.help, key.default_text()))
            .help_heading("Configuration keys")
            .allow_hyphen_values(true);
        if let Some(alias) = key.flag_alias() {
            arg = arg.alias(alias);
        }
        command = command.arg(arg);
    }
    command
}

/// Keys given as flags, with their values.
pub fn key_flags(matches: &ArgMatches) -> Vec<(String, String)> {
    let mut given = Vec::new();
    for key in keys() {
        if let Some(value) = matches.get_one::<String>(&key_id(key.name)) {
            given.push((key.name.to_owned(), value.clone()));
        }
    }
    given
}

/// A text argument of a command.
pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
