//! Commands about this machine and this binary.

use clap::{Arg, Command, value_parser};

use super::parts::{count_option, device_argument, flag, help_with_examples, json_flag, option};

pub fn commands() -> Vec<Command> {
    vec![bench(), doctor(), selftest(), cert(), completions()]
}

fn bench() -> Command {
    let step = Command::new("step")
        .about("Stage nn's forward, backward and update, without a network")
        .after_help(help_with_examples("", &[("numalign bench step --batch 64", "the speed of this machine")]))
        .arg(option("model", "MODEL", "Frozen model").default_value("synthetic:small"))
        .arg(count_option("batch", "Samples of a step", "8"))
        .arg(count_option("positions", "Positions that a number fills", "1"))
        .arg(count_option("steps", "Steps to measure", "20"))
        .arg(count_option("devices", "Devices over which the model's blocks are spread", "1"))
        .arg(
            option(
                "dtype",
                "TYPE",
                "How the weights lie in memory: f32, bf16, f16, q8_0, q4_0 or another quantised type",
            )
            .default_value("f32"),
        )
        .arg(
            option("arithmetic", "TYPE", "To what a CPU rounds the factors of the model's products: f32 or bf16")
                .default_value("f32"),
        )
        .arg(flag("exact-f32", "Multiply in f32 on a GPU too"))
        .arg(flag("matrix-rate", "Also measure how fast the device multiplies matrices"))
        .arg(
            option("matrix-rows", "N", "Rows of those matrices; enough for the device's full speed by default")
                .value_parser(value_parser!(u64).range(1..=1 << 20)),
        )
        .arg(device_argument())
        .arg(json_flag());
    let coordinator = Command::new("coordinator")
        .about("A real coordinator with simulated workers on loopback: no model, every message real")
        .after_help(help_with_examples(
            "Each worker has one micro-batch of every step; its row is made up, everything else is the real worker's code. \
             The workers share this machine's cores with the coordinator.",
            &[("numalign bench coordinator --workers 100", "what a hundred workers cost a coordinator")],
        ))
        .arg(count_option("workers", "Simulated workers", "10"))
        .arg(count_option("steps", "Steps to measure", "200"))
        .arg(count_option("hidden", "Hidden size of the model that is not there", "768"))
        .arg(json_flag());
    Command::new("bench").about("Measures").subcommand_required(true).subcommand(step).subcommand(coordinator)
}

fn doctor() -> Command {
    Command::new("doctor")
        .about("Says what this machine has for a worker, and what to do about what it lacks")
        .after_help(help_with_examples(
            "Each line is ok, warning or failure. A machine without a GPU is fine: it trains on the CPU. Exit code 1 where \
             something fails that a run would need.",
            &[("numalign doctor", "processor, memory, GPUs, NCCL, folders")],
        ))
        .arg(json_flag())
}

fn selftest() -> Command {
    Command::new("selftest")
        .about("Proves this build on this machine: right numbers, the same bytes over worlds and collectives, a kill, speed")
        .after_help(help_with_examples(
            "Starts real runs in a temporary folder. On the CPU it compares with stored values from \
             `transformers`; on a GPU with this machine's CPU too, and with NCCL's own sums. What a machine cannot show is \
             skipped, with the reason. Exit code 1 where anything fails.",
            &[
                ("numalign selftest --quick", "without the measurement of speed"),
                ("numalign selftest --device cuda", "on the first GPU"),
            ],
        ))
        .arg(device_argument())
        .arg(flag("quick", "Leave out the measurement of speed"))
        .arg(json_flag())
}

fn cert() -> Command {
    Command::new("cert")
        .about("Makes a CA of your own with a coordinator's and a worker's certificate, for --tls-…")
        .after_help(help_with_examples(
            "",
            &[("numalign cert --out tls 10.0.0.1 coordinator.example", "for a coordinator with these two names")],
        ))
        .arg(option("out", "DIR", "Folder to write to; files that are there are never replaced").required(true))
        .arg(
            option("days", "N", "Days that they are valid")
                .default_value("365")
                .value_parser(value_parser!(u64).range(1..=36_500)),
        )
        .arg(
            Arg::new("host")
                .value_name("HOST")
                .help("Host name or IP address by which workers reach the coordinator")
                .required(true)
                .num_args(1..),
        )
}

fn completions() -> Command {
    Command::new("completions")
        .about("Prints a shell's completion script, or the man page")
        .after_help(help_with_examples(
            "",
            &[
                ("numalign completions bash > ~/.local/share/bash-completion/completions/numalign", "for new shells"),
                ("numalign completions man --out ~/.local/share/man/man1", "a page for each command"),
            ],
        ))
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .help("bash, zsh or fish; man for the man page")
                .required(true)
                .value_parser(["bash", "zsh", "fish", "man"]),
        )
        .arg(option("out", "DIR", "Folder to write to, instead of standard output"))
}
