//! `numalign replay`: recomputes the steps after a checkpoint in this process, to compare two builds or machines, or to
//! find the step where a run went astray.

use std::path::Path;

use clap::ArgMatches;
use numalign_checkpoint::Checkpoint;
use numalign_config::DeviceChoice;
use numalign_worker::LocalRun;

use super::eval::load_engine;
use super::verify::stream_of;
use crate::args::text;
use crate::failure::Failure;
use crate::settings;

pub fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let path = Path::new(text(matches, "checkpoint").unwrap_or_default());
    let checkpoint = Checkpoint::read(path)?;
    let (from, total) = (checkpoint.state.step(), checkpoint.identity.recipe.total_steps());
    let asked = *matches.get_one::<u64>("steps").unwrap_or(&1);
    let steps = asked.min(total.saturating_sub(from));
    if steps == 0 {
        return Err(Failure::new(format!("{} holds the last of {total} steps", path.display()))
            .with_hint("give an earlier checkpoint of the run, chk/<run-id>/step-*.safetensors"));
    }
    if steps < asked {
        eprintln!("the run ends after {steps} more steps");
    }
    let stream = stream_of(&checkpoint, path, text(matches, "dataset"))?;
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let engine = load_engine(&checkpoint, path, text(matches, "model"), device, true)?;
    let json = matches.get_flag("json");
    let mut run = LocalRun::new(engine, stream, checkpoint.state);
    let mut lines = Vec::new();
    for _ in 0..steps {
        let loss = run.step()?;
        let (step, digest) = (run.state().step(), run.state().digest().to_hex());
        if json {
            lines.push(serde_json::json!({ "step": step, "loss": loss, "state_digest": digest }));
        } else {
            println!("step {step:>8}  loss {loss:<14}  state {digest}");
        }
    }
    if json {
        println!("{}", serde_json::json!({ "checkpoint": path, "from_step": from, "steps": lines }));
    }
    Ok(())
}
