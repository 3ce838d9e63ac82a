//! Commands that train, and those around a run: its configuration, its dataset, its state.

use clap::{Arg, Command, value_parser};

use super::keys::{OTHER_KEYS, Shown, with_keys, with_keys_but};
use super::parts::{
    client_arguments, config_argument, count_option, details_flag, file_argument, flag, help_with_examples, json_flag,
    option, server_arguments, server_tls_arguments, stage_argument, token_argument,
};
use crate::launcher::chaos;

pub fn commands() -> Vec<Command> {
    vec![launch(), probe(), coordinator(), worker(), status(), watch(), report(), generate(), config()]
}

fn launch() -> Command {
    let command = Command::new("launch")
        .about("Runs a coordinator and its workers on this machine, then evaluates the result")
        .after_help(help_with_examples(
            "`all` chains nn, text and mixed, each starting from the last one's projectors; every stage is a run of its \
             own, <run-id>-<stage>, saved beside model_path_save, which gets the last stage's result. It takes as long as \
             the three stages together: config/demo-all.yaml some minutes.",
            &[
                ("numalign launch --config config/quickstart.yaml", "trains stage nn on the built-in model in seconds"),
                (
                    "numalign launch mixed --model-name /models/gpt2 --workers 2 --run-id first",
                    "trains stage mixed on a model in a folder, with two workers",
                ),
                ("numalign launch --run-id first --resume auto", "continues a run that was stopped"),
            ],
        ))
        .arg(stage_argument(&["nn", "text", "mixed", "all"]))
        .arg(config_argument())
        .arg(flag("no-eval", "Do not evaluate the result at the end"))
        .arg(details_flag())
        .arg(token_argument())
        .arg(
            option("chaos", "SPEC", "Faults on purpose, from a seed: the result has the same bytes")
                .long_help(chaos::SYNTAX),
        )
        .arg(json_flag());
    with_keys(command, Shown::All)
}

/// Keys that a probe sets itself.
const SET_BY_PROBE: &[&str] = &[
    "model_name",
    "dataset.file",
    "layer",
    "pooling",
    "taps",
    "probe",
    "solver",
    "solve_every",
    "solve_samples",
    "num_epochs",
    "num_batches",
    "batch_size",
    "micro_batch_size",
    "train_input_projection",
    "train_output_projection",
    "train_layer_norms",
];

fn probe() -> Command {
    let about = "One pass of a coordinator and its workers over the samples. For every layer and pooling the exact output \
                 projector is solved, and its error on held-out samples shown beside that of a constant answer and of the \
                 same solution without the language model; then places that are good together are chosen one by one, and \
                 solved together. The rows lie in a file in the run's folder meanwhile. In stages nn and mixed the input \
                 projector stays as it begins.";
    let command = Command::new("probe")
        .about("Finds where in the model the number is: every layer and pooling in one pass")
        .after_help(help_with_examples(
            &format!("{about}\n\n{OTHER_KEYS}"),
            &[
                ("numalign probe text --model demo", "the table of the built-in model's places"),
                (
                    "numalign probe text --model smollm2.gguf --taps 12 --write-config best.yaml --plot places.svg",
                    "chooses up to 12 places; then: numalign launch --config best.yaml",
                ),
            ],
        ))
        .arg(stage_argument(&["nn", "text", "mixed"]))
        .arg(config_argument())
        .arg(option("model", "MODEL", "Frozen model, as the key model_name; the configuration's by default"))
        .arg(option("dataset", "FILE", "JSONL file of samples; the configuration's or generated ones by default"))
        .arg(
            option(
                "layers",
                "LAYERS",
                "Layers to look at: all, or such as 0-8,-1 (0: embeddings, -1: after the final norm)",
            )
            .default_value("all")
            .allow_hyphen_values(true),
        )
        .arg(option("pooling", "LIST", "Poolings to look at [default: last,mean and where there are numbers: numbers]"))
        .arg(count_option("samples", "Samples of the pass; every eighth is held out, up to 1024", "4000"))
        .arg(count_option("taps", "Most places that are chosen together", "6"))
        .arg(option("plot", "FILE", "Picture of the errors over the layers (.svg or .png)"))
        .arg(option("write-config", "FILE", "Configuration for `launch` that reads the chosen places (YAML)"))
        .arg(flag("no-ablation", "Leave out the solution without the language model"))
        .arg(token_argument())
        .arg(json_flag());
    with_keys_but(command, Shown::None, SET_BY_PROBE)
}

fn coordinator() -> Command {
    let command = Command::new("coordinator")
        .about("Runs the coordinator alone: for workers on several machines")
        .after_help(help_with_examples(
            "",
            &[
                (
                    "numalign coordinator nn --listen 0.0.0.0:7400 --workers 4 --token-file token",
                    "waits for four workers that have the same token",
                ),
                ("numalign coordinator nn --listen 127.0.0.1:7400", "takes workers of this machine, without a token"),
            ],
        ))
        .arg(stage_argument(&["nn", "text", "mixed"]))
        .arg(config_argument())
        .arg(option("listen", "ADDR", "Address to listen on, such as 0.0.0.0:7400").required(true));
    with_keys(server_arguments(command), Shown::All)
}

fn worker() -> Command {
    let command = Command::new("worker")
        .about("Runs one worker; it gets its whole configuration from the coordinator")
        .after_help(help_with_examples(
            "Without --coordinator, MASTER_ADDR and MASTER_PORT name it. With device cuda or auto, LOCAL_RANK (or \
             SLURM_LOCALID) chooses the GPU among the visible ones; a single visible GPU is shared by all. \
             NUMALIGN_COORDINATOR_WAIT is the timeout for a coordinator that was never reached (30s).",
            &[
                ("numalign worker --coordinator http://10.0.0.1:7400 --token-file token", "joins a run"),
                ("numalign worker --coordinator http://10.0.0.1:7400 --device cuda:1", "joins with the second GPU"),
            ],
        ))
        .arg(option("coordinator", "URL", "The coordinator, such as http://10.0.0.1:7400"))
        .arg(option("device", "DEVICE", "auto, cpu, cuda or cuda:N; the run's own setting by default"));
    client_arguments(command)
}

