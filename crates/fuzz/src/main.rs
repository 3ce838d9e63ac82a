//! Long campaigns: `cargo run -p numalign-fuzz -- --target all --executions 2000000`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Arg, Command, value_parser};
use numalign_fuzz::campaign::{run, seeds};
use numalign_fuzz::targets::ALL;

fn main() -> ExitCode {
    match fuzz() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(crashes) => {
            eprintln!("{crashes} inputs made a reader panic");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the campaigns; answers with the number of inputs that panicked.
fn fuzz() -> anyhow::Result<usize> {
    let names: Vec<&str> = ALL.iter().map(|target| target.name).chain(["all"]).collect();
    let matches = Command::new("numalign-fuzz")
        .about("Gives mutated inputs to everything that reads files and messages")
        .arg(Arg::new("target").long("target").default_value("all").value_parser(names))
        .arg(
            Arg::new("executions")
                .long("executions")
                .help("Inputs of each target")
                .default_value("100000")
                .value_parser(value_parser!(u64)),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .help("Decides every input")
                .default_value("1")
                .value_parser(value_parser!(u64)),
        )
        .arg(Arg::new("out").long("out").help("Folder for inputs that panic").default_value("fuzz-crashes"))
        .get_matches();
    let wanted = matches.get_one::<String>("target").map_or("all", String::as_str);
    let executions = *matches.get_one::<u64>("executions").unwrap_or(&0);
    let seed = *matches.get_one::<u64>("seed").unwrap_or(&0);
    let out = Path::new(matches.get_one::<String>("out").map_or("fuzz-crashes", String::as_str));
    let (mut crashes, mut all) = (0, 0);
    for target in ALL.iter().filter(|target| wanted == "all" || target.name == wanted) {
        let seeds = seeds(target).with_context(|| format!("the seeds of {}", target.name))?;
        let started = Instant::now();
        let tally = run(target, &seeds, executions, seed);
        all += tally.executions;
        println!(
            "{:<13} {:>9} executions in {:>6.1} s, {:>8} accepted, {:>5} kinds of answers, {} panics",
            target.name,
            tally.executions,
            started.elapsed().as_secs_f64(),
            tally.accepted,
            tally.answers,
            tally.crashes.len()
        );
        for input in &tally.crashes {
            std::fs::create_dir_all(out)?;
            let path = out.join(format!("{}-{:.16}", target.name, blake3::hash(input).to_hex()));
            std::fs::write(&path, input).with_context(|| path.display().to_string())?;
            eprintln!("  {} ({} bytes); keep it as a seed once it is mended", path.display(), input.len());
        }
        crashes += tally.crashes.len();
    }
    println!("{all} executions in all, {crashes} panics");
    Ok(crashes)
}
