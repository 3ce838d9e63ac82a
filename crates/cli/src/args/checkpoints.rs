//! Commands that read a checkpoint or the frozen model.

use clap::{Arg, Command, value_parser};

use super::keys::{Shown, with_keys};
use super::parts::{
    best_flag, config_argument, count_option, details_flag, device_argument, flag, help_with_examples, json_flag,
    model_argument, option,
};

pub fn commands() -> Vec<Command> {
    vec![eval(), predict(), inspect(), features(), hidden(), generate_text(), verify(), replay(), import()]
}

fn eval() -> Command {
    Command::new("eval")
        .about("Evaluates a checkpoint on a held-out stream, beside the constant predictor")
        .after_help(help_with_examples(
            "Percentages are of the value range. The relative error divides by the target, but never by less than 1 % of \
             the range; its median divides by the target itself. The baseline always answers the median target. \
             --ablation trains the same projectors from the start with the frozen model bypassed: the hidden state is then \
             the mean of the input embeddings. --zero-shot asks up to 200 questions of stage mixed as plain text. The \
             choice accuracy counts a question as right where the listed number nearest to the answer is the right one; \
             an answer below all numbers always names the smallest, so the share of a constant stands beside it, and a \
             strict one that wants the error below half the gap to the next number.",
            &[
                ("numalign eval --checkpoint chk/nn.safetensors", "1,000 generated samples that were not trained on"),
                ("numalign eval --checkpoint chk/mine.safetensors --dataset rows.csv", "the held-out rows of the run's file"),
            ],
        ))
        .arg(option("checkpoint", "FILE", "Checkpoint to evaluate").required(true))
        .arg(
            option("count", "N", "Held-out samples: 1000 by default, or the rows of a file up to 10,000")
                .value_parser(value_parser!(u64).range(1..=100_000_000)),
        )
        .arg(option("seed", "S", "Seed of the held-out stream; the run's by default").value_parser(value_parser!(u64)))
        .arg(option("dataset", "FILE", "JSONL, CSV or Parquet: the held-out rows of the run's own file, each row of another"))
        .arg(best_flag())
        .arg(flag("ablation", "Also train and evaluate the same projectors without the language model"))
        .arg(flag("zero-shot", "Also ask the frozen model itself, as plain text (stage mixed)").alias("verbal"))
        .arg(details_flag())
        .arg(option("plot", "FILE.svg|png", "Draw predicted against true, error over value and the loss curve"))
        .arg(model_argument())
        .arg(device_argument())
        .arg(json_flag())
}

fn predict() -> Command {
    Command::new("predict")
        .about("Reads numbers, texts, or texts with marked numbers, and answers with numbers")
        .after_help(help_with_examples(
            "A bare number given to a text or mixed checkpoint is marked first: 12.5 becomes $$12.5&&. A marked number may \
             be written $$12.5&& or <num>12.5</num>, and a number in any way that has one meaning: 1,234.50, 12.5 %, $ 99, \
             1.5e3. With --file the rows come back in their order, with a `prediction` each, as JSONL, CSV or Parquet; a row that \
             has none says why in `error`, the others are answered, and the exit code is 1. The column `input` is read; \
             JSONL, CSV and Parquet are told by the file's ending, and other content is JSONL where it begins with {, else \
             one input a line.",
            &[
                ("numalign predict --checkpoint chk/nn.safetensors 12.5 80", "one answer per line"),
                (
                    "numalign predict --checkpoint chk/mixed.safetensors 'Which is less, $$3&& or $$8&&?'",
                    "single quotes keep the shell from replacing $$",
                ),
                (
                    "numalign predict --checkpoint chk/mine.safetensors --file new.csv --out answered.csv",
                    "every row of a file",
                ),
                ("cat texts.txt | numalign predict --checkpoint chk/mine.safetensors -", "every line of a pipe"),
            ],
        ))
        .arg(option("checkpoint", "FILE", "Checkpoint to use").required(true))
        .arg(
            Arg::new("input")
                .value_name("INPUT")
                .help("A number or a text, as the checkpoint's stage wants; - reads one per line from standard input")
                .required_unless_present("file")
                .conflicts_with("file")
                .num_args(1..)
                .allow_negative_numbers(true),
        )
        .arg(option("file", "FILE", "Answer every row of a JSONL, CSV or Parquet file or of plain lines; - for standard input"))
        .arg(option("out", "FILE", "File for the answered rows, .jsonl, .csv or .parquet; standard output by default"))
        .arg(
            option("format", "FORMAT", "How the rows are written; the file's ending decides by default")
                .value_parser(["jsonl", "csv", "parquet", "lines"]),
        )
        .arg(best_flag())
        .arg(model_argument())
        .arg(device_argument())
        .arg(json_flag().conflicts_with("file"))
}

fn inspect() -> Command {
    Command::new("inspect")
        .about("Shows everything a checkpoint says")
        .after_help(help_with_examples("", &[("numalign inspect chk/nn.safetensors", "recipe, digests, tensors")]))
        .arg(Arg::new("file").value_name("FILE").help("Checkpoint").required(true))
        .arg(json_flag())
}