fn status() -> Command {
    let command = Command::new("status")
        .about("Shows what a run is doing, and why")
        .after_help(help_with_examples(
            "Without --coordinator, MASTER_ADDR and MASTER_PORT name it, else the newest run in this folder's chk/ that \
             answers, else http://127.0.0.1:7400. With --watch and --json, one JSON object per line.",
            &[
                ("numalign status", "shows the run that was started in this folder"),
                ("numalign status --coordinator http://10.0.0.1:7400 --watch", "follows a run on another machine"),
            ],
        ))
        .arg(option("coordinator", "URL", "The coordinator, such as http://10.0.0.1:7400"))
        .arg(flag("watch", "Show it again every second, until the coordinator is gone"))
        .arg(json_flag());
    client_arguments(command)
}

fn watch() -> Command {
    let command = Command::new("watch")
        .about("Serves the page of runs that are over, or compares several")
        .after_help(help_with_examples(
            "A run that goes on has its page from `launch`, or from `coordinator --http`. Here only files are read: \
             chk/<run>/metrics.jsonl and the checkpoints. Beyond loopback the page asks for the token in \
             --http-token-file, or else for the join token. With --tls-cert and --tls-key it speaks TLS.",
            &[
                ("numalign watch quickstart", "the page of run quickstart, until Ctrl-C"),
                ("numalign watch first second", "their curves over each other, and the keys in which they differ"),
                (
                    "numalign watch quickstart --http 0.0.0.0:8080 --token-file token --tls-cert tls/coordinator.pem \
                     --tls-key tls/coordinator-key.pem",
                    "for other machines, with TLS and the join token",
                ),
            ],
        ))
        .arg(
            Arg::new("runs")
                .value_name("RUN")
                .help("Names of runs in chk/, or their folders [default: the newest run in chk/]")
                .num_args(0..),
        )
        .arg(option("http", "ADDR", "Where the page is served, as HOST:PORT").default_value("127.0.0.1:0"))
        .arg(option("http-token-file", "FILE", "File with the token that the page asks for, also on loopback"))
        .arg(token_argument());
    server_tls_arguments(command)
}

fn report() -> Command {
    let about = "Each configuration is trained as by `launch` and evaluated as by `eval --ablation`, one after another; its \
                 log and figures lie beside the page. A configuration that is finished and unchanged is not run again, so \
                 an interrupted report goes on where it was. One that fails has a row that says why, and the exit code is \
                 1. Configuration keys given here hold for all of them.";
    let command = Command::new("report")
        .about("Trains and evaluates a list of configurations and writes one page with figures and pictures")
        .after_help(help_with_examples(
            &format!("{about}\n\n{OTHER_KEYS}"),
            &[
                ("numalign report", "the configurations of the README's results"),
                ("numalign report mine.yaml other.yaml --out compared", "compares two configurations"),
            ],
        ))
        .arg(
            Arg::new("config")
                .value_name("FILE|FOLDER")
                .help("Configurations, or folders whose .yaml files are meant [default: config/experiments]")
                .num_args(0..),
        )
        .arg(option("out", "DIR", "Folder of the page, report.md").default_value("report"))
        .arg(flag("fresh", "Run everything again, finished or not"))
        .arg(count_option("count", "Held-out samples of each evaluation", "1000"))
        .arg(option("pictures", "png|svg", "Format of the pictures").default_value("png").value_parser(["png", "svg"]))
        .arg(json_flag());
    with_keys(command, Shown::None)
}

fn generate() -> Command {
    let command = Command::new("generate")
        .about("Writes a stage's dataset as JSONL")
        .after_help(help_with_examples(
            OTHER_KEYS,
            &[
                ("numalign generate text --count 500 --out train.jsonl", "500 samples of stage text"),
                ("numalign generate --config config/mixed.yaml --count 3 --out -", "the first three samples of a run"),
            ],
        ))
        .arg(stage_argument(&["nn", "text", "mixed"]))
        .arg(config_argument())
        .arg(option("count", "N", "Samples to write").required(true).value_parser(value_parser!(u64)))
        .arg(option("out", "FILE", "File to write; - for standard output").required(true));
    with_keys(command, Shown::Samples)
}

fn config() -> Command {
    let check = Command::new("check")
        .about("Validates a configuration file")
        .after_help(help_with_examples(
            OTHER_KEYS,
            &[("numalign config check config/mixed.yaml", "every problem at once, or that there is none")],
        ))
        .arg(file_argument());
    let show = Command::new("show")
        .about("Prints the resolved configuration as YAML")
        .after_help(help_with_examples(
            OTHER_KEYS,
            &[("numalign config show config/mixed.yaml --lr 0.01", "the file with one key changed")],
        ))
        .arg(file_argument());
    let schema = Command::new("schema").about("Prints the JSON Schema of configuration files, for editors").after_help(
        help_with_examples(
            "With the YAML language server, the line `# yaml-language-server: $schema=FILE` in a file names its schema.",
            &[("numalign config schema > numalign.schema.json", "what editors complete and check files by")],
        ),
    );
    Command::new("config")
        .about("Checks or shows a configuration, or says what one may hold")
        .subcommand_required(true)
        .subcommand(with_keys(check, Shown::None))
        .subcommand(with_keys(show, Shown::None))
        .subcommand(schema)
}