fn features() -> Command {
    Command::new("features")
        .about("Exports the hidden states and encoded targets that a checkpoint was solved on, as safetensors")
        .after_help(help_with_examples(
            "Solver exact: the samples of its pass. Solver alternate: those of the latest round, which belong to the \
             solution as long as no step was made since, as in a final checkpoint. Solver adam: the first training samples. \
             Tensors: hidden [N, d], target [N]; the metadata say which samples, and the ridge.",
            &[(
                "numalign features --checkpoint chk/nn.safetensors --out features.safetensors",
                "for a solver of your own, in Python for example",
            )],
        ))
        .arg(option("checkpoint", "FILE", "Checkpoint").required(true))
        .arg(option("out", "FILE", "File to write").required(true))
        .arg(
            option("count", "N", "Samples, from the first one on; all of them by default")
                .value_parser(value_parser!(u64).range(1..=100_000_000)),
        )
        .arg(option("dataset", "FILE", "The file of the run, where it had one"))
        .arg(model_argument())
        .arg(device_argument())
}

fn hidden() -> Command {
    Command::new("hidden")
        .about("Shows token ids and the frozen model's hidden state at the read position")
        .after_help(help_with_examples(
            "",
            &[
                ("numalign hidden --model demo --text 'one two'", "of a text"),
                ("numalign hidden --checkpoint chk/nn.safetensors --value 12.5", "of a projected number"),
            ],
        ))
        .arg(model_argument())
        .arg(option("text", "TEXT", "Tokenise this text").allow_hyphen_values(true))
        .arg(flag("add-special-tokens", "Put the tokenizer's special tokens around --text").requires("text"))
        .arg(option("ids", "IDS", "Token ids, separated by commas, instead of a text"))
        .arg(option("checkpoint", "FILE", "Projectors for --value and --mixed"))
        .arg(option("value", "X", "One number, projected").allow_hyphen_values(true).value_parser(value_parser!(f64)))
        .arg(option("mixed", "TEXT", "A text whose $$…&& are projected").allow_hyphen_values(true))
        .arg(device_argument())
        .arg(json_flag())
}

fn generate_text() -> Command {
    Command::new("generate-text")
        .alias("complete")
        .about("Continues a text with the frozen model alone, by the likeliest token at a time")
        .after_help(help_with_examples(
            "",
            &[("numalign generate-text --model /models/gpt2 'The capital of France is'", "up to 16 tokens more")],
        ))
        .arg(model_argument().default_value("demo").help("Frozen model: demo, a folder, a .gguf file or a hub id"))
        .arg(Arg::new("prompt").value_name("TEXT").help("Text to continue").required(true))
        .arg(count_option("max-tokens", "Tokens to add at most", "16"))
        .arg(device_argument())
        .arg(json_flag())
}

fn verify() -> Command {
    Command::new("verify")
        .about("Proves that a checkpoint is whole and took every sample once, in order")
        .after_help(help_with_examples(
            "The stream is regenerated from the checkpoint's own seeds and settings. The frozen model's fingerprint is \
             compared where the model can be loaded without the network. Exit code 0, or 1 with the reason.",
            &[
                ("numalign verify chk/nn.safetensors", "a run on generated samples"),
                ("numalign verify chk/mine.safetensors --dataset train.jsonl", "a run on a file"),
            ],
        ))
        .arg(Arg::new("file").value_name("FILE").help("Checkpoint").required(true))
        .arg(option("dataset", "FILE", "The file of a run that was trained from one"))
        .arg(option("eval-file", "FILE", "The run's dataset.eval_file").requires("dataset"))
        .arg(model_argument())
        .arg(flag("no-base", "Do not look at the frozen model").conflicts_with("model"))
        .arg(json_flag())
}

fn replay() -> Command {
    Command::new("replay")
        .about("Recomputes the steps after a checkpoint in this process, with loss and state digest of each")
        .after_help(help_with_examples(
            "The digest after a step is the state_digest of a checkpoint of that step: two builds or machines that agree \
             print the same lines.",
            &[("numalign replay --checkpoint chk/nn/step-00000100.safetensors --steps 5", "the five steps after step 100")],
        ))
        .arg(option("checkpoint", "FILE", "Checkpoint to start from").required(true))
        .arg(count_option("steps", "Steps to recompute", "1"))
        .arg(
            option("eval-every", "N", "The run's eval_every; what the checkpoint's history shows by default")
                .value_parser(value_parser!(u64)),
        )
        .arg(
            option("eval-samples", "N", "The run's eval_samples; what the history shows by default, else 200")
                .value_parser(value_parser!(u64).range(1..=1 << 20)),
        )
        .arg(option("dataset", "FILE", "The file of a run that was trained from one"))
        .arg(model_argument())
        .arg(device_argument())
        .arg(json_flag())
}

fn import() -> Command {
    let command = Command::new("import")
        .about("Makes a checkpoint of bare projector tensors, given the stage, the encoder and the base")
        .after_help(help_with_examples(
            "The file is a safetensors file with input_projection.weight [d, w], input_projection.bias [d], \
             output_projection.weight [1, d] and output_projection.bias [1], in f32; w is 1, or 1 + 2 × fourier_periods. \
             Other tensors are passed over. The keys must be those of the training: stage, model_name, value_encoding, \
             min_val, max_val, layer, pooling. Every configuration key is accepted as a flag. docs/OPERATIONS.md shows how a PyTorch file becomes such a file.",
            &[(
                "numalign import projectors.safetensors --stage nn --model-name /models/gpt2 --out chk/mine.safetensors",
                "for eval, predict and --model-path-load",
            )],
        ))
        .arg(Arg::new("file").value_name("FILE").help("Safetensors file of the projectors").required(true))
        .arg(config_argument())
        .arg(option("out", "FILE", "Checkpoint to write").required(true));
    with_keys(command, Shown::None)
}
